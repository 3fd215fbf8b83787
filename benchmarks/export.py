"""What follows the training: merge, convert, quantise and validate on the starter base, with all gates of its tier."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import yaml

from agents.gguf_factory.doctor import STARTER
from agents.gguf_factory.launcher import Launcher
from benchmarks.result import PROJECT, Goal, Series
from benchmarks.small_jobs import environment, run_job
from configs.source import SHIPPED

TITLE = "From the trained adapter to the proven file"
METHOD = """\
A job on the starter base with the project's own data set and {steps} steps of training, in a new home each time, so that the base itself is
converted too. The gates are those of the starter tier, told and not enforced, as {steps} steps teach little. "Warm": the converter and the
quantiser are forked off a process that has imported what they need; "fresh": each starts an interpreter. Both in a shuffled order."""

ROUNDS = 3
STEPS = 4
PARTS = ("merge", "convert", "quantise", "validate")
GOAL_S = 40.0


def write_configs(folder: Path) -> Path:
    """Write the starter tier with a short training, and with gates that fail nothing."""
    content = yaml.safe_load((SHIPPED / "tiers.yaml").read_text(encoding="utf-8"))
    tier = content["tiers"]["starter"]
    tier["base"] = str(STARTER)
    tier["parameters"] |= {"max_steps": STEPS, "control_share": 0}
    whole = {name: dict(gate) for name, gate in (content["gates"] | tier["gates"]).items()}
    tier["gates"] = {
        name: {**gate, "level": "warn" if gate["level"] == "fail" else gate["level"]} for name, gate in whole.items()
    }
    folder.mkdir()
    (folder / "tiers.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def measure(rounds: int, seed: int) -> list[Series]:
    """Run the rounds; see METHOD."""
    random = Random(seed)
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
        folder = Path(name)
        configs = write_configs(folder / "configs")
        rows = PROJECT / "data" / "time_management.jsonl"
        for number in range(rounds):
            for warm in random.sample((False, True), 2):
                home = folder / f"home-{number}-{warm}"
                home.mkdir()
                with environment(MEETARA_HOME=str(home), MEETARA_CONFIGS=str(configs), MEETARA_SLOTS="1"):
                    results = asyncio.run(one(home, rows, warm=warm))
                found[warm].append({part: results[f"{part}_seconds"] for part in PARTS})
    series = []
    for warm, runs in reversed(found.items()):
        kind = "warm" if warm else "fresh"
        series.append(
            Series(
                name=f"together, {kind}", unit="s", values=[sum(run.values()) for run in runs], group="together", label=kind,
                goal=Goal(kind="at most", value=GOAL_S), peer=not warm,
            )
        )  # fmt: skip
        series += [Series(name=f"{part}, {kind}", unit="s", values=[run[part] for run in runs]) for part in PARTS]
    return series


async def one(home: Path, rows: Path, *, warm: bool) -> dict[str, float]:
    """Run a job and return its results."""
    launcher = Launcher(home, warm=warm)
    try:
        results: dict[str, float] = await run_job(launcher, 1, rows, STARTER, slots=1)
        return results
    finally:
        await launcher.close()


def method() -> str:
    return METHOD.format(steps=STEPS)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    return measure(rounds, seed)
