"""What a benchmark found: values per round with their unit, goal, machine and versions, kept as JSON."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, Field

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "docs" / "results" / "benchmarks"
PACKAGES = ("aiomqtt", "paho-mqtt", "pydantic", "dbos", "torch", "transformers", "peft", "matplotlib")
"""Packages whose version moves a number."""


class Goal(BaseModel):
    """What the median should reach."""

    kind: Literal["at least", "at most"]
    value: float

    def met(self, value: float) -> bool:
        return value >= self.value if self.kind == "at least" else value <= self.value


class Series(BaseModel):
    """One quantity, a value per round. `group` puts series of one unit into one picture, where `label` names each of them."""

    name: str
    unit: str
    values: list[float] = Field(min_length=1)
    goal: Goal | None = None
    group: str = ""
    label: str = ""
    peer: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.median)


class Machine(BaseModel):
    """Where it was measured. `load` is the system's load average when the benchmark began: above 0 others were at work."""

    system: str
    processor: str
    cores: int
    memory_gb: float
    python: str
    mosquitto: str
    load: float
    packages: dict[str, str]
    commit: str


class Result(BaseModel):
    """A benchmark's outcome."""

    name: str
    title: str
    method: str
    measured_at: datetime
    seconds: float
    rounds: int
    machine: Machine
    series: list[Series]

    def save(self, folder: Path = RESULTS) -> Path:
        """Write `<name>.json` and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, name: str, folder: Path = RESULTS) -> Result | None:
        """Read a result; None where the benchmark was never run."""
        path = folder / f"{name}.json"
        return cls.model_validate_json(path.read_bytes()) if path.exists() else None


def ratios(subject: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Divide round by round: what disturbed the machine in a round disturbed both."""
    return [ours / theirs for ours, theirs in zip(subject, peer, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100).__int__() - 1))]


def describe_machine(mosquitto: Path) -> Machine:
    """Return what is known of this machine."""
    return Machine(
        system=f"{platform.system()} {platform.release().split('-')[0]}", processor=_processor(),
        cores=os.cpu_count() or 1, memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        python=platform.python_version(), mosquitto=_first_line([str(mosquitto), "-h"]).removeprefix("mosquitto version "),
        load=round(os.getloadavg()[0], 2), packages={name: version(name) for name in PACKAGES},
        commit=_first_line(["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"]),
    )  # fmt: skip


def utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
