"""What follows from what: a job's whole life without bus, clock or store."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.conductor.decide import ATTEMPTS, BACKOFF, late, pause
from agents.conductor.happening import CancelAsked, Refused, Resume, Routed, Stopped
from protocol.errors import Code, LabError
from protocol.job import Empty, Probe, Stage, Staged, State, Submitted
from protocol.machine import LeaseRecall, LeaseRelease
from protocol.money import ReleaseRequest, SettleRequest
from tests.agents.conductor.jobs import (
    ARTEFACT,
    DONE,
    PLAN,
    QUOTE,
    REFUSAL,
    RESERVATION,
    PureJob,
    again,
    grant,
    lost,
    provisioned,
    quoted,
    report,
    running,
)  # fmt: skip
from tests.agents.conductor.world import live

BUSY = LabError(Code.BUSY, "no slot.")


def test_a_job_that_goes_well():
    job = running()
    for stage in Stage:
        job.report(report(1, "stage_started", stage=stage))
        job.report(report(1, "stage_done", stage=stage, seconds=1.0, results={f"{stage}_seconds": 1.0}))
    job.report(report(1, "done", **DONE))
    assert job.names()[:6] == ["routed", "planned", "quoted", "reserved", "provisioning", "leased"]
    assert job.names()[6:] == ["stage_started", "stage_done"] * 8 + ["done"]
    assert [call.method for call in job.calls] == [
        "job.plan", "offer.quote", "budget.reserve", "lease.request", "job.run", "budget.settle", "lease.release",
    ]  # fmt: skip
    record = job.record
    assert (record.state, record.lease, record.artefacts, record.reason) == (State.DONE, None, [ARTEFACT], None)
    assert (record.snapshot().quality_percent, record.results["loss"], record.results["train_seconds"]) == (97.5, 1.5, 1.0)
    assert record.results["seconds_total"] == 22.0
    assert len(job.admitted) == 1


def test_a_stage_that_a_resumed_job_tells_of_again_is_a_fact_only_where_the_first_word_got_lost():
    job = running()
    job.report(report(1, "stage_done", stage=Stage.DATA, seconds=1.0))
    job.report(report(1, "stage_done", stage=Stage.DATA, seconds=1.0, again=True))
    job.report(report(1, "stage_done", stage=Stage.TRAIN, seconds=1.0, again=True))
    assert job.names()[6:] == ["stage_done", "stage_done"]
    assert job.record.stages_done == [Stage.DATA, Stage.TRAIN]


def test_each_call_carries_what_its_callee_needs():
    job = running()
    asked = {call.method: call for call in job.calls}
    quote, reserve, request, run = (
        asked[name].params for name in ("offer.quote", "budget.reserve", "lease.request", "job.run")
    )
    assert (quote.tier, quote.plan, quote.budget_usd) == ("starter", PLAN, 3.0)
    assert (reserve.amount_micros, reserve.provider, reserve.domain, reserve.priority) == (1_500_000, "local", "sleep", 2)
    assert (request.memory_bytes, request.priority, request.avoid) == (PLAN.memory_bytes, 2, [])
    assert request.reservation == RESERVATION.reservation
    assert (run.lease, run.fence, run.attempt, asked["job.run"].to) == ("l1", 1, 1, "factory-1")
    assert [call.to for call in job.calls if call.method != "job.run"] == [None] * 4


def test_the_submitter_is_answered_when_money_is_reserved():
    assert quoted().admitted == []
    answer = provisioned().admitted
    assert [type(item) for item in answer] == [Submitted]
    assert (answer[0].job, answer[0].state, answer[0].tier) == ("j1", State.RESERVED, "starter")


@pytest.mark.parametrize("answers", [[], [PLAN], [PLAN, QUOTE]], ids=["plan", "quote", "reservation"])
def test_a_refusal_before_anything_runs_refuses_the_job(answers):
    job = PureJob()
    job.start()
    for result in [*answers, REFUSAL]:
        job.answer(job.pending()[0][0], result)
    assert (job.record.state, job.record.reason) == (State.REFUSED, "too dear. Ask for less.")
    assert job.admitted == [REFUSAL]
    assert job.pending() == [] and not job.made("budget.settle") and not job.made("budget.release")


def test_a_refused_slot_fails_the_job_and_frees_its_money():
    job = provisioned()
    job.answer("j1:lease.request:1", LabError(Code.NO_CAPACITY, "no machine is large enough."))
    assert (job.record.state, job.record.reason) == (State.FAILED, "no machine is large enough.")
    assert [type(call.params) for call in job.calls[-2:]] == [ReleaseRequest, LeaseRelease]


def test_a_factory_that_refuses_the_run_is_avoided_next_time():
    job = provisioned()
    job.answer("j1:lease.request:1", grant(1))
    job.answer("j1:job.run:1", BUSY)
    assert (job.record.state, job.record.failures, job.record.avoid) == (State.INTERRUPTED, 1, ["factory-1"])
    assert job.made("lease.release")[0].params.lease == "l1"
    job.fire("resume")
    assert job.made("lease.request")[-1].params.avoid == ["factory-1"]


# failures


def test_a_failure_that_nothing_helps_ends_the_job_with_what_was_measured():
    job = running()
    job.report(report(1, "failed", retry="never", reason="quality 40 % < 95 %", **DONE))
    assert (job.record.state, job.record.reason) == (State.FAILED, "quality 40 % < 95 %")
    assert (job.record.artefacts, job.record.gates["quality_percent"].value) == ([ARTEFACT], 97.5)


@pytest.mark.parametrize(("retry", "avoid"), [("later", []), ("other-worker", ["factory-1"])])
def test_a_failure_that_passes_is_tried_again(retry, avoid):
    job = running()
    job.report(report(1, "failed", retry=retry, reason="disk full"))
    assert (job.record.state, job.record.reason, job.record.lease) == (State.INTERRUPTED, "disk full", None)
    again(job, 2)
    assert job.made("lease.request")[-1].params.avoid == avoid
    assert (job.record.attempt, job.record.reason, job.made("job.run")[-1].params.attempt) == (2, None, 2)


def test_three_attempts_with_a_pause_that_doubles():
    job = running()
    pauses = []
    for fence in (1, 2):
        job.report(report(fence, "failed", retry="later", reason="crash"))
        pauses.append(job.timers["resume"] - job.now)
        again(job, fence + 1)
    job.report(report(3, "failed", retry="later", reason="crash"))
    assert pauses == [pause("j1", 1), pause("j1", 2)]
    assert job.record.state is State.FAILED
    assert job.record.reason == f"crash (attempt 3 of {ATTEMPTS}; `meetara logs --job j1` tells of all)"
    assert [call.params.lease for call in job.made("lease.release")] == ["l1", "l2", "l3"]
    assert len(job.made("budget.settle")) == 1 and job.timers == {}


def test_jobs_that_fail_together_come_back_one_by_one():
    for failures, least in ((1, BACKOFF), (2, 2 * BACKOFF)):
        pauses = sorted(pause(f"job-{number}", failures) for number in range(200))
        assert least <= pauses[0] < 1.05 * least and 1.95 * least < pauses[-1] < 2 * least
        assert max(later - earlier for earlier, later in pairwise(pauses)) < 0.1 * least


def test_a_voluntary_interruption_does_not_count_and_needs_no_pause():
    job = running()
    for fence in range(1, 6):
        job.report(report(fence, "interrupted", reason="leaving"))
        assert (job.timers["resume"], job.record.failures) == (job.now, 0)
        again(job, fence + 1)
    assert (job.record.attempt, job.record.state) == (6, State.PROVISIONING)


def test_a_lost_lease_counts_and_is_not_given_back():
    job = running()
    job.lose(lost(1))
    assert (job.record.state, job.record.failures, job.record.lease) == (State.INTERRUPTED, 1, None)
    assert "factory-1 ran out" in (job.record.reason or "")
    assert job.made("lease.release") == []
    job.lose(lost(1))
    assert job.record.failures == 1


def test_the_loss_of_an_older_lease_changes_nothing():
    job = running()
    job.report(report(1, "interrupted", reason="leaving"))
    again(job, 2)
    before = job.record
    job.lose(lost(1))
    assert job.record == before


def test_a_dead_machines_unanswered_run_does_not_hold_up_the_next():
    job = provisioned()
    job.answer("j1:lease.request:1", grant(1))
    job.lose(lost(1))
    again(job, 2, "factory-2")
    assert [(id, params.fence) for id, method, params in job.pending() if method == "job.run"] == [("j1:job.run:2", 2)]


def test_a_lease_that_ran_out_before_its_grant_arrived_is_asked_for_again():
    job = provisioned()
    job.lose(lost(1))
    assert (job.record.state, job.record.failures, job.record.fence) == (State.INTERRUPTED, 0, 1)
    assert job.pending() == []  # the kept answer to the first request would be the lost lease
    again(job, 2)
    assert job.record.lease == grant(2)


def test_a_grant_of_a_lease_that_was_given_back_is_not_taken_but_asked_for_again():
    job = running()
    job.report(report(1, "interrupted", reason="leaving"))
    again(job, 1)
    assert (job.record.state, job.record.lease, len(job.made("job.run"))) == (State.INTERRUPTED, None, 1)
    assert job.timers["resume"] == job.now + BACKOFF
    again(job, 2)
    assert job.record.lease == grant(2)


# old words


@pytest.mark.parametrize("lease", [None, "l1", "guessed"])
def test_who_guesses_a_fence_and_was_not_told_the_lease_is_not_believed(lease):
    job = running(fence=4)
    job.report(report(4, "done", **DONE, lease=lease))
    assert (job.facts[-1].type, job.record.state) == ("fenced", State.PROVISIONING)


@pytest.mark.parametrize("kind", ["stage_started", "stage_done", "done", "failed", "interrupted", "started"])
def test_a_report_under_an_old_lease_is_counted_and_changes_nothing_else(kind):
    job = running(fence=4)
    before = job.record
    job.report(report(3, kind, stage=Stage.PUBLISH, **(DONE if kind == "done" else {})))
    assert job.facts[-1].data == {"fence": 3, "expected": 4, "kind": kind}
    assert job.record == before.model_copy(update={"fenced_reports": 1, "updated_at": job.now})


def test_a_report_of_the_newest_fence_is_fenced_too_once_the_lease_has_ended():
    job = running()
    job.lose(lost(1))
    job.report(report(1, "done", **DONE))
    assert (job.record.state, job.record.fenced_reports) == (State.INTERRUPTED, 1)


# the end


@pytest.mark.parametrize(
    "happening",
    [Routed(), Refused(BUSY), CancelAsked(), Stopped(), Resume(), PLAN, QUOTE, RESERVATION, grant(9), lost(1),
     report(1, "failed", reason="x"), report(1, "stage_started", stage=Stage.PLAN)],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_a_final_state_is_never_left(happening):
    job = running()
    job.report(report(1, "done", **DONE))
    before, facts = job.record, len(job.facts)
    job.happen(happening)
    assert (job.record, len(job.facts)) == (before, facts)


def test_a_slot_that_comes_after_the_end_is_given_back():
    job = provisioned()
    job.cancel()
    assert [(call.method, call.params.lease) for call in late(job.record, grant(1))] == [("lease.release", "l1")]


def test_a_job_on_a_free_machine_frees_its_reservation_and_settles_nothing():
    job = provisioned()
    job.answer("j1:lease.request:1", grant(1, price=0))
    job.report(report(1, "done", **DONE))
    assert [type(call.params) for call in job.calls[-2:]] == [ReleaseRequest, LeaseRelease]


def test_all_attempts_are_paid_for():
    job = running()
    job.now += timedelta(seconds=9)
    job.report(report(1, "interrupted", reason="leaving"))
    again(job, 2)
    job.now += timedelta(seconds=4)
    job.report(report(2, "done", **DONE))
    (settled,) = job.made("budget.settle")
    assert isinstance(settled.params, SettleRequest)
    assert settled.params.amount_micros == job.record.spent_micros == 10 * 10_000 + 5 * 10_000


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_whatever_happens_a_job_keeps_its_promises(data):
    live(PureJob(), data, steps=data.draw(st.integers(0, 40)))


def test_a_probe_on_a_rented_machine_is_priced_by_what_is_paid_there():
    job = running()
    probe = Probe(steps=20, seconds=4.0, step=21, elapsed_s=30.0)
    job.report(report(1, "probed", probe=probe))
    (call,) = job.made("offer.requote")
    assert call.params.probe == probe and call.params.plan == PLAN
    assert call.params.offer.price_micros_per_hour == grant(1).price_micros_per_hour
    assert (call.params.limit_micros, call.params.deadline_hours) == (3_000_000, None), "what the request allows"
    better = call.params.offer.model_copy(update={"seconds_p50": 40.0})
    before = job.record
    job.answer(call.id, better)
    assert job.names()[-2:] == ["probed", "requoted"]
    assert (job.record.state, job.record.offer, job.record.lease) == (before.state, before.offer, before.lease)
    job.report(report(9, "probed", probe=probe))
    assert job.names()[-1] == "fenced" and len(job.made("offer.requote")) == 1


def test_a_job_that_is_given_up_is_stopped_without_saving_and_fails_with_the_numbers():
    job = running()
    job.happen(LeaseRecall(job="j1", lease="l1", fence=1, reason="it would likely cost $9.00.", final=True))
    stop = job.made("job.stop")[-1]
    assert stop.params.mode == "cancel" and not job.record.final, "its factory says first that it has stopped"
    job.answer(stop.id, Empty())
    assert (job.record.state, job.record.reason) == (State.FAILED, "it would likely cost $9.00.")
    assert job.made("lease.release")[-1].params.over


@pytest.mark.parametrize("end", ["lost", "interrupted", "failed"])
def test_a_job_that_is_given_up_goes_on_nowhere_however_it_ends(end: str):
    job = running()
    job.happen(LeaseRecall(job="j1", lease="l1", fence=1, reason="saving", final=False))
    job.happen(LeaseRecall(job="j1", lease="l1", fence=1, reason="too dear", final=True))
    if end == "lost":
        job.lose(lost(1))
    else:
        job.report(report(1, end, reason="x", retry="later"))
    assert (job.record.state, job.record.reason, job.record.failures) == (State.FAILED, "too dear", 0)


def test_who_is_given_up_is_not_brought_back_by_a_later_recall():
    job = running()
    job.happen(LeaseRecall(job="j1", lease="l1", fence=1, reason="too dear", final=True))
    job.happen(LeaseRecall(job="j1", lease="l1", fence=1, reason="the month's budget is used up", final=False))
    job.lose(lost(1))
    assert (job.record.state, job.record.reason) == (State.FAILED, "too dear")


STAGED = Staged(store="s3://lab/", dataset="s3://lab/data/a", base="org/base")


@pytest.mark.parametrize(
    ("provider", "strangers", "uri", "shared"),
    [
        ("lent", False, "s3://lab/artefacts/ab/m.gguf", True),
        ("vast", False, "s3://lab/artefacts/ab/m.gguf", True),
        ("lent", True, "s3://lab/artefacts/ab/m.gguf", True),
        ("vast", True, "s3://lab/artefacts/ab/m.gguf", False),
        ("vast", False, "http://10.0.0.5/m.gguf", False),
        ("vast", False, "s3://lab/../other/m.gguf", False),
        ("vast", False, "s3://lab/a.zip::file:///etc/passwd", False),
        ("local", False, "file:///a.gguf", False),
    ],
)
def test_what_is_made_elsewhere_is_remembered_where_it_may_be_shared_and_lies_in_the_labs_store(provider, strangers, uri, shared):
    job = PureJob()
    job.record = job.record.model_copy(update={"request": job.record.request.model_copy(update={"untrusted_hosts": strangers})})
    job.start()
    for answer in (PLAN.model_copy(update={"key": "k" * 64, "staged": STAGED}), QUOTE, RESERVATION):
        job.happen(answer)
    job.happen(grant(1).model_copy(update={"provider": provider}))
    job.report(report(1, "done", **{**DONE, "artefacts": [ARTEFACT.model_copy(update={"uri": uri})]}))
    calls = job.made("model.remember")
    assert bool(calls) == shared and job.record.state is State.DONE
    if shared:
        assert (calls[0].params.key, calls[0].params.model.job) == ("k" * 64, "j1")


def test_a_job_that_is_done_before_it_is_stopped_is_done():
    job = running()
    job.happen(LeaseRecall(job="j1", lease="l1", fence=1, reason="too dear", final=True))
    job.report(report(1, "done", **DONE))
    assert job.record.state is State.DONE


def test_what_is_leased_counts_where_it_is_not_what_was_quoted():
    job = provisioned()
    taken = {"provider": "vast", "machine": "worker-r1", "listing": "7001/spot", "gpu": "A100", "spot": True, "price_micros_per_hour": 500_000}
    job.happen(grant(1).model_copy(update=taken))
    run = job.made("job.run")[-1].params
    assert (run.provider, run.spot, run.price_micros_per_hour) == ("vast", True, 500_000)
    job.report(report(1, "probed", probe=Probe(steps=20, seconds=4.0, step=21, elapsed_s=30.0)))
    offer = job.made("offer.requote")[-1].params.offer
    assert (offer.provider, offer.machine, offer.gpu, offer.spot) == ("vast", "7001/spot", "A100", True)
