"""The account of many jobs: what counts as twice, stuck, a gap, or overtaken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from protocol.job import JobEvent
from tests.load.account import HOPS, endings, overtaken, transitions
from tests.load.page import page

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


def test_the_page_tells_each_end_and_each_agent() -> None:
    told = page({
        "jobs": 2, "seed": 1, "slots": 1, "publish_s": 0.1, "total_s": 10.0, "jobs_per_hour": 720.0, "listed": 2, "at": "now",
        "machine": "x", "endings": {"done": 1, "stuck": 1}, "overtaken": [("a", "b")],
        "transitions": {"submitted → routed": {"p50_s": 0.1, "p99_s": 0.2, "max_s": 0.3}},
        "slowest": {"job": "b", "from": "submitted", "to": "routed", "seconds": 0.3},
        "memory_mb": {"router-1": {"idle": 50.0, "most": 52.0, "last": 51.0, "after_a_fifth": 50.5}},
    })  # fmt: skip
    assert "1 done, 1 stuck" in told and "| router-1 | 50.0 | 50.5 | 51.0 | 52.0 |" in told
    assert "| submitted → routed | 0.10 | 0.20 | 0.30 |" in told
