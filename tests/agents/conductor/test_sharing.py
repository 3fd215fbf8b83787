"""A model that is there, or that another job makes, is not made again; every job still ends once, with its own answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Code, LabError
from protocol.job import Finished, JobQuery, JobSnapshot, Plan, State
from tests.agents.conductor.jobs import ARTEFACT, DONE, PLAN, QUOTE, RESERVATION, ROUTED, PureJob, grant, report
from tests.agents.conductor.stored import StoredJob

KEY = "a" * 64
SAME = PLAN.model_copy(update={"key": KEY})
FINISHED = Finished(job="j0", artefacts=[ARTEFACT], gates=DONE["gates"], results={"loss": 1.5, "seconds_total": 900.0})


class Lab(StoredJob):
    """A conductor with several jobs that ask for the same."""

    def submit(self, *jobs: str, plan: Plan = SAME) -> None:
        for job in jobs:
            self.ask("train.route", ROUTED.model_copy(update={"job": job}), f"{job}:route")
            self.answer(f"{job}:job.plan", plan)

    def snapshot(self, job: str) -> JobSnapshot:
        answer = self.ask("job.get", JobQuery(job=job))
        assert answer is not None
        return JobSnapshot.model_validate(answer["result"])

    def said(self, job: str) -> Any:
        return self.reply(f"{job}:route")

    def types(self, job: str) -> list[str]:
        return [event.type for event in self.agent.store.events(job)]

    def calls_of(self, job: str) -> list[str]:
        return [method for id, method, _ in self.pending() if id.startswith(f"{job}:")]

    def run(self) -> None:
        """Bring j1 to a machine."""
        self.answer("j1:offer.quote", QUOTE)
        self.answer("j1:budget.reserve", RESERVATION)
        self.answer("j1:lease.request:1", grant(1))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.agent.store.close()


def test_a_model_that_is_there_ends_the_job_without_quote_money_or_machine() -> None:
    job = PureJob()
    job.start()
    job.answer("j1:job.plan", SAME.model_copy(update={"finished": FINISHED}))
    assert job.names() == ["routed", "planned", "done"]
    assert [call.method for call in job.calls] == ["job.plan"] and job.timers == {}
    record = job.record.snapshot()
    assert (record.state, record.cached_from, record.cost_usd, record.attempt) == (State.DONE, "j0", 0.0, 0)
    assert (record.artefacts, record.quality_percent) == ([ARTEFACT], 97.5)
    assert record.results == {"loss": 1.5, "seconds_total": 2.0}, "its own time, not its maker's"
    (said,) = job.admitted
    assert said.state is State.DONE and "j0 made this model" in said.message
    assert job.record.plan is not None and job.record.plan.finished is None


def test_who_asks_for_what_is_being_made_waits_and_gets_it(lab: Lab) -> None:
    lab.submit("j1", "j2", "j3")
    assert [lab.calls_of(job) for job in ("j1", "j2", "j3")] == [["offer.quote"], [], []]
    waiting = lab.snapshot("j2")
    assert (waiting.state, waiting.reason) == (State.ROUTED, "waits for the job j1, which makes the same model.")
    assert "waits for the job j1" in lab.said("j2")["result"]["message"]
    lab.run()
    lab.report(report(1, "done", **DONE))
    for job in ("j2", "j3"):
        got = lab.snapshot(job)
        assert (got.state, got.cached_from, got.artefacts, got.cost_usd) == (State.DONE, "j1", [ARTEFACT], 0.0)
        assert got.reason is None and lab.calls_of(job) == []
        assert lab.types(job) == ["submitted", "routed", "planned", "sharing", "done"]
        assert lab.published(f"job/{job}/state")[-1]["state"] == "done"
    assert lab.rows("making") == lab.rows("sharing") == []


@pytest.mark.parametrize("how", ["failed", "cancelled", "refused"])
def test_the_first_who_waits_makes_it_where_its_maker_ends_without_a_model(lab: Lab, how: str) -> None:
    lab.submit("j1", "j2", "j3")
    if how == "refused":
        lab.answer("j1:offer.quote", LabError(Code.BUDGET, "too dear."))
    else:
        lab.run()
        lab.report(report(1, "failed", reason="x")) if how == "failed" else lab.cancel()
        if how == "cancelled":
            lab.fire("stop")
    assert lab.snapshot("j1").state is State(how)
    assert (lab.calls_of("j2"), lab.calls_of("j3")) == (["offer.quote"], [])
    assert lab.types("j2")[-1] == "alone" and lab.snapshot("j2").reason is None
    assert lab.snapshot("j3").reason == "waits for the job j2, which makes the same model."
    assert [(row["key"], row["job"]) for row in lab.rows("making")] == [(KEY, "j2")]


def test_who_waits_can_be_cancelled_and_holds_nobody_up(lab: Lab) -> None:
    lab.submit("j1", "j2", "j3")
    answer = lab.ask("job.cancel", JobQuery(job="j2"))
    assert answer is not None and answer["result"]["state"] == "cancelled"
    lab.run()
    lab.report(report(1, "done", **DONE))
    assert (lab.snapshot("j2").state, lab.snapshot("j3").state) == (State.CANCELLED, State.DONE)
    assert lab.rows("sharing") == []


def test_who_waits_waits_on_after_a_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.submit("j1", "j2")
    lab.run()
    lab.agent.store.close()
    again = Lab(tmp_path)
    again.read()
    again.calls = 100  # other ids than before
    again.report(report(1, "done", **DONE))
    assert again.snapshot("j2").cached_from == "j1"
    again.agent.store.close()


def test_other_models_and_those_that_must_not_be_shared_are_made_side_by_side(lab: Lab) -> None:
    lab.submit("j1")
    lab.submit("j2", plan=PLAN.model_copy(update={"key": "b" * 64}))
    lab.submit("j3", "j4", plan=PLAN)
    assert [lab.calls_of(job) for job in ("j1", "j2", "j3", "j4")] == [["offer.quote"]] * 4


def test_a_plan_that_comes_after_the_end_keeps_nobody_waiting(lab: Lab) -> None:
    lab.ask("train.route", ROUTED, "j1:route")
    lab.cancel()
    lab.answer("j1:job.plan", SAME)
    lab.submit("j2")
    assert lab.calls_of("j2") == ["offer.quote"]
