"""Who shares a machine, and for whom another one is rented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from agents.gpu_orchestrator.rentals.placement import LONGEST_WAIT, Wish, unserved
from agents.gpu_orchestrator.rentals.rental import Rental, State
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


def scanned(wishes: Iterable[Wish], rentals: Iterable[Rental], busy: Mapping[str, float]) -> list[Wish]:
    """What `unserved` is: each job in turn looks at every queue."""
    queues: list[tuple[Rental | None, Wish | None, list[float]]] = [
        (item, None, [busy.get(item.id, 0.0)]) for item in rentals if item.open
    ]  # fmt: skip
    left = []
    for wish in sorted(wishes, key=lambda wish: (-wish.priority, wish.submitted_at, wish.job)):
        lengths = [
            length for item, first, length in queues
            if (item.kind == wish.kind and wish.accepts(item) if item is not None
                else first is not None and (first.kind, first.terms) == (wish.kind, wish.terms))
        ]  # fmt: skip
        shortest = min(lengths, key=lambda length: length[0], default=None)
        if shortest is None or shortest[0] > LONGEST_WAIT.total_seconds():
            left.append(wish)
            shortest = [0.0]
            queues.append((None, wish, shortest))
        shortest[0] += wish.seconds
    return left


LENGTHS = st.sampled_from([0.0, 100.0, 900.0, 1800.0, 1900.0])


@given(st.data())
def test_it_is_what_looking_at_every_queue_for_every_job_finds(data: st.DataObject) -> None:
    prices = st.sampled_from([1, 2, 3])
    machines = [
        rental(State.READY).model_copy(
            update={"id": f"r{n}", "kind": data.draw(st.sampled_from("ab")), "price_micros_per_hour": data.draw(prices)}
        )
        for n in range(data.draw(st.integers(0, 6)))
    ]
    busy = {machine.id: data.draw(LENGTHS) for machine in machines}
    wishes = []
    for number in range(data.draw(st.integers(0, 12))):
        most = data.draw(prices)
        wishes.append(Wish(
            f"j{number:02}", data.draw(st.sampled_from("ab")), data.draw(st.integers(1, 2)), NOON, data.draw(LENGTHS),
            (data.draw(st.booleans()),), lambda machine, most=most: machine.price_micros_per_hour <= most, most,
        ))  # fmt: skip
    assert jobs(unserved(wishes, machines, busy)) == jobs(scanned(wishes, machines, busy))
