"""Training on the CPU against TRL, in real tokens per second."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from agents.gguf_factory import chat, data, dataset, packing
from benchmarks.finetune import BASE
from benchmarks.result import PROJECT, Goal, Series, ratios

TITLE = "Training on the CPU against TRL"
METHOD = """\
The starter base learns the project's own questions and answers ({samples} samples, {tokens} tokens, {labels:.0%} of them labels) with
LoRA of rank 8 on all linear layers, in fp32, with {threads} threads: the factory's loop, and TRL {trl}'s SFTTrainer on the same samples and
labels. A round runs each of them for {steps} steps in shuffled order, in processes that stay; the clock runs from the end of the
first step to that of the last, and counts tokens that are not padding. TRL's configurations are compared first, for {trial} steps each: {found}.
The best {finalists} take part in every round, and its figure is that of the faster one in that round. The dropout is that of
configs/proven_parameters.json: TRL draws a mask for each token and each module, the lab's flat path one for all tokens of a
micro-batch. Without dropout both compute the same function; that ratio is shown as well, and so is the lab's loop by peft on packed
rows, which serves other architectures. The loss is compared on {batches} batches with an adapter whose B is not zero."""

ROUNDS = 5
DROPOUT = 0.05
STEPS, TRIAL = 6, 4
BATCHES = 3
LENGTH = 256
SORTED = "group_by_length"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "padded, batch 6": {"per_device_train_batch_size": 6},
    "padded and sorted by length, batch 8": {"per_device_train_batch_size": 8, "train_sampling_strategy": SORTED},
    "padded and sorted by length, batch 16": {"per_device_train_batch_size": 16, "train_sampling_strategy": SORTED},
    "packed, 6 rows one by one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6, "packing": True},
    "packed, 6 rows at once": {"per_device_train_batch_size": 6, "packing": True},
}
SPINNING = "its threads spinning while they wait"
FINALISTS = 2
_told: dict[str, Any] = {}


class Contestant:
    """A process of `benchmarks.finetune`."""

    def __init__(self, kind: str, folder: Path, waiting: str = "PASSIVE") -> None:
        environment = {
            **os.environ, "OMP_WAIT_POLICY": waiting, "OMP_NUM_THREADS": str(threads()), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(folder / "datasets"),
        }  # fmt: skip
        with (folder / f"{kind}-{waiting}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.finetune", kind, str(folder)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=PROJECT,
            )  # fmt: skip
        self.log = Path(log.name)
        self.process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, do: str, **task: Any) -> Any:
        """Do a task and return its result.

        In between the process is stopped: threads that spin while they wait would take a core from the others.

        Raises:
            RuntimeError: the process ended; the message is the end of its log.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps({"do": do, **task}) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-2000:])
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)


def threads() -> int:
    return psutil.cpu_count(logical=False) or 1


def prepare(folder: Path) -> None:
    """Write the packed rows."""
    rows = dataset.read((PROJECT / "data" / "time_management.jsonl").as_uri()).rows
    encoded = data.encode(chat.load(BASE), rows, LENGTH)
    packing.save(packing.pack(encoded.samples, LENGTH, 0), folder / "packed.safetensors")
    labels = sum(sum(sample.supervised) for sample in encoded.samples)
    _told.update(samples=len(encoded.samples), tokens=encoded.tokens, labels=labels / encoded.tokens)


def run(rounds: int, seed: int) -> Sequence[Series]:
    """Measure.

    Raises:
        ModuleNotFoundError: TRL is not installed; the message says how to get it.
    """
    if importlib.util.find_spec("trl") is None:
        raise ModuleNotFoundError(
            "the peer of this benchmark is not installed. Run: pip install -c constraints.txt -e '.[bench-train]'"
        )
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name, ExitStack() as stack:
        folder = Path(name)
        prepare(folder)
        lab = stack.enter_context(Contestant("lab", folder))
        quiet = stack.enter_context(Contestant("trl", folder))
        difference = [
            abs(ours - theirs)
            for ours, theirs in zip(
                lab.ask("losses", batches=BATCHES), quiet.ask("losses", batches=BATCHES), strict=True
            )
        ]
        peers = {
            config: (quiet, options, quiet.ask("train", steps=TRIAL, dropout=DROPOUT, **options))
            for config, options in CONFIGURATIONS.items()
        }
        best = max(peers, key=lambda config: peers[config][2])
        if (
            os.getloadavg()[0] <= threads() + 0.5
        ):  # on a busy machine they wait for each other: hundreds of times slower
            spinning = stack.enter_context(Contestant("trl", folder, "ACTIVE"))
            options = peers[best][1]
            speed = spinning.ask("train", steps=TRIAL, dropout=DROPOUT, **options)
            peers[f"{best}, {SPINNING}"] = (spinning, options, speed)
        order = sorted(peers, key=lambda config: -peers[config][2])
        finalists = order[:FINALISTS]
        _told["found"] = "; ".join(f"{config}: {peers[config][2]:.0f}" for config in order)
        tasks: dict[tuple[str, float], Any] = {
            **{("lab", dropout): (lab, {}) for dropout in (DROPOUT, 0.0)}, ("packed", DROPOUT): (lab, {"flat": False}),
            **{(config, dropout): peers[config][:2] for config in finalists for dropout in (DROPOUT, 0.0)},
        }  # fmt: skip
        found: dict[tuple[str, float], list[float]] = {key: [] for key in tasks}
        shuffle = random.Random(seed)
        for _ in range(rounds):
            for key in shuffle.sample(list(tasks), len(tasks)):
                contestant, options = tasks[key]
                found[key].append(contestant.ask("train", steps=STEPS, dropout=key[1], **options))
    return series(found, finalists, difference)


def series(
    found: dict[tuple[str, float], list[float]], finalists: Sequence[str], difference: list[float]
) -> list[Series]:
    """Make the table out of what was found by contestant and dropout."""
    result = []
    for dropout, name in ((DROPOUT, f"dropout {DROPOUT:g}"), (0.0, "no dropout")):
        best = [max(values) for values in zip(*(found[config, dropout] for config in finalists), strict=True)]
        lines = {"the lab": found["lab", dropout], **{f"TRL, {config}": found[config, dropout] for config in finalists}}
        if ("packed", dropout) in found:
            lines["the lab by peft on packed rows"] = found["packed", dropout]
        result += [
            Series(name=f"{line} ({name})", unit="tokens/s", values=values, group=name, label=line, peer="TRL" in line)
            for line, values in lines.items()
        ]
        goal = Goal(kind="at least", value=2.0) if dropout else None
        result.append(
            Series(
                name=f"the lab ÷ TRL's best ({name})", unit="×", values=ratios(found["lab", dropout], best), goal=goal
            )
        )
    return [
        *result,
        Series(name="difference of the loss on the same batches", unit="µnats/label", values=[d * 1e6 for d in difference],
               goal=Goal(kind="at most", value=100)),
    ]  # fmt: skip


def method() -> str:
    return METHOD.format(
        threads=threads(), trl=version("trl"), steps=STEPS, trial=TRIAL, finalists=FINALISTS, batches=BATCHES, **_told
    )
