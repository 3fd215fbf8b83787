"""What this machine can give a job: space, memory, and the speed of its arithmetic, measured."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

DISK_LIMIT = "MEETARA_DISK_LIMIT_BYTES"
"""Environment: most bytes that one job may take under MEETARA_HOME; unset: what is free there."""

PROBE_WIDTH = 512  # 3 MB of matrices: about the size of a small base's layer, beyond the first cache
PROBE_S = 0.25  # the best round of this time: other work on the machine only slows a round down
PROBE_AGE_S = 7 * 86_400.0  # a machine's speed changes with its hardware, not by the day


def free_bytes(home: Path) -> int:
    """Return the space that a job may take: what is free where `home` lies, or the smaller set limit.

    Raises:
        ValueError: the limit is not a whole number.
    """
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    limit = os.environ.get(DISK_LIMIT)
    return min(free, int(limit)) if limit else free


def memory_bytes() -> int:
    """Return the machine's memory, or the container's limit where that is less."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        text = limit.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total


def available_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that this machine, or this container, has left for a process; caches that can go count as left."""
    available = psutil.virtual_memory().available
    try:
        limit, used = ((group / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return min(available, int(limit) - int(used) + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return available  # no container, or one without a limit ("max")


@contextmanager
def memory_limit(least: int, available: int | None = None) -> Iterator[None]:
    """Let this process take no more memory than there is, as long as the context lasts.

    Linux grants what it does not have, and then kills the process that uses it, without a word. Under a limit an allocation
    that goes too far fails, and training takes smaller parts instead.

    Args:
        least: bytes that the process is given in any case, e.g. its predicted peak: others may be about to end.
        available: bytes that are left; None: measured.
    """
    if sys.platform != "linux":
        yield
        return
    left = available_bytes() if available is None else available
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = psutil.Process().memory_info().data + max(least, left)
    known = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def flops(home: Path, now: Callable[[], float] = time.time) -> float:
    """Return measured 32-bit matrix FLOPs per second, kept for a week in run/probe.json (takes a quarter of a second)."""
    cache = home / "run" / "probe.json"
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if 0 <= now() - kept["at"] < PROBE_AGE_S and kept["cores"] == os.cpu_count():
            return float(kept["flops"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no probe yet, or not one of ours: measure
    measured = _measure()
    cache.parent.mkdir(parents=True, exist_ok=True)
    _replace(cache, json.dumps({"flops": measured, "at": now(), "cores": os.cpu_count()}))
    return measured


def _measure() -> float:
    import numpy

    matrix = numpy.ones((PROBE_WIDTH, PROBE_WIDTH), numpy.float32)
    matrix @ matrix  # the first call starts BLAS's threads
    best = float("inf")
    end = time.perf_counter() + PROBE_S
    while (start := time.perf_counter()) < end:
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * PROBE_WIDTH**3 / best


@dataclass(frozen=True)
class Finished:
    """A job that this machine has finished: what was predicted before calibration, and what it took, in seconds."""

    base: str
    tokens: int
    predicted: float
    seconds: float


def remember(home: Path, job: Finished) -> None:
    """Append to run/history.jsonl."""
    path = home / "run" / "history.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(job)) + "\n")  # one write of one line: jobs that end together do not mix


def finished(home: Path) -> list[Finished]:
    """Return the jobs in run/history.jsonl; lines that are not whole are left out."""
    try:
        lines = (home / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    jobs = []
    for line in lines:
        try:
            jobs.append(Finished(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # cut by a crash
    return jobs


def calibration(jobs: list[Finished], base: str) -> tuple[float, float] | None:
    """Return real ÷ predicted time of the last 20 jobs on a base as median and 90th percentile; None without any."""
    ratios = sorted([job.seconds / job.predicted for job in jobs if job.base == base and job.predicted > 0][-20:])
    if not ratios:
        return None
    return statistics.median(ratios), ratios[min(len(ratios) - 1, int(0.9 * len(ratios)))]


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
