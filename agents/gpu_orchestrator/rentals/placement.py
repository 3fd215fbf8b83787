"""Which waiting jobs share a machine that is there or on its way, and for which one must be rented. Pure.

Waiting costs nothing and another machine costs its set-up, so jobs of one kind share a machine as long as nobody waits
too long for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappush, heapreplace

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
        alike: jobs of one kind and the same terms for which this is the same accept the same machines.
    """

    job: str
    kind: str
    priority: int
    submitted_at: datetime
    seconds: float
    terms: tuple[object, ...] = ()
    accepts: Callable[[Rental], bool] = lambda rental: True
    alike: Hashable = ()


def unserved(wishes: Iterable[Wish], rentals: Iterable[Rental], busy: Mapping[str, float]) -> list[Wish]:
    """Return the jobs that need another machine, most urgent first.

    Args:
        wishes: jobs that wait.
        rentals: living rentals; only open ones take jobs.
        busy: rental's id to the seconds that the jobs on it still need.
    """
    kinds: dict[str, list[_Queue]] = defaultdict(list)
    for rental in rentals:
        if rental.open:
            kinds[rental.kind].append(_Queue(rental, (), busy.get(rental.id, 0.0)))
    doors: dict[tuple[str, tuple[object, ...]], dict[Hashable, _Door]] = defaultdict(dict)
    left = []
    for wish in sorted(wishes, key=lambda wish: (-wish.priority, wish.submitted_at, wish.job)):
        queues, mine = kinds[wish.kind], doors[wish.kind, wish.terms]
        if wish.alike not in mine:
            mine[wish.alike] = _Door(wish, queues)
        shortest = mine[wish.alike].shortest()
        if shortest is None or shortest.seconds > LONGEST_WAIT.total_seconds():
            left.append(wish)
            shortest = _Queue(None, wish.terms, 0.0)
            for door in mine.values():
                door.add(len(queues), shortest)
            queues.append(shortest)
        shortest.seconds += wish.seconds
    return left


@dataclass
class _Queue:
    """Who waits for one machine. `rental` None: it is to be rented."""

    rental: Rental | None
    terms: tuple[object, ...]
    seconds: float


class _Door:
    """The queues that jobs like one may join, the shortest first, of equals the oldest.

    A heap. Queues only grow, also by jobs that came through another door: what has grown is put back when it comes up.
    """

    def __init__(self, wish: Wish, queues: Iterable[_Queue]) -> None:
        self._heap = [
            (queue.seconds, number, queue) for number, queue in enumerate(queues)
            if (queue.terms == wish.terms if queue.rental is None else wish.accepts(queue.rental))
        ]  # fmt: skip
        heapify(self._heap)

    def add(self, number: int, queue: _Queue) -> None:
        heappush(self._heap, (queue.seconds, number, queue))

    def shortest(self) -> _Queue | None:
        """Return the shortest queue; None: there is none."""
        while self._heap:
            seconds, number, queue = self._heap[0]
            if seconds == queue.seconds:
                return queue
            heapreplace(self._heap, (queue.seconds, number, queue))
        return None
