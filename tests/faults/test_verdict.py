"""The judge counts what is lost, doubled and stuck, and nothing of a job that went well."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from protocol import JobSnapshot
from protocol.job import Artefact, JobEvent, Stage, State
from tests.faults.verdict import Evidence, Tally, judge

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def events(*kinds: str | tuple[str, Stage]) -> list[JobEvent]:
    found = []
    for seq, kind in enumerate(kinds, 1):
        name, data = (kind, {}) if isinstance(kind, str) else (kind[0], {"stage": kind[1].value})
        found.append(JobEvent(job="j", seq=seq, type=name, data=data, at=NOON))
    return found


def snapshot(state: State = State.DONE) -> JobSnapshot:
    return JobSnapshot(
        job="j", state=state, stage=None, attempt=1, domain="d", tier="t", profile="edge", cost_usd=0.0,
        quality_percent=None, artefacts=[Artefact(kind="gguf", uri="file:///a", sha256="0", bytes=1)], gates={}, at=NOON,
    )  # fmt: skip


STAGES = [("stage_done", stage) for stage in Stage]
GOOD = Evidence(
    "j", events("submitted", "leased", *STAGES, "done"), snapshot(), ["reserve", "release"], ["0/a.gguf"], ["r", "r"]
)


def counts(evidence: Evidence) -> tuple[int, int, int]:
    tally = judge(evidence)
    assert len(tally.notes) <= tally.lost + tally.doubled + tally.stuck and tally.unmet == 0
    return tally.lost, tally.doubled, tally.stuck


def test_a_job_that_went_well_counts_nothing() -> None:
    assert judge(GOOD).clean and counts(GOOD) == (0, 0, 0)


def test_what_is_lost() -> None:
    assert counts(replace(GOOD, events=[])) == (2 + len(Stage), 0, 0), "nothing known, no end told, no stage"
    gap = [event for event in GOOD.events if event.seq not in (1, 2)]
    assert counts(replace(GOOD, events=gap)) == (2, 0, 0)
    assert counts(replace(GOOD, events=GOOD.events[:-1])) == (1, 0, 0), "an end that no event tells"
    untold = events("submitted", "leased", *STAGES[1:], "done")
    assert counts(replace(GOOD, events=untold)) == (1, 0, 0)
    assert counts(replace(GOOD, ledger=["reserve"])) == (1, 0, 0)
    assert counts(replace(GOOD, stored=[])) == (1, 0, 0)


def test_what_is_doubled() -> None:
    assert counts(replace(GOOD, events=[*GOOD.events, *events("done")])) == (0, 1, 0)
    twice = events("submitted", "leased", STAGES[0], *STAGES, "done")
    assert counts(replace(GOOD, events=twice)) == (0, 1, 0)
    anew = events("submitted", "leased", STAGES[0], "interrupted", "leased", *STAGES, "done")
    assert counts(replace(GOOD, events=anew)) == (0, 0, 0), "a new lease may do a stage again"
    assert counts(replace(GOOD, ledger=["reserve", "settle", "release"])) == (0, 1, 0)
    assert counts(replace(GOOD, stored=["0/a", "1/a"])) == (0, 1, 0)
    assert counts(replace(GOOD, replies=["r", "s"])) == (0, 1, 0)
    final = snapshot()
    final.artefacts.append(final.artefacts[0])
    assert counts(replace(GOOD, final=final)) == (0, 1, 0)


def test_what_is_stuck() -> None:
    assert counts(replace(GOOD, events=GOOD.events[:-1], final=None, ledger=["reserve"])) == (0, 0, 1)


def test_a_job_that_failed_needs_neither_file_nor_all_stages() -> None:
    failed = replace(GOOD, events=events("submitted", "leased", "failed"), final=snapshot(State.FAILED), stored=[])
    failed.final.artefacts.clear()  # type: ignore[union-attr]
    assert counts(failed) == (0, 0, 0)


def test_tallies_add_up() -> None:
    one, other = Tally(), Tally()
    one.count("lost", "a")
    one.count("lost", "nothing", 0)
    other.expect(True, "kept")
    other.expect(False, "broken")
    one += other
    assert (one.lost, one.unmet, one.notes, one.clean) == (1, 1, ["lost: a", "unmet: broken"], False)
