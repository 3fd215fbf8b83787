"""The conductor's shell on a real store; without a broker everything it would send can be read there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.envelope import MAX_BYTES, MCPMessage
from protocol.errors import Code, LabError
from protocol.job import Empty, JobListQuery, JobQuery, Stage, State
from protocol.methods import METHODS
from tests.agents.conductor.jobs import (
    DONE,
    NOON,
    PLAN,
    QUOTE,
    REFUSAL,
    RESERVATION,
    ROUTED,
    grant,
    lost,
    report,
)  # fmt: skip
from tests.agents.conductor.stored import StoredJob, drive
from tests.agents.conductor.world import live


@pytest.fixture
def job(tmp_path: Path) -> Iterator[StoredJob]:
    made = StoredJob(tmp_path)
    yield made
    made.agent.store.close()


def reserve(job: StoredJob) -> None:
    job.start()
    for call, result in (("job.plan", PLAN), ("offer.quote", QUOTE), ("budget.reserve", RESERVATION)):
        job.answer(f"j1:{call}", result)


def run(job: StoredJob) -> None:
    reserve(job)
    job.answer("j1:lease.request:1", grant(1))
    job.answer("j1:job.run:1", Empty())


def test_the_submitter_hears_of_the_job_when_it_is_reserved(job):
    job.start()
    assert job.reply("j1:route") is None
    reserve(job)
    answer = job.reply("j1:route")
    assert answer is not None and (answer["result"]["job"], answer["result"]["state"]) == ("j1", "reserved")
    job.check()


def test_the_submitter_hears_why_a_job_is_refused(job):
    job.start()
    job.answer("j1:job.plan", REFUSAL)
    answer = job.reply("j1:route")
    assert answer is not None and answer["error"]["code"] == Code.BUDGET
    assert answer["error"]["data"]["needed_micros"] == 5
    assert job.published("job/j1/state")[-1]["state"] == "refused"


def test_the_same_job_again_is_answered_and_another_under_its_id_is_not(job):
    reserve(job)
    facts = len(job.facts)
    again = job.ask("train.route", ROUTED)
    assert again is not None and again["result"]["state"] == "provisioning"
    other = job.ask("train.route", ROUTED.model_copy(update={"digest": "e" * 64}))
    assert other is not None and other["error"]["code"] == Code.CONFLICT
    assert len(job.facts) == facts


def test_the_run_goes_to_the_machine_that_was_leased_with_the_jobs_priority(job):
    reserve(job)
    job.answer("j1:lease.request:1", grant(1, "factory-7"))
    (row,) = job.rows("outbox")
    message = json.loads(row["message"])
    assert (row["id"], row["recipient"], row["key"], message["priority"]) == ("j1:job.run:1", "factory-7", "j1", 2)


def test_a_job_that_goes_well_is_told_fact_by_fact(job):
    run(job)
    job.report(report(1, "stage_started", stage=Stage.TRAIN))
    job.report(report(1, "done", **DONE))
    states = [snapshot["state"] for snapshot in job.published("job/j1/state")]
    assert states == ["routed", "routed", "quoted", "provisioning", "provisioning", "training", "done"]
    assert job.published("job/j1/event")[0]["type"] == "submitted"
    assert {row["method"] for row in job.rows("outbox")} == {"budget.settle", "lease.release"}
    job.check()


def test_a_next_run_is_sent_although_a_dead_machine_never_answered(job):
    reserve(job)
    job.answer("j1:lease.request:1", grant(1))
    job.lose(lost(1))
    job.fire("resume")
    job.answer("j1:lease.request:2", grant(2, "factory-2"))
    assert [call for call, method, _ in job.pending() if method == "job.run"] == ["j1:job.run:2"]


def test_a_late_answer_to_an_old_run_does_not_hurt_the_new_one(job):
    reserve(job)
    job.answer("j1:lease.request:1", grant(1))
    job.lose(lost(1))
    job.fire("resume")
    job.answer("j1:lease.request:2", grant(2))
    job.answer("j1:job.run:1", LabError(Code.BUSY, "no slot."))
    assert (job.record.lease, job.record.failures) == (grant(2), 1)


def test_a_fenced_report_is_refused_and_kept_as_a_fact(job):
    run(job)
    answer = job.ask("job.report", report(7, "done", **DONE))
    assert answer is not None and answer["error"]["code"] == Code.FENCED
    assert (job.facts[-1].type, job.record.state) == ("fenced", State.PROVISIONING)


def test_a_report_without_its_stage_is_refused_and_the_field_named(job):
    run(job)
    message = MCPMessage(id="r", type="job.report", data={"job": "j1", "fence": 1, "kind": "stage_started"})
    drive(job.agent.handle_message(message))
    answer = job.reply("r")
    assert answer is not None and answer["error"]["code"] == Code.INVALID_PARAMS
    assert "stage" in answer["error"]["message"]


def test_every_cancel_is_answered_when_the_job_has_ended(job):
    run(job)
    assert job.ask("job.cancel", JobQuery(job="j1"), "c1") is None
    assert job.ask("job.cancel", JobQuery(job="j1"), "c2") is None
    job.answer("j1:job.stop:1", Empty())
    for call in ("c1", "c2"):
        answer = job.reply(call)
        assert answer is not None and answer["result"]["state"] == "cancelled"
    third = job.ask("job.cancel", JobQuery(job="j1"))
    assert third is not None and third["result"]["state"] == "cancelled"


def test_a_cancel_does_not_wait_longer_for_a_silent_factory_than_its_limit(job):
    run(job)
    job.cancel()
    asked = job.now
    job.fire("stop")
    assert job.record.state is State.CANCELLED
    assert job.now - asked <= timedelta(seconds=4)


def test_jobs_and_their_facts_can_be_asked_for(job):
    run(job)
    job.report(report(1, "done", **{**DONE, "results": {"loss": 1.5, "samples": ["long"]}}))
    one, listed = job.ask("job.get", JobQuery(job="j1")), job.ask("job.list", JobListQuery())
    assert one is not None and listed is not None
    assert (one["result"]["state"], one["result"]["results"]["samples"]) == ("done", ["long"])
    (short,) = listed["result"]["jobs"]
    assert short["results"]["loss"] == 1.5 and "samples" not in short["results"]
    later = job.ask("job.events", METHODS["job.events"].params(job="j1", since=5))
    assert later is not None and [event["seq"] for event in later["result"]["events"]] == [6, 7, 8]


def test_more_jobs_than_a_message_holds_come_in_pages_newest_first(job):
    run(job)
    long = job.record.model_copy(update={"results": {f"number_{n}": n / 7 for n in range(100)}, "reason": "ü" * 500})
    with job.agent.transaction() as tx:
        for number in range(200):
            record = long.model_copy(update={"job": f"n{number:03}"})
            row = (record.job, record.model_dump_json(), "", NOON.timestamp())  # all at the same time
            tx.connection.execute("INSERT INTO jobs VALUES (?, ?, ?, ?)", row)
    found: list[str] = []
    more = True
    while more:
        reply = job.ask("job.list", JobListQuery(before=found[-1] if found else None))
        assert reply is not None and len(json.dumps(reply, ensure_ascii=False).encode()) < MAX_BYTES
        found += [one["job"] for one in reply["result"]["jobs"]]
        more = reply["result"]["more"]
    assert found == [f"n{number:03}" for number in reversed(range(200))] + ["j1"]
    assert job.ask("job.list", JobListQuery(before="gone"))["error"]["code"] == Code.NOT_FOUND


def test_a_broker_that_lost_its_memory_is_told_the_snapshots_again(job):
    run(job)
    before = job.published("job/j1/state")
    job.agent.broker_forgot()
    assert job.published("job/j1/state") == [*before, before[-1]]


@pytest.mark.parametrize("method", ["job.get", "job.events", "job.cancel"])
def test_an_unknown_job_is_not_found(job, method):
    job.start()
    answer = job.ask(method, METHODS[method].params(job="j2"))
    assert answer is not None and answer["error"]["code"] == Code.NOT_FOUND


def test_another_conductor_on_the_same_store_goes_on_where_the_first_stopped(job, tmp_path):
    run(job)
    job.agent.store.close()
    job.agent = StoredJob(tmp_path).agent
    job.report(report(1, "done", **DONE))
    assert job.record.state is State.DONE


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_happens_the_store_tells_one_story(data):
    with TemporaryDirectory() as home:
        job = StoredJob(Path(home))
        try:
            live(job, data, steps=data.draw(st.integers(0, 25)))
        finally:
            job.agent.store.close()
