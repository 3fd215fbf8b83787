"""A quote is made as a job's would be, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Code, LabError
from protocol.job import Finished, JobListQuery
from protocol.machine import Quote
from tests.agents.conductor.jobs import PLAN, QUOTE, ROUTED
from tests.agents.conductor.stored import StoredJob


class Lab(StoredJob):
    """A conductor that need not have a job."""

    def read(self) -> None:
        pass


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[StoredJob]:
    made = Lab(tmp_path)
    yield made
    made.agent.store.close()


def called(lab: StoredJob, method: str) -> str:
    (id,) = [id for id, name, _ in lab.pending() if name == method]
    return id


def sent(lab: StoredJob, method: str) -> Any:
    (data,) = [data for _, name, data in lab.pending() if name == method]
    return data


def test_a_quote_is_planned_and_priced_and_nothing_is_kept(lab: StoredJob) -> None:
    limits = {"budget_usd": 3.0, "deadline_hours": 5.0, "untrusted_hosts": True, "providers": ["local"], "checkpoints": "machine"}
    routed = ROUTED.model_copy(update={"request": ROUTED.request.model_copy(update=limits)})
    assert lab.ask("job.quote", routed, "q1") is None
    planned = sent(lab, "job.plan")
    assert (planned.request, planned.route, planned.elsewhere) == (routed.request, routed.route, False)
    lab.answer(called(lab, "job.plan"), PLAN)
    asked = sent(lab, "offer.quote")
    assert {name: getattr(asked, name) for name in limits} == limits and asked.tier == routed.route.tier
    lab.answer(called(lab, "offer.quote"), QUOTE)
    made = Quote.model_validate(lab.reply("q1")["result"])
    assert (made.choice, made.plan, made.finished_by) == (QUOTE.choice, PLAN, None)
    assert lab.ask("job.list", JobListQuery())["result"]["jobs"] == []
    assert lab.pending() == [] and lab.agent.store.events(ROUTED.job) == []


def test_a_model_that_is_there_is_named_and_quoted_all_the_same(lab: StoredJob) -> None:
    lab.ask("job.quote", ROUTED, "q1")
    finished = Finished(job="j0", artefacts=[], gates={}, results={})
    lab.answer(called(lab, "job.plan"), PLAN.model_copy(update={"finished": finished}))
    lab.answer(called(lab, "offer.quote"), QUOTE)
    assert Quote.model_validate(lab.reply("q1")["result"]).finished_by == "j0"


@pytest.mark.parametrize("refused", ["job.plan", "offer.quote"])
def test_what_would_refuse_the_job_refuses_the_quote(lab: StoredJob, refused: str) -> None:
    lab.ask("job.quote", ROUTED, "q1")
    if refused == "offer.quote":
        lab.answer(called(lab, "job.plan"), PLAN)
    lab.answer(called(lab, refused), LabError(Code.BUDGET, "too dear.", field="budget_usd"))
    error = lab.reply("q1")["error"]
    assert (error["code"], error["data"]["field"]) == (Code.BUDGET, "budget_usd")
    assert lab.ask("job.list", JobListQuery())["result"]["jobs"] == []


def test_a_job_of_the_same_id_goes_its_own_way(lab: StoredJob) -> None:
    lab.ask("job.quote", ROUTED, "q1")
    lab.ask("train.route", ROUTED, "r1")
    assert sorted(name for _, name, _ in lab.pending()) == ["job.plan", "job.plan"]
    lab.answer(f"{ROUTED.job}:job.plan", LabError(Code.BAD_DATA, "no rows."))
    assert lab.reply("r1") is not None and lab.reply("q1") is None


@pytest.mark.parametrize(
    ("gpus", "providers", "elsewhere"),
    [([], None, False), (["T4"], None, True), (["T4"], ["local"], False), ([], ["runpod"], True)],
)
def test_the_plan_knows_whether_another_machine_may_train_it(lab, gpus, providers, elsewhere) -> None:
    routed = ROUTED.model_copy(update={
        "request": ROUTED.request.model_copy(update={"providers": providers}), "route": ROUTED.route.model_copy(update={"gpus": gpus}),
    })  # fmt: skip
    lab.ask("job.quote", routed, "q1")
    assert sent(lab, "job.plan").elsewhere is elsewhere
