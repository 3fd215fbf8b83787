"""Stage train: the LoRA learns the packed rows, and for a few steps a twin learns shuffled answers.

The twin is the lesson's control: what it gains on held-out answers is the format, what the true training gains beyond
it is the lesson.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from agents.gguf_factory import machine
from agents.gguf_factory.checkpoint_store import CheckpointStore
from agents.gguf_factory.hashes import Hashes, file_sha256
from agents.gguf_factory.job import Job, StageResult
from agents.gguf_factory.loop import History, Loop, Settings
from agents.gguf_factory.lora import Network, load_base
from agents.gguf_factory.recovery import Diverged
from agents.gguf_factory.rows import Rows, Schedule
from agents.gguf_factory.targets import ALL
from protocol import Code, LabError

HELD_OUT_ROWS = 40  # packed rows: thousands of answer tokens, and each measurement costs about as much as two steps
EVALUATIONS = 4  # measurements after the first, evenly over the run
LEAST_CONTROL_STEPS = 4  # before that, warmup has moved neither twin


@dataclass(frozen=True)
class Options:
    """The parameters that training reads; names are those of configs/proven_parameters.json."""

    batch_size: int
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    save_steps: int
    seed: int
    max_steps: int | None = None
    max_epochs: float | None = None
    max_tokens: int | None = None
    micro_batch: int | None = None
    scheduler: str = "cosine"
    lora_targets: str = ALL
    control_share: float = 0.0

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> Options:
        """Pick the options out of a plan's parameters and check their ranges.

        Raises:
            LabError: CONFIGURATION, which parameter is missing or out of range.
        """
        try:
            options = cls(**{name: parameters[name] for name in cls.__dataclass_fields__ if name in parameters})
        except TypeError as error:
            raise LabError(
                Code.CONFIGURATION, f"a training parameter is missing: {error}.",
                advice="Add it to configs/proven_parameters.json.", field="parameters",
            ) from error  # fmt: skip
        rules = {
            "batch_size": options.batch_size >= 1,
            "lora_r": options.lora_r >= 1,
            "lora_alpha": options.lora_alpha > 0,
            "lora_dropout": 0 <= options.lora_dropout < 1,
            "learning_rate": options.learning_rate > 0,
            "warmup_steps": options.warmup_steps >= 0,
            "save_steps": options.save_steps >= 1,
            "max_steps": options.max_steps is None or options.max_steps >= 1,
            "max_epochs": options.max_epochs is None or options.max_epochs > 0,
            "max_tokens": options.max_tokens is None or options.max_tokens >= 1,
            "micro_batch": options.micro_batch is None or options.micro_batch >= 1,
            "scheduler": options.scheduler in ("cosine", "linear", "constant"),
            "control_share": 0 <= options.control_share <= 1,
        }
        for name, fine in rules.items():
            if not fine:
                raise LabError(
                    Code.CONFIGURATION, f"the training parameter {name} is {getattr(options, name)!r}.",
                    advice="Correct it in the request's parameters or in configs/.", field=f"parameters.{name}",
                )  # fmt: skip
        return options

    def schedule(self, rows: Rows) -> Schedule:
        return Schedule.plan(
            rows.tokens, batch=self.batch_size, max_steps=self.max_steps, max_epochs=self.max_epochs,
            max_tokens=self.max_tokens, warmup_steps=self.warmup_steps, decay=self.scheduler, seed=self.seed,
        )  # fmt: skip

    def control_steps(self, steps: int) -> int:
        """Return how many steps the twin takes: a share of the run's, 0 when the share is 0."""
        if self.control_share == 0:
            return 0
        return min(steps, max(LEAST_CONTROL_STEPS, round(self.control_share * steps)))


def threads(environment: Mapping[str, str], cores: int | None, slots: int = 1) -> int:
    """Return how many threads one job may use: MEETARA_THREADS, or the physical cores shared among the slots."""
    wanted = environment.get("MEETARA_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else max(1, (cores or 1) // max(1, slots))


def run(job: Job) -> StageResult:
    """Train job.base on data/packed.safetensors; write train/adapter/ (peft's format) and train/curve.json.

    Raises:
        Stopped: a stop was asked for; the checkpoint is written.
        Diverged: the loss exploded or is no number, at every learning rate that was tried.
        LabError: BAD_DATA, CONFIGURATION or NO_CAPACITY.
    """
    if torch.cuda.is_available():  # its driver reserves far more address space than it uses
        return train(job)
    with machine.memory_limit(job.run.plan.memory_bytes):
        return train(job)


def train(job: Job) -> StageResult:
    """Train; see `run`."""
    slots = os.environ.get("MEETARA_SLOTS", "")
    torch.set_num_threads(threads(os.environ, psutil.cpu_count(logical=False), int(slots) if slots.isdigit() else 1))
    options = Options.read(job.parameters)
    data, folder = job.path("data"), job.path("train")
    rows = Rows.load(data / "packed.safetensors")
    held_out = Rows.load(data / "held_out.safetensors").first(HELD_OUT_ROWS)
    schedule = options.schedule(rows)
    at = options.control_steps(schedule.steps)
    if not (data / "control.safetensors").exists():
        at = 0
    cuda = torch.cuda.is_available()
    base = load_base(job.base, torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32)
    network = Network(
        base, rank=options.lora_r, alpha=options.lora_alpha, dropout=options.lora_dropout, seed=options.seed,
        layers=options.lora_targets,
    )  # fmt: skip
    network.check_head(held_out.take([0]))
    network.check_apart(rows.take([0]))
    fresh = {name: parameter.detach().clone() for name, parameter in network.parameters.items()}
    settings = Settings(
        options.learning_rate, options.weight_decay, min(options.micro_batch or options.batch_size, options.batch_size),
        options.save_steps, options.seed,
    )  # fmt: skip

    stores = {name: CheckpointStore.of(job, name) for name in ("checkpoints", "control")}

    def loop(
        name: str, rows: Rows, schedule: Schedule, source: Path, later: int, note: str, settings: Settings = settings
    ) -> Loop:
        return Loop(
            network, rows, held_out, schedule, settings, folder / name, identity=identity(job, options, source),
            report=job.progress, stop=job.stop, later=later, note=note, store=stores[name],
        )  # fmt: skip

    evaluate_at = {round(part * schedule.steps / EVALUATIONS) for part in range(EVALUATIONS + 1)} | {at}
    true = loop("checkpoints", rows, schedule, data / "packed.safetensors", at, "").run(evaluate_at)
    files = network.save(folder / "adapter", job.run.route.base)
    control: History | None = None
    notes: list[str] = []
    if at:
        with torch.no_grad():
            for name, parameter in network.parameters.items():
                parameter.copy_(fresh[name])
        source = data / "control.safetensors"
        twin = Rows.load(source)
        same_rates = schedule.control(len(twin), steps=at, batch=options.batch_size, seed=options.seed)
        same = replace(settings, learning_rate=settings.learning_rate * true.rate(at))
        try:
            control = loop("control", twin, same_rates, source, 0, "control", same).run({at})
        except Diverged as error:  # the lesson is not measured then; what was learned is none the worse
            notes.append(f"control: {error.message}")
    curve = folder / "curve.json"
    curve.write_text(json.dumps(curves(true, control)), encoding="utf-8")
    found = results(true, control, network)
    found["learning_rate"] = settings.learning_rate * true.rate(true.step)
    found["notes"] += [*notes, *(note for store in stores.values() if store is not None for note in store.notes)]
    return StageResult(files=[*files, curve], results=found)


def identity(job: Job, options: Options, source: Path) -> str:
    """Return a digest of everything that a run's result depends on, but for the machine."""
    facts = {
        "rows": file_sha256(source),
        "held_out": file_sha256(job.path("data", "held_out.safetensors")),
        "base": {path.name: Hashes(job.home).sha256(path) for path in sorted(job.base.glob("*.safetensors"))},
        "config": file_sha256(job.base / "config.json"),
        "options": vars(options),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def lesson(true: History, control: History | None) -> dict[str, float] | None:
    """Compare both twins after the same steps; percent is shuffled ÷ true perplexity of held-out answers × 100."""
    if control is None:
        return None
    ours, shuffled = true.held_out_at(control.step), control.held_out_at(control.step)
    if ours is None or shuffled is None:
        return None
    return {
        "step": control.step,
        "held_out_loss_true": ours,
        "held_out_loss_shuffled": shuffled,
        "percent": 100 * math.exp(shuffled - ours),
    }


def curves(true: History, control: History | None) -> dict[str, Any]:
    """Return loss by step and held-out loss by step, in nats per answer token."""
    both = {"": true} if control is None else {"": true, "control_": control}
    return {
        f"{prefix}{name}": getattr(history, attribute)
        for prefix, history in both.items()
        for name, attribute in (("loss", "losses"), ("held_out", "held_out"))
    }


def results(true: History, control: History | None, network: Network) -> dict[str, Any]:
    """Return the measured numbers of the run. Seconds are those of training steps alone, over all attempts."""
    return {
        "steps": true.step,
        "tokens": true.tokens,
        "seconds": true.seconds,
        "tokens_per_s": true.tokens / true.seconds if true.seconds else None,
        "fill": true.tokens / true.computed if true.computed else None,
        "loss": true.losses[-1],
        "held_out_loss_before": true.held_out_at(0),
        "held_out_loss": true.held_out_at(true.step),
        "held_out": true.held_out,
        "lesson": lesson(true, control),
        "micro_batch": true.micro_batch,
        "adapter_parameters": sum(parameter.numel() for parameter in network.parameters.values()),
        "threads": torch.get_num_threads(),
        "device": str(network.device),
        "notes": [*true.notes, *(f"control: {note}" for note in (control.notes if control else []))],
    }
