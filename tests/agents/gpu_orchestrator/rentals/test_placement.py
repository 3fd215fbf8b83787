"""Who shares a machine, and for whom another one is rented."""

from __future__ import annotations

from datetime import timedelta

from agents.gpu_orchestrator.rentals.placement import LONGEST_WAIT, Wish, unserved
from agents.gpu_orchestrator.rentals.rental import State
from tests.agents.gpu_orchestrator.rentals.test_life import NOON, rental

KIND = "base tier"


def wish(job: str, *, priority: int = 1, minutes: float = 0, seconds: float = 60, kind: str = KIND) -> Wish:
    return Wish(job, kind, priority, NOON + timedelta(minutes=minutes), seconds)


def jobs(wishes: list[Wish]) -> list[str]:
    return [wish.job for wish in wishes]


def test_ten_small_jobs_of_a_kind_pay_one_set_up() -> None:
    assert jobs(unserved([wish(f"j{n}", minutes=n) for n in range(10)], [], {})) == ["j0"]


def test_a_machine_on_its_way_is_waited_for_and_one_that_ends_is_not() -> None:
    assert unserved([wish("a")], [rental(State.BOOTING)], {}) == []
    assert jobs(unserved([wish("a")], [rental(State.LEAVING)], {})) == ["a"]


def test_jobs_of_another_base_or_tier_need_a_machine_of_their_own() -> None:
    assert jobs(unserved([wish("a", kind="other tier")], [rental(State.READY)], {})) == ["a"]


def test_nobody_waits_for_long_jobs_and_the_most_urgent_comes_first() -> None:
    hour = 3600.0
    found = unserved([wish("a", seconds=hour), wish("b", seconds=hour), wish("c", seconds=hour, priority=3)], [], {})
    assert jobs(found) == ["c", "a", "b"]


def test_a_machine_that_is_taken_for_long_is_not_waited_for() -> None:
    ready = rental(State.READY)
    longest = LONGEST_WAIT.total_seconds()
    assert unserved([wish("a")], [ready], {ready.id: longest}) == []
    assert jobs(unserved([wish("a")], [ready], {ready.id: longest + 1})) == ["a"]
