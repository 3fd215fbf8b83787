"""The queue for slots: which waiting job gets which free slot. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache

from agents.gpu_orchestrator.machine import Machine
from protocol.machine import LENT, LeaseRequest, QuoteRequest

AGING = timedelta(minutes=30)
"""Urgent jobs that keep coming must not starve an ordinary one: after an hour it stands with the critical ones, and is older."""


def anything(machine: Machine) -> bool:
    """Accept every machine."""
    return True


@dataclass(frozen=True)
class Waiting:
    """A job that waits. `avoid`: machines on which it failed, taken only when there is no other; `accepts`: whether a machine may have it,
    besides its memory; `choice`: the machine that it was quoted for, where another one is not as good."""

    job: str
    priority: int
    submitted_at: datetime
    memory_bytes: int
    avoid: frozenset[str] = frozenset()
    accepts: Callable[[Machine], bool] = anything
    choice: str = ""


def waiting(request: LeaseRequest, accepts: Callable[[Machine], bool] = anything) -> Waiting:
    """Return a request as the queue sees it."""
    avoid = frozenset(request.avoid)
    choice = request.offer.machine if request.offer is not None and request.offer.provider == LENT else ""
    return Waiting(request.job, request.priority, request.submitted_at, request.memory_bytes, avoid, accepts, choice)


@lru_cache(maxsize=8192)
def request_of(text: str) -> LeaseRequest:
    """Return a request from its JSON. Kept: all that wait are looked at whenever something changes."""
    return LeaseRequest.model_validate_json(text)


@lru_cache(maxsize=8192)
def quote_of(text: str) -> QuoteRequest:
    """Return what a quote was asked with, from its JSON; kept as well."""
    return QuoteRequest.model_validate_json(text)


def rank(job: Waiting, now: datetime) -> tuple[int, datetime, str]:
    """Return what jobs are ordered by: priority, which rises with the wait, then age."""
    waited = max(timedelta(0), now - job.submitted_at)
    return -(job.priority + waited // AGING), job.submitted_at, job.job


def assign(waiting: Iterable[Waiting], machines: Sequence[Machine], now: datetime) -> list[tuple[Waiting, str]]:
    """Pair waiting jobs with machines that have a free slot and the memory.

    Highest priority first, then the oldest; each AGING of waiting counts as one priority more. A job that fits nowhere now does not hold up those behind it. A job leaves the
    machines it avoids alone as long as another machine that could ever hold it is online.

    Returns:
        (job, machine's name) in the order of the grants.
    """
    free = {machine.name: machine for machine in machines if machine.free > 0}
    pairs: list[tuple[Waiting, str]] = []
    for job in sorted(waiting, key=lambda job: rank(job, now)):
        able = {
            machine.name for machine in machines
            if machine.slots > 0 and machine.device is not None and machine.device.memory_bytes >= job.memory_bytes and job.accepts(machine)
        }  # fmt: skip
        wanted = able - job.avoid or able
        fitting = [m for m in free.values() if m.name in wanted and m.free_memory_bytes >= job.memory_bytes]
        if not fitting:
            continue
        best = min(fitting, key=lambda m: (m.name != job.choice, -m.free, -m.free_memory_bytes, m.name))
        pairs.append((job, best.name))
        free[best.name] = replace(
            best, free=best.free - 1, free_memory_bytes=best.free_memory_bytes - job.memory_bytes
        )
        if free[best.name].free < 1:
            del free[best.name]
    return pairs
