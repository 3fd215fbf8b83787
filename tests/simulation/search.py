"""Searching for a life in which something is wrong: hypothesis draws plans, and shrinks the one that fails."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.simulation.plan import PLANS, Plan, rented
from tests.simulation.world import Violation, World


@dataclass
class Findings:
    """What a search has seen. `world` is the smallest life with a violation, None if there was none."""

    lives: int = 0
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    violation: str | None = None
    world: World | None = None
    story: str = ""
    first: int = 0  # the number of the life in which it was found

    def add(self, other: Findings) -> None:
        """Add what another search has seen."""
        self.lives += other.lives
        self.steps += other.steps
        self.faults += other.faults
        self.ends += other.ends
        self.seconds = max(self.seconds, other.seconds)


def search(lives: int, start: int = 0, *, shrink: bool = True) -> Findings:
    """Live so many lives, the first violation ends it.

    Args:
        lives: how many plans are drawn.
        start: hypothesis's own seed: the same number draws the same plans.
        shrink: make the failing plan smaller before it is shown.
    """
    found = Findings()
    began = time.monotonic()

    @seed(start)
    @settings(
        max_examples=lives, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(PLANS)
    def life(plan: Plan) -> None:
        world = World(plan)
        try:
            world.run()
        except Violation:
            found.first = found.first or found.lives + 1
            found.world = world
            raise
        finally:
            if not found.first:
                found.lives += 1
                found.steps += world.steps
                found.faults += world.counts
                found.ends.update(str(record["state"]) for record in world.invariants.records.values())

    try:
        life()
    except Violation as violation:
        found.violation = str(violation)
    found.seconds = time.monotonic() - began
    return found


def search_apart(task: tuple[int, int]) -> Findings:
    """Search in a process of its own: `search(*task)`, with the world told as a story, because it cannot be sent."""
    found = search(*task)
    if found.world is not None:
        found.story, found.world = found.world.story(), None
    return found


def live_rented(task: tuple[int, int]) -> Findings:
    """Live `count` rented lives from a seed on, `(count, seed)`; the first violation ends it. Such plans are not shrunk."""
    count, first = task
    found = Findings()
    began = time.monotonic()
    for number in range(first, first + count):
        world = World(rented(number))
        try:
            world.run()
        except Violation as violation:
            found.violation, found.story, found.first = str(violation), world.story(), number
            break
        found.lives += 1
        found.steps += world.steps
        found.faults += world.counts
        found.ends.update(str(record["state"]) for record in world.invariants.records.values())
    found.seconds = time.monotonic() - began
    return found
