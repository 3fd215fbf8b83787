"""The router's shell over a real store; the network is not needed to see what it would send."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.router.agent import RouterAgent
from bus import BrokerAddress, Wiring
from configs import Settings
from protocol import MCPMessage


@pytest.fixture
async def router(tmp_path: Path) -> Iterator[RouterAgent]:
    lab = configs.load(Settings.read(default_tier="starter"))
    agent = RouterAgent(Wiring("router-1", tmp_path, BrokerAddress("127.0.0.1", 1)), lab)
    yield agent
    agent.store.close()


def submit(identity: str = "j1", **data: Any) -> MCPMessage:
    return MCPMessage(id=identity, type="train.submit", data={"domain": "sleep", "dataset": "/x.jsonl", **data})


def rows(agent: RouterAgent, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in agent.store.connection.execute(f"SELECT * FROM {table} ORDER BY rowid")]


def published(agent: RouterAgent) -> dict[str, dict[str, Any]]:
    return {row["topic"]: json.loads(row["payload"]) for row in rows(agent, "publications")}


async def test_a_request_goes_on_to_the_conductor_once(router):
    await router.handle_message(submit(priority=2))
    await router.handle_message(submit(priority=2))
    calls = rows(router, "outbox")
    assert [(call["id"], call["method"], call["key"]) for call in calls] == [("j1:route", "train.route", "j1")]
    message = json.loads(calls[0]["message"])
    assert (message["data"]["job"], message["data"]["route"]["tier"], message["priority"]) == ("j1", "starter", 2)
    assert len(message["data"]["digest"]) == 64
    assert [row["state"] for row in rows(router, "inbox")] == ["open"]


async def test_an_unknown_domain_without_response_topic_becomes_a_refused_state(router):
    await router.handle_message(submit(domain="slep"))
    assert rows(router, "outbox") == []
    state = published(router)["meetara/v1/lab/job/j1/state"]
    assert (state["job"], state["state"], state["domain"], state["stage"]) == ("j1", "refused", "slep", None)
    assert "sleep" in state["reason"]
    assert rows(router, "publications")[0]["retain"] == 1


async def test_a_quote_goes_on_to_the_conductor_and_its_refusal_is_no_job(router):
    await router.handle_message(submit().model_copy(update={"type": "train.quote"}))
    (call,) = rows(router, "outbox")
    routed = json.loads(call["message"])["data"]
    assert (call["method"], routed["job"], routed["route"]["gpus"]) == ("job.quote", "j1", [])
    await router.handle_message(submit("j2", domain="slep").model_copy(update={"type": "train.quote"}))
    assert [topic for topic in published(router) if "/job/" in topic] == []


async def test_a_clear_text_goes_on_with_its_domain_and_the_request_as_it_came(router):
    text = "a model that helps people fall asleep and stay asleep at night"
    await router.handle_message(submit(domain=None, text=text))
    (call,) = rows(router, "outbox")
    routed = json.loads(call["message"])["data"]
    assert routed["route"]["domain"] == "sleep"
    assert (routed["request"].get("domain"), routed["request"]["text"]) == (None, text)


@pytest.mark.parametrize("text", ["hm", "qwxz vbnm", "日本語", "what is the capital of Peru"])
async def test_an_unclear_text_becomes_a_refused_state_that_asks(router, text):
    await router.handle_message(submit(domain=None, text=text))
    assert rows(router, "outbox") == []
    state = published(router)["meetara/v1/lab/job/j1/state"]
    assert (state["state"], state["domain"]) == ("refused", "")
    assert "What is it about: " in state["reason"] and state["reason"].count("?") == 1


async def test_neither_domain_nor_text_becomes_a_refused_state_with_advice(router):
    await router.handle_message(submit(domain=None))
    assert "say in `text` what the model is for" in published(router)["meetara/v1/lab/job/j1/state"]["reason"]


async def test_a_request_that_names_its_domain_needs_no_model(tmp_path):
    lab = configs.load(Settings.read(default_tier="starter"))
    wiring = Wiring("router-1", tmp_path, BrokerAddress("127.0.0.1", 1))
    agent = RouterAgent(wiring, lab, model=tmp_path / "missing")
    await agent.handle_message(submit())
    await agent.handle_message(submit("j2", domain=None, text="a model that helps people fall asleep"))
    assert [call["key"] for call in rows(agent, "outbox")] == ["j1"]
    reason = published(agent)["meetara/v1/lab/job/j2/state"]["reason"]
    assert "missing" in reason and "Name the `domain`" in reason
    agent.store.close()


async def test_wrong_types_become_a_refused_state_that_names_the_field(router):
    await router.handle_message(submit(priority="urgent"))
    assert "priority" in published(router)["meetara/v1/lab/job/j1/state"]["reason"]


async def test_an_id_that_cannot_be_a_jobs_goes_to_the_dead_letters(router):
    await router.handle_message(submit("a/b"))
    assert list(published(router)) == ["meetara/v1/lab/dead/router"]
    assert "'a/b'" in published(router)["meetara/v1/lab/dead/router"]["reason"]


async def test_a_conflict_leaves_the_state_alone(router):
    await router.handle_message(submit())
    await router.handle_message(submit(domain="music"))
    assert list(published(router)) == ["meetara/v1/lab/dead/router"]
    assert len(rows(router, "outbox")) == 1
