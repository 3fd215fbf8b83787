"""A cancel ends a job in every state it can be in, pays for what was used and gives back the rest."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agents.conductor.decide import STOP_LIMIT
from agents.conductor.happening import Resume, Stopped
from protocol.errors import Code
from protocol.job import Empty, Stage, State
from protocol.money import ReleaseRequest
from tests.agents.conductor.jobs import (
    DONE,
    PLAN,
    QUOTE,
    RESERVATION,
    PureJob,
    lost,
    provisioned,
    quoted,
    report,
    running,
)  # fmt: skip


@pytest.mark.parametrize("answers", [[], [PLAN], [PLAN, QUOTE]], ids=["routed", "planned", "quoted"])
def test_a_cancel_before_money_is_reserved_ends_at_once_and_answers_the_submitter(answers):
    job = PureJob()
    job.start()
    for result in answers:
        job.answer(job.pending()[0][0], result)
    job.cancel()
    assert job.record.state is State.CANCELLED
    assert [error.code for error in job.admitted] == [Code.CANCELLED]
    assert {method for _, method, _ in job.pending()} <= {"budget.reserve"}


def test_a_reservation_that_comes_after_the_cancel_is_freed():
    job = quoted()
    job.cancel()
    job.answer("j1:budget.reserve", RESERVATION)
    assert [call.params for call in job.made("budget.release")] == [
        ReleaseRequest(reservation=RESERVATION.reservation, job="j1")
    ]


def test_a_cancel_in_the_queue_leaves_it():
    job = provisioned()
    job.cancel()
    assert job.record.state is State.CANCELLED
    assert [method for _, method, _ in job.pending()] == ["budget.release", "lease.release"]
    assert job.made("lease.release")[0].params.lease is None


@pytest.mark.parametrize("stage", [None, Stage.TRAIN, Stage.CONVERT, Stage.VALIDATE])
def test_a_cancel_of_a_running_job_waits_for_the_factory_and_pays_for_the_time(stage):
    job = running()
    if stage:
        job.report(report(1, "stage_started", stage=stage))
    job.cancel()
    state = job.record.state
    assert not job.record.final and job.timers == {"stop": job.now + STOP_LIMIT}
    assert (job.made("job.stop")[0].to, job.made("job.stop")[0].params.mode) == ("factory-1", "cancel")
    job.cancel()
    assert job.record.state is state and len(job.made("job.stop")) == 1
    job.answer("j1:job.stop:1", Empty())
    assert (job.record.state, job.timers) == (State.CANCELLED, {})
    seconds = (job.now - (job.record.submitted_at + timedelta(seconds=5))).total_seconds()
    assert [call.params.amount_micros for call in job.made("budget.settle")] == [round(seconds * 10_000)]
    assert job.made("lease.release")[0].params.lease == "l1"


def test_a_silent_factory_cannot_hold_up_a_cancel():
    job = running()
    job.cancel()
    job.fire("stop")
    assert job.record.state is State.CANCELLED
    assert {method for _, method, _ in job.pending()} == {"budget.settle", "lease.release"}


def test_a_cancel_between_attempts_ends_at_once_and_no_attempt_follows():
    job = running()
    job.report(report(1, "failed", retry="later", reason="crash"))
    job.cancel()
    assert (job.record.state, job.timers) == (State.CANCELLED, {})
    assert job.happen(Resume()) is None


@pytest.mark.parametrize("retry", ["never", "later", "other-worker"])
def test_what_breaks_because_of_a_cancel_is_cancelled_not_failed(retry):
    job = running()
    job.cancel()
    job.report(report(1, "failed", retry=retry, reason="killed by signal 15"))
    assert (job.record.state, job.record.reason) == (State.CANCELLED, "cancelled by the user")


def test_a_lease_lost_while_cancelling_ends_the_cancel_and_a_job_that_finishes_first_is_done():
    gone, quick = running(), running()
    for job in (gone, quick):
        job.cancel()
    gone.lose(lost(1))
    quick.report(report(1, "done", **DONE))
    assert (gone.record.state, quick.record.state) == (State.CANCELLED, State.DONE)
    assert gone.timers == quick.timers == {}


def test_a_stop_that_nobody_asked_for_changes_nothing():
    job = running()
    before = job.record
    job.happen(Stopped())
    assert job.record == before
