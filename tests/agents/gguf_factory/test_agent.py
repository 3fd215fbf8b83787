"""The factory's shell when the disk is full: what a job's process says waits, and a failed listener holds nobody up."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import agent as module
from agents.gguf_factory.agent import FactoryAgent
from agents.gguf_factory.cache import Found
from bus import BrokerAddress, Wiring
from protocol import MCPMessage
from protocol.job import Finished, PlanRequest
from tests.agents.gguf_factory.bases import make_base
from tests.agents.gguf_factory.runs import make_job


class Rig:
    """A factory that nobody serves, with one job that it holds."""

    def __init__(self, folder: Path) -> None:
        job = make_job(folder / "home", make_base(folder / "base"))
        self.run = job.run
        self.agent = FactoryAgent(Wiring("gguf_factory-1", job.home, BrokerAddress("127.0.0.1", 1)))
        with self.agent.transaction() as tx:
            tx.connection.execute(
                "INSERT INTO runs (job, request, renewed_at) VALUES (?, ?, 0)", (self.run.job, self.run.model_dump_json())
            )

    def reports(self) -> list[str]:
        return [row["id"] for row in self.agent.store.connection.execute("SELECT id FROM outbox WHERE method = 'job.report'")]


@pytest.fixture
async def rig(tmp_path: Path) -> Any:
    made = Rig(tmp_path)
    yield made
    made.agent.store.close()


async def test_a_listener_that_fails_does_not_hold_up_the_factorys_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.JobProcess, "run", run)
    rig.agent.launch(rig.run)
    await rig.agent._stop.wait()
    assert isinstance(rig.agent._failure, OSError)
    await asyncio.wait_for(rig.agent.stopping(), 5)


async def test_a_planning_process_that_is_killed_is_started_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"crash": "ended with status -9"}, {"plan": rig.run.plan.model_dump(mode="json")}]

    async def make_plan(request: PlanRequest, home: Path, launcher: object) -> dict[str, Any]:
        return answers.pop(0)

    monkeypatch.setattr(module, "make_plan", make_plan)
    request = PlanRequest(job="j", request=rig.run.request, route=rig.run.route)
    with rig.agent.transaction() as tx:
        call = MCPMessage(id="call", type="job.plan").model_dump_json()
        tx.store.take_in("call", "digest", call, 1, ("reply/c", None), tx.now)
    await rig.agent.answer_plan("call", request)
    row = rig.agent.store.find_call("call")
    assert row is not None and answers == [] and '"result"' in row["reply"]


def asked(rig: Rig, monkeypatch: pytest.MonkeyPatch, found: Found) -> None:
    """A call `call` for a plan, and a cache that says this."""

    async def look_up(*_: object) -> Found:
        return found

    monkeypatch.setattr(module, "look_up", look_up)
    with rig.agent.transaction() as tx:
        tx.store.take_in("call", "digest", MCPMessage(id="call", type="job.plan").model_dump_json(), 1, ("reply/c", None), tx.now)


def waiting(rig: Rig) -> Any:
    return (-1, 1, "call", PlanRequest(job="j", request=rig.run.request, route=rig.run.route), None)


async def test_a_model_that_is_there_is_answered_beside_the_plans_that_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Finished(job="first", artefacts=[], gates={}, results={})
    plan = rig.run.plan.model_copy(update={"key": "k", "finished": finished})
    asked(rig, monkeypatch, Found("k", plan))
    await rig.agent.find(waiting(rig))
    row = rig.agent.store.find_call("call")
    assert row is not None and '"job":"first"' in row["reply"]
    assert rig.agent.plans.empty(), "no process is started"


async def test_a_model_that_is_not_used_is_planned_anew_and_the_plan_says_why(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def make_plan(*_: object) -> dict[str, Any]:
        return {"plan": rig.run.plan.model_dump(mode="json")}

    monkeypatch.setattr(module, "make_plan", make_plan)
    asked(rig, monkeypatch, Found("k", why="The model is not used: it is gone."))
    await rig.agent.find(waiting(rig))
    _, _, call, request, _ = rig.agent.plans.get_nowait()
    await rig.agent.answer_plan(call, request)
    row = rig.agent.store.find_call("call")
    assert row is not None and "it is gone." in row["reply"] and rig.agent.unused == {}


async def test_what_a_process_says_while_the_store_is_full_is_reported_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = rig.agent.heard
    full = 2

    def say(run: Any, line: dict[str, Any]) -> None:
        nonlocal full
        if full:
            full -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        heard(run, line)

    async def run(self: Any) -> None:
        await self.heard({"kind": "stage_started", "stage": "data"})
        await self.ended(0)

    async def at_once(seconds: float) -> None:
        pass

    monkeypatch.setattr(rig.agent, "heard", say)
    monkeypatch.setattr(module.JobProcess, "run", run)
    monkeypatch.setattr("bus.agent.asyncio.sleep", at_once)
    rig.agent.launch(rig.run)
    await asyncio.gather(*rig.agent._tasks)
    assert rig.agent._failure is None and full == 0
    assert len(rig.reports()) == 2, "the stage's start, and that the process ended without a word"
