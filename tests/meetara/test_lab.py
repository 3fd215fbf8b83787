"""The typed client against a real broker: paths, states, progress, results."""

from __future__ import annotations

import asyncio
import inspect
import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bus.session import Session
from meetara.commands import request
from meetara.job import Job, check
from meetara.lab import Lab
from meetara.request import base_name, data_uri
from protocol import Code, JobSnapshot, LabError, Progress, State, Topics, TrainRequest
from protocol.job import Gate, Stage
from protocol.machine import Card, Presence
from tests.conftest import PlainBroker

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


def snapshot(state: State, job: str = "one", seconds: int = 0, **fields) -> JobSnapshot:
    known = {
        "stage": None, "attempt": 1, "domain": "sleep", "tier": "starter", "profile": "edge", "cost_usd": None,
        "quality_percent": None, "artefacts": [], "gates": {},
    }  # fmt: skip
    return JobSnapshot(job=job, state=state, at=AT + timedelta(seconds=seconds), **{**known, **fields})


@asynccontextmanager
async def lab_with_publisher(broker: PlainBroker, home: Path):
    async with (
        Session.connect(broker.address, "conductor-1", durable=False) as publisher,
        Lab(home=home, port=broker.address.port) as lab,
    ):

        async def publish(row: str, model, **levels: str) -> None:
            topic = Topics().of(row, **levels)
            await publisher.publish(topic, model.model_dump_json().encode(), retain=True)

        yield lab, publish


def test_local_paths_become_absolute_uris_of_the_callers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_uri("rows.jsonl") == f"file://{tmp_path}/rows.jsonl"
    assert data_uri(Path("my rows.jsonl")) == f"file://{tmp_path}/my%20rows.jsonl"
    assert data_uri("s3://bucket/rows.jsonl") == "s3://bucket/rows.jsonl"
    assert data_uri("someone/rows") == "someone/rows", "a data set of a hub"
    assert data_uri("data/rows.jsonl") == f"file://{tmp_path}/data/rows.jsonl"
    assert data_uri("file:///data/rows.jsonl") == "file:///data/rows.jsonl"


def test_a_base_is_a_folder_where_one_exists_and_a_hub_name_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert base_name("models") == str(tmp_path / "models")
    assert base_name("./none") == str(tmp_path / "none")
    assert base_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


async def test_states_come_in_order_and_end_with_the_final_one(broker, tmp_path):
    async with lab_with_publisher(broker, tmp_path) as (lab, publish):
        await publish("job_state", snapshot(State.TRAINING), job="one")
        seen: list[State] = []
        async with asyncio.timeout(10):
            async for state in Job(lab, "one").states():
                seen.append(state.state)
                if state.state is State.TRAINING:
                    await publish("job_state", snapshot(State.DONE, job="two", seconds=1), job="two")
                    await publish("job_state", snapshot(State.EXPORTING, seconds=1), job="one")
                    await publish("job_state", snapshot(State.DONE, seconds=2), job="one")
        assert seen == [State.TRAINING, State.EXPORTING, State.DONE]


async def test_progress_ends_when_the_job_does(broker, tmp_path):
    async with lab_with_publisher(broker, tmp_path) as (lab, publish):
        await publish("job_state", snapshot(State.TRAINING), job="one")
        await publish("job_progress", Progress(job="one", stage=Stage.TRAIN, attempt=1, step=3, at=AT), job="one")
        seen: list[int | None] = []
        async with asyncio.timeout(10):
            async for progress in Job(lab, "one").progress():
                seen.append(progress.step)
                await publish("job_state", snapshot(State.CANCELLED, seconds=1), job="one")
        assert seen == [3]


async def test_a_failed_job_raises_its_reason(broker, tmp_path):
    async with lab_with_publisher(broker, tmp_path) as (lab, publish):
        await publish("job_state", snapshot(State.FAILED, reason="row 7 has no text"), job="one")
        async with asyncio.timeout(10):
            with pytest.raises(LabError, match="row 7 has no text") as caught:
                await Job(lab, "one").result()
        assert caught.value.code is Code.INTERNAL


def test_a_missed_gate_a_refusal_and_a_cancellation_have_codes_of_their_own():
    missed = Gate(value=99.0, threshold=101.0, ok=False)
    for final, code in (
        (snapshot(State.FAILED, gates={"quality_percent": missed}), Code.GATE_MISSED),
        (snapshot(State.REFUSED), Code.INVALID_REQUEST),
        (snapshot(State.CANCELLED), Code.CANCELLED),
    ):
        with pytest.raises(LabError) as caught:
            check(final)
        assert caught.value.code is code
    assert check(snapshot(State.DONE)).state is State.DONE


async def test_agents_are_listed_with_card_and_presence(broker, tmp_path):
    async with lab_with_publisher(broker, tmp_path) as (lab, publish):
        levels = {"role": "router", "agent": "router-1"}
        await publish("card", Card(agent="router-1", role="router", version="1", methods={}), **levels)
        await publish("presence", Presence(agent="router-1", role="router", online=True, at=AT), **levels)
        await publish("presence", Presence(agent="gone-1", role="gone", online=False), role="gone", agent="gone-1")
        found = {agent.id: (agent.online, agent.card is not None) for agent in await lab.agents()}
    assert found == {"router-1": (True, True), "gone-1": (False, False)}


async def test_a_request_over_the_limit_is_refused_at_the_client_with_its_size(broker, tmp_path):
    async with lab_with_publisher(broker, tmp_path) as (lab, _):
        with pytest.raises(LabError, match="262144") as caught:
            await lab.train(domain="sleep", dataset="rows.jsonl", parameters={"x": "y" * 300_000})
    assert caught.value.code is Code.TOO_LARGE and caught.value.data["bytes"] > 300_000


async def test_a_wrong_field_is_named_before_anything_is_sent(broker, tmp_path):
    async with lab_with_publisher(broker, tmp_path) as (lab, _):
        with pytest.raises(LabError, match="priority") as caught:
            await lab.train(domain="sleep", dataset="rows.jsonl", priority=9)
    assert caught.value.data["field"] == "priority"


async def test_no_broker_says_how_to_start_one(tmp_path):
    with pytest.raises(LabError, match="meetara up") as caught:
        async with Lab(home=tmp_path, port=1):
            pass
    assert caught.value.code is Code.UNREACHABLE


def test_whatever_a_request_may_say_the_client_and_the_command_line_can_say() -> None:
    fields = set(TrainRequest.model_fields) - {"signature"}  # the home's key makes it
    assert fields <= set(inspect.signature(Lab.train).parameters)
    options = set(inspect.signature(request.train).parameters) - {"detach", "dry_run", "home", "host", "port", "lab", "as_json"}
    named = {
        "dataset": "data", "eval_dataset": "eval_data", "parameters": "param", "budget_usd": "budget", "use_cache": "fresh",
        "checkpoints": "store_checkpoints", "deadline_hours": "deadline", "providers": "provider",
    }  # fmt: skip
    assert {named.get(field, field) for field in fields} | {"id"} == options
