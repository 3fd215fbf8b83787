"""Pre-train the starter base: Muon for the matrices, Adam for the rest, constant rate then a linear decay.

    python -m starter.pretrain --data ../shared/data --run starter/run

The run is a function of its options: killed at any moment and started again it goes on from the last checkpoint and
reaches the same weights (on the CPU, bit by bit). SIGTERM and SIGINT checkpoint first. `--decay N` ends the run: the
rate falls to zero over the next N steps, in which a larger share of the rows are conversations. Products are
computed in bf16 where the device has them. On a GPU give it `--batch 64 --length 1024`.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from starter.corpus import Stream
from starter.model import Llama, Samples, Shape

BOS = 1  # of the tokenizer, as starter.tokenizer trains it
MUON_RATE = 0.02  # the rate of Muon's reference implementation; per-matrix update has RMS-norm 1 before it
ADAM_RATE = 0.003
MOMENTUM = 0.95
BETAS = (0.9, 0.95)
WARMUP = 60
CLIP = 1.0
LOW = torch.bfloat16  # products in mixed precision: on processors that have it twice as fast as in 32 bits
EVALUATION_TOKENS = 40_000  # about 160 kB of held-out text: steady to 0.01 bits, 20 s on two cores


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device computes products of bf16 numbers faster than of 32-bit ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def orthogonalise(gradient: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrix (coefficients of Jordan et al., Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = gradient.shape[0] > gradient.shape[1]
    x = gradient.t() if transposed else gradient
    x = x / (x.norm() + 1e-7)
    x = x.to(LOW) if has_bf16(x.device) else x
    for _ in range(5):
        product = x @ x.t()
        x = a * x + (b * product + c * product @ product) @ x
    return (x.t() if transposed else x).to(gradient.dtype)


class Optimiser:
    """Muon for hidden matrices, Adam for embeddings and norms; all state is named tensors, so it saves as safetensors."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.state: dict[str, Tensor] = {}

    def slot(self, kind: str, name: str, like: Tensor) -> Tensor:
        return self.state.setdefault(f"{kind}.{name}", torch.zeros_like(like))

    @torch.no_grad()
    def step(self, number: int, scale: float) -> None:
        """Apply the gradients. `number` counts from 1; `scale` in 0..1 multiplies both rates."""
        parameters = list(self.model.named_parameters())
        torch.nn.utils.clip_grad_norm_([p for _, p in parameters], CLIP)
        for name, parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            if parameter.dim() == 2 and "embed" not in name:
                momentum = self.slot("muon", name, parameter)
                momentum.lerp_(gradient, 1 - MOMENTUM)
                update = orthogonalise(gradient.lerp(momentum, MOMENTUM))
                ratio = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - MUON_RATE * scale * 0.01).add_(update, alpha=-MUON_RATE * scale * ratio)
            else:
                first, second = self.slot("adam1", name, parameter), self.slot("adam2", name, parameter)
                first.lerp_(gradient, 1 - BETAS[0])
                second.lerp_(gradient.square(), 1 - BETAS[1])
                corrected = second.div(1 - BETAS[1] ** number).sqrt_().add_(1e-8)
                parameter.addcdiv_(first, corrected, value=-ADAM_RATE * scale / (1 - BETAS[0] ** number))
            parameter.grad = None


def save(folder: Path, model: Llama, optimiser: Optimiser, meta: dict[str, Any]) -> None:
    """Write the checkpoint under a temporary name and rename it: a kill leaves the old one or the new one."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"state.{k}": v.contiguous() for k, v in optimiser.state.items()}
    temporary = folder / "checkpoint.tmp"
    save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})
    temporary.replace(folder / "checkpoint.safetensors")


def load(folder: Path, device: str = "cpu") -> tuple[Llama, Optimiser, dict[str, Any]] | None:
    """Return model, optimiser and meta of the last checkpoint, or None."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        model = Llama(Shape(**meta["shape"])).to(device)
        optimiser = Optimiser(model)
        model.load_state_dict({k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("model.")})  # noqa: SIM118 (not a dict: it cannot be iterated)
        optimiser.state = {k[6:]: file.get_tensor(k).to(device) for k in file.keys() if k.startswith("state.")}  # noqa: SIM118
    return model, optimiser, meta


def held_out(path: Path, tokenizer: Path, limit: int | None) -> tuple[list[Tensor], list[int]]:
    """Return held-out documents as token tensors (cut to the context) and the bytes each stands for."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    rows, sizes, total = [], [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        ids = processor.encode(json.loads(line)["text"])[:1023]
        rows.append(torch.tensor([processor.bos_id(), *ids]))
        sizes.append(len(processor.decode(ids).encode("utf-8")))
        total += len(ids)
        if limit is not None and total > limit:
            break
    return rows, sizes


@torch.no_grad()
def bits_per_byte(model: Llama, rows: list[Tensor], sizes: list[int]) -> float:
    """Held-out bits per byte of the original text (BOS is given, not counted)."""
    nats = 0.0
    for row in rows:
        inputs = row[:-1].to(model.cos.device)
        samples = Samples(inputs, int(row[0]), len(row))
        nats += float(model.loss(inputs, row[1:].to(inputs.device), samples)) * len(inputs)
    return nats / math.log(2) / sum(sizes)


class Run:
    """A pre-training run in a folder: its weights, optimiser, and how far it has read text and conversations."""

    def __init__(self, folder: Path, model: Llama, optimiser: Optimiser, meta: dict[str, Any]) -> None:
        self.folder, self.model, self.optimiser, self.meta = folder, model, optimiser, meta
        streams = {name: np.load(folder / f"{name}.npy") for name in ("text", "chat")}
        self.streams = {name: Stream(tokens, BOS, meta["seed"]) for name, tokens in streams.items()}
        self.device = model.cos.device

    @classmethod
    def open(cls, folder: Path, device: str, seed: int, weights: Path | None) -> Run:
        """Go on from the folder's checkpoint, or begin with a model folder's weights, or with random ones."""
        if (found := load(folder, device)) is not None:
            return cls(folder, *found)
        model = Llama(Shape(), seed)
        if weights is not None:
            state = load_file(weights / "model.safetensors")
            model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        model.to(device)
        meta: dict[str, Any] = {"step": 0, "seed": seed, "text": 0, "chat": 0, "decay": None, "seconds": 0.0, "curve": [],
                "from": None if weights is None else str(weights)}  # fmt: skip
        return cls(folder, model, Optimiser(model), meta)

    def batch(self, rows: int, length: int, share: float) -> tuple[Tensor, Tensor, Samples]:
        """Return the next ids and targets [rows x length]; a share of the rows are conversations."""
        chat = round(share * rows)
        parts = []
        for name, count in (("text", (rows - chat) * length), ("chat", chat * length)):
            if count:
                parts.append(self.streams[name].take(self.meta[name], count).astype(np.int64))
                self.meta[name] += count
        inputs = torch.from_numpy(np.concatenate([part[:-1] for part in parts]))
        targets = torch.from_numpy(np.concatenate([part[1:] for part in parts]))
        samples = Samples(inputs.to(self.device), BOS, length, seams=range(0, rows * length, length))
        return inputs.to(self.device), targets.to(self.device), samples

    def step(self, rows: int, length: int, share: float, scale: float) -> float:
        """Take one optimiser step and return its loss in nats per token."""
        inputs, targets, samples = self.batch(rows, length, share)
        with self.mixed():
            loss = self.model.loss(inputs, targets, samples)
        loss.backward()
        self.meta["step"] += 1
        self.optimiser.step(self.meta["step"], scale)
        return float(loss.detach())

    def mixed(self) -> torch.autocast:
        """Return the context in which products are computed in bf16, where the device has them."""
        return torch.autocast(self.device.type, LOW, enabled=has_bf16(self.device))

    def scale(self) -> float:
        """Return what multiplies the rates in the next step; 0 when the run has ended."""
        step, decay = self.meta["step"], self.meta["decay"]
        warm = min(1.0, (step + 1) / WARMUP)
        return warm if decay is None else max(0.0, min(warm, (decay["from"] + decay["steps"] - step) / decay["steps"]))

    def save(self) -> None:
        self.meta["shape"] = self.model.shape.as_dict()
        save(self.folder, self.model, self.optimiser, self.meta)
        (self.folder / "curve.json").write_text(json.dumps(self.meta["curve"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("starter/run"), help="folder with text.npy and chat.npy")
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain_heldout.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/starter/tokenizer.model"))
    parser.add_argument("--from", dest="weights", type=Path, help="model folder to begin with, instead of random weights")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--chat", type=float, default=0.125, help="share of the rows that are conversations")
    parser.add_argument("--steps", type=int, help="pause after so many steps in all")
    parser.add_argument("--decay", type=int, help="end the run: steps over which the rate falls to zero")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    evaluation = held_out(options.data / "general/pretrain_heldout.jsonl", options.tokenizer, EVALUATION_TOKENS)
    run = Run.open(options.run, "cuda" if torch.cuda.is_available() else "cpu", options.seed, options.weights)
    meta = run.meta
    if options.decay and meta["decay"] is None:
        meta["decay"] = {"from": meta["step"], "steps": options.decay}
    stop = False

    def on_signal(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    size = options.batch * options.length
    started, since, first = time.monotonic(), meta["step"], meta["step"]
    while not stop and (scale := run.scale()) > 0 and (options.steps is None or meta["step"] < options.steps):
        began = time.monotonic()
        loss = run.step(options.batch, options.length, options.chat, scale)
        meta["seconds"] += time.monotonic() - began
        step = meta["step"]
        if step % 10 == 0:
            rate = (step - since) * size / (time.monotonic() - started)
            print(f"step {step} loss {loss:.3f} scale {scale:.3f} {rate:.0f} tokens/s", flush=True)
            started, since = time.monotonic(), step
        if step % options.evaluate_every == 0 or run.scale() == 0:
            with run.mixed():
                value = bits_per_byte(run.model, *evaluation)
            tokens = meta["text"] + meta["chat"]
            meta["curve"].append({"step": step, "tokens": tokens, "seconds": meta["seconds"], "bits_per_byte": value})
            print(f"step {step} held-out {value:.4f} bits per byte", flush=True)
        if step % options.save_every == 0:
            run.save()
    if meta["step"] > first:
        run.save()


if __name__ == "__main__":
    main()
