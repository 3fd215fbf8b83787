from datetime import UTC, datetime, timedelta

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.queue import AGING, Waiting, assign
from protocol.machine import Device

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def job(name: str, priority: int = 1, after: int = 0, memory: int = 10, avoid: str = "") -> Waiting:
    return Waiting(name, priority, NOON + timedelta(seconds=after), memory, frozenset(avoid.split()))


def machine(name: str = "m1", slots: int = 1, free: int = 1, memory: int = 100, free_memory: int | None = None) -> Machine:
    device = Device(cores=2, memory_bytes=memory, disk_free_bytes=1)
    return Machine(name, slots, free, device, memory if free_memory is None else free_memory)


def pairs(waiting: list[Waiting], machines: list[Machine], now: datetime = NOON) -> list[tuple[str, str]]:
    return [(found.job, name) for found, name in assign(waiting, machines, now)]


def test_priority_comes_before_time_and_time_before_arrival():
    waiting = [job("new", after=9), job("old", after=1), job("urgent", priority=3, after=20)]
    assert pairs(waiting, [machine(slots=2, free=2)]) == [("urgent", "m1"), ("old", "m1")]


def test_urgent_jobs_that_keep_coming_do_not_starve_an_ordinary_one():
    hour = round(2 * AGING.total_seconds())
    waiting = [job("ordinary"), job("urgent", priority=3, after=hour)]
    assert pairs(waiting, [machine()], NOON + AGING) == [("urgent", "m1")]
    assert pairs(waiting, [machine()], NOON + 2 * AGING) == [("ordinary", "m1")]


def test_no_more_jobs_than_slots():
    assert pairs([job("a"), job("b")], [machine(free=0)]) == []
    assert len(pairs([job(str(n)) for n in range(9)], [machine(slots=2, free=2), machine("m2", slots=3, free=1)])) == 3


def test_memory_is_shared_by_the_jobs_of_a_machine():
    waiting = [job("a", memory=60), job("b", after=1, memory=60), job("c", after=2, memory=40)]
    assert pairs(waiting, [machine(slots=3, free=3)]) == [("a", "m1"), ("c", "m1")]
    assert pairs([job("a", memory=60)], [machine(slots=2, free=1, free_memory=50)]) == []


def test_a_job_that_fits_nowhere_does_not_hold_up_the_others():
    assert pairs([job("huge", priority=3, memory=1000), job("small")], [machine()]) == [("small", "m1")]


def test_jobs_spread_over_machines():
    assert pairs([job("a"), job("b", after=1)], [machine(slots=2, free=2), machine("m2", slots=2, free=2)]) == [
        ("a", "m1"), ("b", "m2"),
    ]  # fmt: skip


def test_an_avoided_machine_is_left_alone_while_another_exists():
    assert pairs([job("a", avoid="m1")], [machine("m1"), machine("m2")]) == [("a", "m2")]
    assert pairs([job("a", avoid="m1")], [machine("m1"), machine("m2", free=0)]) == []  # it waits for m2
    assert pairs([job("a", avoid="m1")], [machine("m1")]) == [("a", "m1")]
    assert pairs([job("a", avoid="m1")], [machine("m1"), machine("m2", memory=5)]) == [("a", "m1")]  # m2 never fits
    assert pairs([job("a", avoid="m1 m2")], [machine("m1"), machine("m2")]) == [("a", "m1")]


def test_a_machine_without_a_device_gets_nothing():
    assert pairs([job("a")], [Machine("m1", 1, 1, None)]) == []
