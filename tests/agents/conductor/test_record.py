"""How facts change what is known of a job."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agents.conductor.record import STATE_OF_STAGE, Fact, JobRecord, evolve
from protocol.job import FINAL, Stage, State
from tests.agents.conductor.jobs import NOON, OFFER, PLAN, REQUEST, ROUTE, ROUTED, grant

RECORD = JobRecord(job="j1", digest=ROUTED.digest, request=REQUEST, route=ROUTE, submitted_at=NOON, updated_at=NOON)


def after(*facts: tuple[str, dict[str, object]], start: JobRecord = RECORD) -> JobRecord:
    """The record after facts, one second apart."""
    for type, data in facts:
        start = evolve(start, Fact(type=type, data=data), start.updated_at + timedelta(seconds=1))
    return start


def started(stage: Stage) -> tuple[str, dict[str, object]]:
    return "stage_started", {"stage": stage.value}


def leased(fence: int) -> tuple[str, dict[str, object]]:
    return "leased", {"lease": grant(fence).model_dump(mode="json")}


def interrupted(**data: object) -> tuple[str, dict[str, object]]:
    return "interrupted", {"reason": "r", "counts": True, "avoid": None, **data}


PROVISIONING = ("provisioning", {"attempt": 1})


def test_facts_of_admission():
    record = after(
        ("routed", {}), ("planned", {"plan": PLAN.model_dump(mode="json")}),
        ("quoted", {"offer": OFFER.model_dump(mode="json")}), ("reserved", {"reservation": "r1"}),
    )  # fmt: skip
    assert (record.state, record.plan, record.offer, record.reservation) == (State.RESERVED, PLAN, OFFER, "r1")
    assert record.updated_at == NOON + timedelta(seconds=4)


def test_a_snapshot_is_never_older_than_the_last_one():
    set_back = evolve(after(("routed", {})), Fact(type="quoted", data={"offer": OFFER.model_dump()}), NOON - timedelta(hours=1))
    assert set_back.updated_at == NOON + timedelta(seconds=1), "whoever watches drops what is older than the last"


def test_facts_change_a_copy():
    after(PROVISIONING, leased(1), interrupted(avoid="m"))
    assert (RECORD.state, RECORD.attempt, RECORD.avoid) == (State.SUBMITTED, 0, [])


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_has_its_state(stage):
    assert after(PROVISIONING, leased(1), started(stage)).state is STATE_OF_STAGE[stage]


def test_a_resumed_jobs_earlier_stages_do_not_move_the_state_back():
    record = after(PROVISIONING, leased(1), started(Stage.MERGE), started(Stage.DATA), started(Stage.TRAIN))
    assert (record.stage, record.state) == (Stage.MERGE, State.EXPORTING)
    assert after(started(Stage.MERGE), started(Stage.VALIDATE), start=record).state is State.VALIDATING


def test_the_next_attempt_begins_with_any_stage():
    record = after(PROVISIONING, leased(1), started(Stage.VALIDATE), interrupted(), ("provisioning", {"attempt": 2}))
    assert (record.stage, record.state, record.attempt) == (None, State.PROVISIONING, 2)
    record = after(leased(2), started(Stage.TRAIN), start=record)
    assert (record.stage, record.state) == (Stage.TRAIN, State.TRAINING)


def test_results_of_stages_add_up():
    record = after(
        ("stage_done", {"stage": "data", "results": {"a": 1, "b": 1}}), ("stage_done", {"stage": "train", "results": {"b": 2}}),
        ("stage_done", {"stage": "merge"}),
    )  # fmt: skip
    assert record.results == {"a": 1, "b": 2}


def test_an_interruption_ends_the_lease_and_adds_its_cost():
    record = after(PROVISIONING, leased(1), started(Stage.TRAIN), interrupted(avoid="factory-1"))
    assert (record.lease, record.leased_at, record.spent_micros) == (None, None, 2 * 10_000)
    assert (record.state, record.failures, record.avoid, record.fence) == (State.INTERRUPTED, 1, ["factory-1"], 1)
    assert after(interrupted(counts=False), start=record).failures == 1


def test_an_interruption_can_tell_of_a_newer_fence_and_never_of_an_older():
    assert after(PROVISIONING, interrupted(fence=3)).fence == 3
    assert after(PROVISIONING, leased(5), interrupted(fence=3)).fence == 5


def test_a_clock_that_was_set_back_costs_nothing():
    record = after(PROVISIONING, leased(1))
    back = evolve(record, Fact(type="interrupted", data={"reason": "", "counts": False}), NOON - timedelta(days=1))
    assert back.spent_micros == 0


def test_the_end_keeps_what_was_known_where_it_says_nothing_new():
    record = after(PROVISIONING, leased(1), ("stage_done", {"stage": "train", "results": {"loss": 1}}), ("cancelling", {}))
    assert record.cancelling
    record = after(("cancelled", {"reason": "by the user"}), start=record)
    assert (record.state, record.cancelling, record.results, record.reason) == (
        State.CANCELLED, False, {"loss": 1}, "by the user",
    )  # fmt: skip


@pytest.mark.parametrize("end", sorted(FINAL))
def test_a_final_state_is_never_left(end):
    record = after(PROVISIONING, leased(1), (end, {"reason": "over"}))
    assert record.final and record.state is end and record.lease is None
    for fact in (("routed", {}), PROVISIONING, leased(2), started(Stage.TRAIN), interrupted(), ("done", {}), ("fenced", {})):
        assert after(fact, start=record) == record


def test_a_snapshot_has_costs_from_the_quote_on():
    assert RECORD.snapshot().cost_usd is None
    quoted = after(("quoted", {"offer": OFFER.model_dump(mode="json")}))
    assert quoted.snapshot().cost_usd == 0.0
    paid = after(PROVISIONING, leased(1), interrupted(), start=quoted).snapshot()
    assert (paid.cost_usd, paid.attempt, paid.priority, paid.tier, paid.at) == (0.01, 1, 2, "starter", NOON + timedelta(seconds=4))


def test_a_record_comes_back_from_the_store_as_it_was():
    record = after(PROVISIONING, leased(1), started(Stage.TRAIN), interrupted(avoid="m"))
    assert JobRecord.model_validate_json(record.model_dump_json()) == record
