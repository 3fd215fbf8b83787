"""Many small jobs: one after another or side by side, in fresh processes or forked off a warm one, or several in one step."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import psutil
import yaml

from agents.gguf_factory.doctor import STARTER, write_tiny
from agents.gguf_factory.launcher import QUIET_WAITING, Launcher
from agents.gguf_factory.process import JobProcess, make_plan
from benchmarks.result import PROJECT, Goal, Series, ratios
from configs.source import SHIPPED
from protocol.job import Plan, PlanRequest, Route, RunRequest, TrainRequest

TITLE = "Many small jobs"
METHOD = """\
{jobs} jobs on a random two-layer base with the starter's tokenizer, {rows} rows and {steps} steps each, planned and run by the factory's
own process classes, in a home of their own each time. "Fresh": each plan, job and program of a job starts an interpreter and imports what
it needs. "Warm": all are forked off one process that has imported everything; its start counts. Each round runs the four variants in a
shuffled order; jobs per hour are {jobs} ÷ wall seconds, CPU is that of all processes. "Two jobs in one step" is an upper bound for
training several jobs' adapters in one step: tokens per second of the frozen starter base, forward and backward, on twice {batch} rows
of {length} tokens, over those on {batch} rows, by the best step of each in {seconds:.0f} s."""

ROUNDS = 3
JOBS = 4
ROWS = 60
STEPS = 3
BATCH, LENGTH = 6, 128
STEP_SECONDS = 10.0
SLOTS = (1, 2)
PROVEN = ("integrity", "tokenizer_ids", "chat_template", "f16_kl", "quant_fallbacks", "quant_kl")
"""Gates that are measured: those that prove a file to be a true conversion. Others tell nothing of random weights."""
LEAST_GAIN = 1.5
"""Below this a way of running jobs is not worth its code."""


@dataclass(frozen=True)
class Variant:
    """How the jobs of a round are run."""

    warm: bool
    slots: int

    @property
    def name(self) -> str:
        return f"{'warm' if self.warm else 'fresh'}, {self.slots} slot{'s' if self.slots > 1 else ''}"


@dataclass
class Measured:
    """What one run of a variant took; memory is the warm process's in MB."""

    seconds: float
    cpu: float
    memory: dict[str, float] = field(default_factory=dict)


@contextmanager
def environment(**values: str) -> Any:
    """Set variables of this process, and so of what it starts, within a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def write_ground(folder: Path) -> tuple[Path, Path]:
    """Write base, rows and configs; returns the configs' folder and the rows."""
    write_tiny(folder / "base", STARTER)
    rows = folder / "rows.jsonl"
    with (PROJECT / "data" / "time_management.jsonl").open(encoding="utf-8") as lines:
        rows.write_text("".join(islice(lines, ROWS)), encoding="utf-8")
    content = yaml.safe_load((SHIPPED / "tiers.yaml").read_text(encoding="utf-8"))
    tier = content["tiers"]["starter"]
    tier["base"] = str(folder / "base")
    tier["parameters"] |= {"max_steps": STEPS, "batch_size": 2, "sequence_length": 128, "control_share": 0}
    tier["gates"] = {name: {"level": "off"} for name in content["gates"] if name not in PROVEN}
    (folder / "configs").mkdir()
    (folder / "configs" / "tiers.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "configs", rows


async def run_job(launcher: Launcher, number: int, rows: Path, base: Path, *, slots: int) -> dict[str, Any]:
    """Plan and run a job to its end; returns its results."""
    job = f"small-{number}"
    folder = launcher.home / "jobs" / job
    request = TrainRequest(domain="time_management", dataset=str(rows), parameters={"seed": number})
    route = Route(
        domain="time_management", category="productivity", tier="starter", base=str(base), voice="v",
        empathy="e", quality_floor=101.0, safety_critical=False,
    )  # fmt: skip
    planned = await make_plan(PlanRequest(job=job, request=request, route=route), launcher.home, launcher)
    run = RunRequest(
        job=job, request=request, route=route, plan=Plan.model_validate(planned["plan"]), lease="l", fence=1, attempt=1,
        price_micros_per_hour=0,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(run.model_dump_json(), encoding="utf-8")
    said: list[dict[str, Any]] = []
    statuses: list[int] = []

    async def heard(line: dict[str, Any]) -> None:
        said.append(line)

    async def ended(status: int) -> None:
        statuses.append(status)

    await JobProcess(folder, slots, heard, ended, launcher=launcher).run()
    if statuses != [0] or said[-1]["kind"] != "done":
        raise RuntimeError(f"{job} ended with {statuses} and {said[-1:]}; see {folder / 'log.txt'}")
    results: dict[str, Any] = said[-1]["results"]
    return results


async def run_variant(variant: Variant, home: Path, rows: Path) -> Measured:
    """Run all jobs of one variant."""
    began, cpu = time.perf_counter(), _children_cpu()
    launcher = Launcher(home, warm=variant.warm)
    free = asyncio.Semaphore(variant.slots)

    async def one(number: int) -> None:
        async with free:
            await run_job(launcher, number, rows, rows.parent / "base", slots=variant.slots)

    await asyncio.gather(*(one(number) for number in range(1, JOBS + 1)))
    seconds = time.perf_counter() - began
    memory = {}
    if launcher.pid is not None:
        full = psutil.Process(launcher.pid).memory_full_info()
        memory = {"RSS": full.rss / 1e6, "PSS": full.pss / 1e6, "USS": full.uss / 1e6}
    await launcher.close()
    return Measured(seconds, _children_cpu() - cpu, memory)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def step_gain(model: Any, seconds: float = STEP_SECONDS) -> float:
    """Return tokens per second through the frozen base and back on twice BATCH rows ÷ on BATCH rows; the best step of each."""
    import torch

    best = dict.fromkeys((BATCH, 2 * BATCH), float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or float("inf") in best.values():
        for rows in best:
            ids = torch.randint(3, model.config.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(rows))
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            began = time.perf_counter()
            model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()
            best[rows] = min(best[rows], time.perf_counter() - began)
    return 2 * best[BATCH] / best[2 * BATCH]


def measure(rounds: int, seed: int) -> list[Series]:
    """Run the rounds; see METHOD."""
    from agents.gguf_factory.lora import load_base

    random = Random(seed)
    variants = [Variant(warm, slots) for warm in (False, True) for slots in SLOTS]
    found: dict[Variant, list[Measured]] = {variant: [] for variant in variants}
    one_step: list[float] = []
    model = load_base(STARTER).requires_grad_(False)
    with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
        folder = Path(name)
        configs, rows = write_ground(folder)
        for number in range(rounds):
            for variant in random.sample(variants, len(variants)):
                home = folder / f"home-{number}-{variant.warm}-{variant.slots}"
                home.mkdir()
                with environment(MEETARA_HOME=str(home), MEETARA_CONFIGS=str(configs)):
                    found[variant].append(asyncio.run(run_variant(variant, home, rows)))
            one_step.append(step_gain(model))
    return [*_speeds(found), *_costs(found), Series(name="two jobs in one step ÷ one, upper bound", unit="×", values=one_step)]


def _speeds(found: dict[Variant, list[Measured]]) -> list[Series]:
    hourly = {variant: [JOBS / one.seconds * 3600 for one in runs] for variant, runs in found.items()}
    goal = Goal(kind="at least", value=LEAST_GAIN)
    gains = [
        Series(
            name=f"warm ÷ fresh, {slots} slot{'s' if slots > 1 else ''}", unit="×", goal=goal,
            values=ratios(hourly[Variant(True, slots)], hourly[Variant(False, slots)]),
        )
        for slots in SLOTS
    ]  # fmt: skip
    beside = [
        Series(
            name=f"2 slots ÷ 1, {'warm' if warm else 'fresh'}", unit="×",
            values=ratios(hourly[Variant(warm, 2)], hourly[Variant(warm, 1)]),
        )
        for warm in (False, True)
    ]  # fmt: skip
    speeds = [
        Series(name=variant.name, unit="jobs/h", values=values, group="jobs per hour", peer=not variant.warm)
        for variant, values in hourly.items()
    ]
    return [*speeds, *gains, *beside]


def _costs(found: dict[Variant, list[Measured]]) -> list[Series]:
    cpu = [
        Series(name=f"CPU of a job, {variant.name}", unit="s", values=[one.cpu / JOBS for one in runs])
        for variant, runs in found.items()
    ]
    memory = [
        Series(
            name=f"memory of the warm process, {kind}", unit="MB",
            values=[one.memory[kind] for variant, runs in found.items() if variant.warm for one in runs],
        )
        for kind in ("RSS", "PSS", "USS")
    ]  # fmt: skip
    return [*cpu, *memory]


def method() -> str:
    return METHOD.format(jobs=JOBS, rows=ROWS, steps=STEPS, batch=BATCH, length=LENGTH, seconds=STEP_SECONDS)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    os.environ |= QUIET_WAITING  # before torch is loaded
    return measure(rounds, seed)
