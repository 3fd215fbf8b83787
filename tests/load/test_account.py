"""The account of many jobs: what counts as twice, stuck, a gap, or overtaken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from protocol.job import JobEvent
from tests.load.account import HOPS, endings, overtaken, transitions

START = datetime(2026, 1, 1, tzinfo=UTC)


def story(job: str, *facts: tuple[str, float], stages: tuple[str, ...] = ()) -> list[JobEvent]:
    told = [(kind, seconds, {}) for kind, seconds in facts]
    told[-1:-1] = [("stage_done", facts[-1][1], {"stage": stage}) for stage in stages]
    return [
        JobEvent(job=job, seq=number, type=kind, data=data, at=START + timedelta(seconds=seconds))
        for number, (kind, seconds, data) in enumerate(told, 1)
    ]


def queued(job: str, submitted: float, waiting: float, leased: float) -> list[JobEvent]:
    return story(job, ("submitted", submitted), ("provisioning", waiting), ("leased", leased), ("done", leased + 1))


def test_each_job_ends_once() -> None:
    events = {
        "a": story("a", ("submitted", 0), ("done", 1)), "b": story("b", ("submitted", 0)),
        "c": story("c", ("submitted", 0), ("done", 1), ("failed", 2)),
        "d": story("d", ("submitted", 0), ("done", 1), stages=("data", "data")),
        "e": story("e", ("submitted", 0), ("done", 1))[1:],
    }  # fmt: skip
    assert endings(events) == {"done": 4, "stuck": 1, "twice": 2, "gaps": 1}


def test_the_urgent_and_then_the_older_come_first() -> None:
    priorities = {"old": 1, "new": 1, "urgent": 3}
    good = {"urgent": queued("urgent", 2, 3, 10), "old": queued("old", 0, 3, 11), "new": queued("new", 1, 3, 12)}
    assert overtaken(good, priorities) == []
    assert overtaken({**good, "urgent": queued("urgent", 2, 3, 13)}, priorities) == [("old", "urgent"), ("new", "urgent")]
    assert overtaken({**good, "old": queued("old", 0, 3, 14)}, priorities) == [("new", "old")]


def test_who_was_not_in_the_queue_yet_was_not_overtaken() -> None:
    events = {"first": queued("first", 0, 1, 10), "late": queued("late", 1, 10 - HOPS / 2, 20)}
    assert overtaken(events, {"first": 1, "late": 3}) == []


def test_transitions_are_those_of_the_first_way_to_a_slot() -> None:
    events = story("a", ("submitted", 0), ("routed", 1), ("planned", 3), ("interrupted", 4), ("routed", 9))
    assert [(move.before, move.after, move.seconds) for move in transitions({"a": events})] == [
        ("submitted", "routed", 1), ("routed", "planned", 2),
    ]  # fmt: skip
