"""Another adapter into a living process, beside loading a whole model: what switching domains costs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save_file

from agents.gguf_factory import adapter, convert, llama, quantise, targets
from agents.gguf_factory import base as bases
from agents.gguf_factory.doctor import STARTER
from agents.gguf_factory.llama import Model
from benchmarks.result import Goal, Series

TITLE = "Switching adapters"
METHOD = """\
The starter base quantised to Q4_K_M is loaded once; adapters of random numbers on all its linear layers are converted as a job converts
them. "Hot-load" is reading the file and putting it to use; the rank of the larger one is chosen so that it has the size that an adapter may
have at most. "First token" is the decode after it, in which llama.cpp plans its memory anew. "Whole model" is what takes its place without
adapters: a merged file of the base's size is loaded, with a context, and gives its first token. Everything in a shuffled order, in one
process, with a context of {context} tokens and one thread."""

ROUNDS = 20
RANKS = (8, 69)
CONTEXT, PROMPT = 512, 256
GOAL_MS = 50.0


def write_adapter(folder: Path, rank: int, seed: int) -> Path:
    """Write a LoRA of random numbers for the starter base in peft's form."""
    random = np.random.default_rng(seed)
    layers = targets.modules(bases.read(STARTER).shapes)
    tensors = {}
    for layer in layers:
        for side, shape in (("A", (rank, layer.inputs)), ("B", (layer.outputs, rank))):
            tensors[f"base_model.model.{layer.name}.lora_{side}.weight"] = random.normal(0, 0.01, shape).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "target_modules": sorted({layer.leaf for layer in layers}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def timed(act: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def measure(rounds: int, seed: int) -> list[Series]:
    """Run the rounds; see METHOD."""
    random = Random(seed)
    with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
        folder = Path(name)
        base = folder / "base.gguf"
        quantise.quantise(convert.convert_base(STARTER, folder / "home"), base, "Q4_K_M", None)
        files = {}
        for rank in RANKS:
            files[rank] = folder / f"rank-{rank}.gguf"
            source = write_adapter(folder / f"rank-{rank}", rank, seed)
            adapter.convert_adapter(source, STARTER, files[rank], name="starter", quantisation="Q4_K_M")
        labels = {rank: f"{files[rank].stat().st_size / 1e6:.1f} MB" for rank in RANKS}
        values: dict[str, list[float]] = {}
        with llama.load(base, n_ctx=CONTEXT) as model:
            prompt = [1, *range(300, 300 + PROMPT - 1)]
            model.logits(prompt)
            for _ in range(rounds):
                tasks: list[Callable[[], dict[str, float]]] = [
                    lambda: whole(base), *(lambda rank=rank: hot(model, files[rank], labels[rank]) for rank in RANKS),  # type: ignore[misc]
                ]  # fmt: skip
                for task in random.sample(tasks, len(tasks)):
                    for what, value in task().items():
                        values.setdefault(what, []).append(value)
                alone = timed(lambda: model.logits(prompt))
                loaded = model.load_adapter(files[RANKS[0]])
                model.use(loaded)
                model.logits(prompt[:1])
                values.setdefault("prompt with an adapter ÷ without", []).append(timed(lambda: model.logits(prompt)) / alone)
                model.drop(loaded)
    order = sorted(values, key=lambda what: (not what.startswith("hot-load"), what))
    return [series(what, values[what]) for what in order]


def hot(model: Model, file: Path, label: str) -> dict[str, float]:
    """Load an adapter into the process, put it to use, and decode one token."""
    began = time.perf_counter()
    loaded = model.load_adapter(file)
    model.use(loaded)
    found = {f"hot-load, {label}": (time.perf_counter() - began) * 1e3}
    found[f"hot-load and first token, {label}"] = found[f"hot-load, {label}"] + timed(lambda: model.logits([1]))
    model.drop(loaded)
    return found


def whole(file: Path) -> dict[str, float]:
    """Load a whole model instead, and decode one token."""
    began = time.perf_counter()
    with llama.load(file, n_ctx=CONTEXT) as model:
        model.logits([1])
        return {"whole model and first token": (time.perf_counter() - began) * 1e3}


def series(what: str, values: list[float]) -> Series:
    goal = Goal(kind="at most", value=GOAL_MS) if what.startswith("hot-load, ") else None
    if "÷" in what:
        return Series(name=what, unit="×", values=values)
    shown = "time to the first token" if "first token" in what else ""
    return Series(name=what, unit="ms", values=values, goal=goal, group=shown, label=what.replace(" and first token", ""), peer="whole" in what)


def method() -> str:
    return METHOD.format(context=CONTEXT)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    return measure(rounds, seed)
