"""Pre-train the starter base: Muon for the matrices, Adam for the rest, constant rate then a linear decay.

The run is a function of its options: killed at any moment and started again it goes on from the last checkpoint and
reaches the same weights. SIGTERM and SIGINT checkpoint first. Give `--decay N` to end: the rate falls to zero
over the next N steps, then the run exports itself (start with the same folder).

The depth can grow once (`--grow-at`): a shallow network learns the frequent facts of the language at twice the speed,
and new blocks start as the identity, so nothing is lost when they come.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from starter.model import Llama, Shape

MUON_RATE = 0.02  # the rate of Muon's reference implementation; per-matrix update has RMS-norm 1 before it
ADAM_RATE = 0.003
MOMENTUM = 0.95
BETAS = (0.9, 0.95)
WARMUP = 60
CLIP = 1.0
EVALUATION_TOKENS = 40_000  # about 160 kB of held-out text: steady to 0.01 bits, 20 s on two cores


def orthogonalise(gradient: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrix (coefficients of Jordan et al., Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = gradient.shape[0] > gradient.shape[1]
    x = gradient.t() if transposed else gradient
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        product = x @ x.t()
        x = a * x + (b * product + c * product @ product) @ x
    return x.t() if transposed else x


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


def grow(model: Llama, optimiser: Optimiser, layers: int, seed: int) -> tuple[Llama, Optimiser]:
    """Return the model with more layers: old blocks spread evenly, the new ones identities."""
    shape = Shape(**{**model.shape.as_dict(), "layers": layers})  # type: ignore[arg-type]
    deeper = Llama(shape, seed + 1)
    old = model.shape.layers
    place = {layer: round(layer * (layers - 1) / (old - 1)) for layer in range(old)}

    def rename(name: str) -> str:
        parts = name.split(".")
        if "layers" in parts:
            at = parts.index("layers") + 1
            parts[at] = str(place[int(parts[at])])
        return ".".join(parts)

    missing = deeper.load_state_dict({rename(k): v for k, v in model.state_dict().items()}, strict=False)
    assert not missing.unexpected_keys
    grown = Optimiser(deeper)
    grown.state = {rename(k): v for k, v in optimiser.state.items()}
    return deeper, grown


def save(folder: Path, model: Llama, optimiser: Optimiser, meta: dict[str, object]) -> None:
    """Write the checkpoint under a temporary name and rename it: a kill leaves the old one or the new one."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"state.{k}": v.contiguous() for k, v in optimiser.state.items()}
    temporary = folder / "checkpoint.tmp"
    save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})
    temporary.replace(folder / "checkpoint.safetensors")


def load(folder: Path) -> tuple[Llama, Optimiser, dict[str, object]] | None:
    """Return model, optimiser and meta of the last checkpoint, or None."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        model = Llama(Shape(**meta["shape"]))
        optimiser = Optimiser(model)
        model.load_state_dict({k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("model.")})  # noqa: SIM118 (not a dict: it cannot be iterated)
        optimiser.state = {k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("state.")}  # noqa: SIM118
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
    nats = sum(float(model.loss(row[None, :-1], row[None, 1:])) * (len(row) - 1) for row in rows)
    return nats / math.log(2) / sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("starter/run"), help="folder with tokens.npy")
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain_heldout.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/starter/tokenizer.model"))
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--start-layers", type=int, default=5)
    parser.add_argument("--grow-at", type=int, default=500, help="step at which the depth becomes the shape's")
    parser.add_argument("--decay", type=int, help="end the run: steps over which the rate falls to zero")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokens = np.load(options.run / "tokens.npy", mmap_mode="r")
    rows = (len(tokens) - 1) // options.length
    order = np.random.default_rng(options.seed)
    permutation = order.permutation(rows)
    evaluation = held_out(options.data / "general/pretrain_heldout.jsonl", options.tokenizer, EVALUATION_TOKENS)

    final = Shape()
    loaded = load(options.run)
    if loaded:
        model, optimiser, meta = loaded
    else:
        model = Llama(Shape(layers=options.start_layers), options.seed)
        optimiser, meta = Optimiser(model), {"step": 0, "decay_from": None, "curve": []}
    step = int(meta["step"])  # type: ignore[call-overload]
    if options.decay and meta["decay_from"] is None:
        meta["decay_from"], meta["decay_steps"] = step, options.decay
    stop = False

    def on_signal(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    curve: list[dict[str, float]] = meta["curve"]  # type: ignore[assignment]

    def checkpoint() -> None:
        meta.update(step=step, shape=model.shape.as_dict(), tokens=step * options.batch * options.length)
        save(options.run, model, optimiser, meta)
        (options.run / "curve.json").write_text(json.dumps(curve))

    started, since = time.monotonic(), step
    while not stop:
        scale = min(1.0, (step + 1) / WARMUP)
        if meta["decay_from"] is not None:
            left = meta["decay_from"] + meta["decay_steps"] - step  # type: ignore[operator]
            if left <= 0:
                break
            scale = left / meta["decay_steps"]  # type: ignore[operator]
        if step >= options.grow_at and model.shape.layers < final.layers:
            model, optimiser = grow(model, optimiser, final.layers, options.seed)
        at = [permutation[(step * options.batch + row) % rows] * options.length for row in range(options.batch)]
        batch = torch.from_numpy(np.stack([tokens[i : i + options.length + 1] for i in at]).astype(np.int64))
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        step += 1
        optimiser.step(step, scale)
        if step % 10 == 0:
            rate = (step - since) * options.batch * options.length / (time.monotonic() - started)
            print(f"step {step} loss {float(loss.detach()):.3f} scale {scale:.3f} {rate:.0f} tokens/s", flush=True)
            started, since = time.monotonic(), step
        if step % options.evaluate_every == 0:
            value = bits_per_byte(model, *evaluation)
            curve.append({"step": step, "tokens": step * options.batch * options.length, "bits_per_byte": value})
            print(f"step {step} held-out {value:.4f} bits per byte", flush=True)
        if step % options.save_every == 0:
            checkpoint()
    if step > int(meta["step"]):  # type: ignore[call-overload]
        checkpoint()


if __name__ == "__main__":
    main()
