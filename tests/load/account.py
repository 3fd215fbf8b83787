"""What the events of many jobs say: how each ended, who came before whom, how long each transition took. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from protocol.job import FINAL, JobEvent

HOPS = 1.0
"""Seconds by which the conductor may hear of a grant later than the orchestrator decided it, on a loaded machine."""

CONTROL = ("submitted", "routed", "planned", "quoted", "reserved", "provisioning", "leased")
"""The facts before a job's work begins, in order; between two of them stand only messages, a plan, or the queue."""


@dataclass(frozen=True)
class Transition:
    """From one fact of a job to the next, in seconds."""

    job: str
    before: str
    after: str
    seconds: float


def endings(events: Mapping[str, Sequence[JobEvent]]) -> Counter[str]:
    """Count the final facts of all jobs; a job without one counts as `stuck`, each further one as `twice`."""
    finals = {state.value for state in FINAL}
    found: Counter[str] = Counter()
    for some in events.values():
        ends = [event.type for event in some if event.type in finals]
        found.update(ends[:1] or ["stuck"])
        found["twice"] += len(ends[1:])
        done = [event.data["stage"] for event in some if event.type == "stage_done"]
        found["twice"] += len(done) - len(set(done))
        found["gaps"] += [event.seq for event in some] != list(range(1, len(some) + 1))
    return +found


def overtaken(events: Mapping[str, Sequence[JobEvent]], priorities: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs (first, passed): the first got a slot although the passed had waited already and should be before it.

    A job should be before another when its priority is higher, or equal and it was submitted earlier.
    """
    facts = {job: _times(some) for job, some in events.items()}
    leased = sorted((times["leased"], job) for job, times in facts.items() if "leased" in times)
    pairs = []
    for at, job in leased:
        own = facts[job]["submitted"]
        for _, other in ((when, name) for when, name in leased if when > at):
            times = facts[other]
            before = (-priorities[other], times["submitted"]) < (-priorities[job], own)
            if before and times["provisioning"] < at - HOPS:
                pairs.append((job, other))
    return pairs


def transitions(events: Mapping[str, Sequence[JobEvent]]) -> list[Transition]:
    """Return each job's first way to its slot, fact by fact."""
    found = []
    for job, some in events.items():
        times = _times(some)
        known = [name for name in CONTROL if name in times]
        found += [
            Transition(job, before, after, times[after] - times[before])
            for before, after in pairwise(known)
        ]
    return found


def _times(events: Sequence[JobEvent]) -> dict[str, float]:
    times: dict[str, float] = {}
    for event in events:
        times.setdefault(event.type, event.at.timestamp())
    return times
