"""Which waiting jobs share a machine that is there or on its way, and for which one must be rented. Pure.

Waiting costs nothing and another machine costs its set-up, so jobs of one kind share a machine as long as nobody waits
too long for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from agents.gpu_orchestrator.rentals.rental import Rental

LONGEST_WAIT = timedelta(minutes=30)
"""Predicted wait for a shared machine from which on another one is rented: about six set-ups of a slow host."""


@dataclass(frozen=True)
class Wish:
    """A job that waits for a rented machine.

    Attributes:
        seconds: its likely time there.
        terms: what it allows; jobs share a machine that is still to be rented only where this is the same.
        accepts: whether it may run on a machine that is rented already.
    """

    job: str
    kind: str
    priority: int
    submitted_at: datetime
    seconds: float
    terms: tuple[object, ...] = ()
    accepts: Callable[[Rental], bool] = lambda rental: True


def unserved(wishes: Iterable[Wish], rentals: Iterable[Rental], busy: Mapping[str, float]) -> list[Wish]:
    """Return the jobs that need another machine, most urgent first.

    Args:
        wishes: jobs that wait.
        rentals: living rentals; only open ones take jobs.
        busy: rental's id to the seconds that the jobs on it still need.
    """
    queues = [_Queue(rental, rental.kind, (), busy.get(rental.id, 0.0)) for rental in rentals if rental.open]
    left = []
    for wish in sorted(wishes, key=lambda wish: (-wish.priority, wish.submitted_at, wish.job)):
        found = [
            queue for queue in queues
            if queue.kind == wish.kind and (queue.terms == wish.terms if queue.rental is None else wish.accepts(queue.rental))
        ]  # fmt: skip
        shortest = min(found, key=lambda queue: queue.seconds, default=None)
        if shortest is None or shortest.seconds > LONGEST_WAIT.total_seconds():
            left.append(wish)
            shortest = _Queue(None, wish.kind, wish.terms, 0.0)
            queues.append(shortest)
        shortest.seconds += wish.seconds
    return left


@dataclass
class _Queue:
    """Who waits for one machine. `rental` None: it is to be rented."""

    rental: Rental | None
    kind: str
    terms: tuple[object, ...]
    seconds: float
