"""Which waiting jobs share a machine that is there or on its way, and for which one must be rented. Pure.

Waiting costs nothing and another machine costs its set-up, so jobs of one kind share a machine as long as nobody waits
too long for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from agents.gpu_orchestrator.rentals.rental import Rental

LONGEST_WAIT = timedelta(minutes=30)
"""Predicted wait for a shared machine from which on another one is rented: about six set-ups of a slow host."""


@dataclass(frozen=True)
class Wish:
    """A job that waits for a rented machine. `seconds` is its likely time there."""

    job: str
    kind: str
    provider: str
    priority: int
    submitted_at: datetime
    seconds: float


def unserved(wishes: Iterable[Wish], rentals: Iterable[Rental], busy: Mapping[str, float]) -> list[Wish]:
    """Return the jobs that need another machine, most urgent first.

    Args:
        wishes: jobs that wait.
        rentals: living rentals; only open ones take jobs.
        busy: rental's id to the seconds that the jobs on it still need.
    """
    queues: dict[str, list[list[float]]] = defaultdict(list)
    for rental in rentals:
        if rental.open:
            queues[rental.kind].append([busy.get(rental.id, 0.0)])
    left = []
    for wish in sorted(wishes, key=lambda wish: (-wish.priority, wish.submitted_at, wish.job)):
        shortest = min(queues[wish.kind], default=None)
        if shortest is None or shortest[0] > LONGEST_WAIT.total_seconds():
            left.append(wish)
            shortest = [0.0]
            queues[wish.kind].append(shortest)
        shortest[0] += wish.seconds
    return left
