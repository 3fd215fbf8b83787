"""Tokens of workers, and their logins on the real broker: admitted, given other jobs, kept over a restart, dismissed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import pytest
import pytest_asyncio

from bus import certs, setup, workers
from bus.address import BrokerAddress
from bus.broker import Broker
from bus.files import read_json
from bus.mosquitto import find_mosquitto
from bus.session import Refused, Session, refuses_login
from protocol import Code, LabError
from protocol.access import rental_of, worker_name

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = datetime.now(UTC)
AGENTS = {"conductor-1": "conductor", "gpu_orchestrator-1": "gpu_orchestrator"}
LAB = "meetara/v1/lab"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(tmp_path_factory) -> AsyncIterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("workers"), 0, agents=AGENTS, program=find_mosquitto())
    await broker.start()
    yield broker
    await broker.stop()


def control(broker: Broker) -> BrokerAddress:
    return broker.address("gpu_orchestrator-1")


@contextlib.asynccontextmanager
async def session_of(broker: Broker, token: workers.Token) -> AsyncIterator[Session]:
    address = token.address(broker.address())
    async with Session.connect(address, f"lab-{address.client(token.worker)}", durable=True) as session:
        yield session


async def is_let_in(broker: Broker, token: workers.Token) -> bool:
    try:
        async with session_of(broker, token):
            return True
    except aiomqtt.MqttError as error:
        assert refuses_login(error), error
        return False


async def test_a_worker_is_let_in_while_it_is_admitted_also_after_the_broker_was_killed(broker):
    token = workers.make("r1", provider="vast")
    assert not await is_let_in(broker, token)
    await workers.admit(control(broker), token, ["a"])
    await workers.admit(control(broker), token, ["a"])
    assert await is_let_in(broker, token)
    broker.process.kill()
    await broker.process.wait()
    await broker.start()
    assert await is_let_in(broker, token), "what the plugin has written down is kept"
    assert await workers.admitted(control(broker)) == {"worker-r1"}
    await workers.dismiss(control(broker), token.worker)
    assert not await is_let_in(broker, token)
    await workers.dismiss(control(broker), token.worker)
    assert await workers.admitted(control(broker)) == set()
    assert token.worker not in (broker.folder / "dynamic-security.json").read_text()


async def test_its_jobs_change_while_it_is_connected(broker):
    token = workers.make("r2", provider="vast")
    await workers.admit(control(broker), token, ["a"])
    async with session_of(broker, token) as session:
        await workers.admit(control(broker), token, ["a"])
        await session.publish(f"{LAB}/job/a/progress", b"{}")
        with pytest.raises(Refused, match="job/b/progress"):
            await session.publish(f"{LAB}/job/b/progress", b"{}")
    await workers.admit(control(broker), token, ["b"])
    async with session_of(broker, token) as session:
        await session.publish(f"{LAB}/job/b/progress", b"{}")
        with pytest.raises(Refused, match="job/a/progress"):
            await session.publish(f"{LAB}/job/a/progress", b"{}")
    await workers.dismiss(control(broker), token.worker)


async def test_who_is_dismissed_is_cut_off_and_leaves_no_card(broker):
    token = workers.make("r3", provider="vast")
    card = f"{LAB}/agent/gguf_factory/worker-r3/card"
    await workers.admit(control(broker), token, [])
    async with Session.connect(control(broker), "looks", durable=False) as orchestrator:
        async with session_of(broker, token) as session:
            await session.publish(card, b"{}", retain=True)
            await orchestrator.subscribe(card)
            assert (await orchestrator.receive(1))[0].payload == b"{}"
            await workers.dismiss(control(broker), token.worker)
            with pytest.raises(aiomqtt.MqttError):
                await asyncio.wait_for(session.receive(), 10)
        assert (await orchestrator.receive(1))[0].payload == b"", "the orchestrator hears that the machine is gone"


async def test_only_the_orchestrator_and_the_operator_admit(broker):
    with pytest.raises(LabError) as caught:
        await workers.admit(broker.address("conductor-1"), workers.make("r4", provider="vast"), [])
    assert caught.value.code in (Code.CONFIGURATION, Code.UNREACHABLE)
    token = workers.make("r5", provider="vast")
    await workers.admit(control(broker), token, [])
    with pytest.raises(LabError):
        await workers.admit(token.address(broker.address()), workers.make("r6", provider="vast"), [])
    await workers.dismiss(broker.address("operator"), token.worker)


async def test_a_broker_in_a_container_keeps_its_workers_when_its_rules_are_written_again(tmp_path):
    setup.write(tmp_path, AGENTS, hosts=["broker"], now=NOW)
    rules = tmp_path / "broker" / "dynamic-security.json"
    mine = {"username": "worker-r7", "password": "p", "salt": "s", "iterations": 1,
            "roles": [{"rolename": "workers"}, {"rolename": "worker-r7"}]}  # fmt: skip
    before = read_json(rules)
    before["clients"].append(mine)
    before["clients"].append({"username": "stranger", "roles": [{"rolename": "user"}]})
    before["roles"].append({"rolename": "worker-r7", "acls": []})
    rules.write_text(json.dumps(before))
    setup.write(tmp_path, AGENTS, hosts=["broker"], now=NOW)
    after = read_json(rules)
    assert mine in after["clients"] and {"rolename": "worker-r7", "acls": []} in after["roles"]
    assert "stranger" not in [client["username"] for client in after["clients"]]


async def test_a_token_is_read_as_it_was_written_and_never_shown(tmp_path: Path):
    certs.make(tmp_path, hosts=[], now=NOW)
    token = workers.make("r8", provider="vast", lab="night", ca=tmp_path / "ca.pem")
    text = str(token)
    assert workers.Token.read(f" {text[:50]}\n{text[50:]}\n") == token
    assert (token.rental, token.lab, token.provider) == ("r8", "night", "vast")
    assert "BEGIN CERTIFICATE" in token.ca and len(text) < 2000
    assert token.password not in repr(token) and "CERTIFICATE" not in repr(token)
    token.check()


@pytest.mark.parametrize("text", ["", "mtw1.", "mtw1.e30", "mtw1.!!", "hello", "mtw1.W10"])
async def test_what_is_no_token_is_refused_without_being_quoted(text):
    with pytest.raises(LabError, match="not a worker's token") as caught:
        workers.Token.read(text)
    assert caught.value.code is Code.CONFIGURATION and "--token" in caught.value.advice


async def test_a_worker_of_another_version_is_told_both():
    token = workers.make("r9", provider="vast")
    other = workers.Token(token.worker, token.password, "lab", "vast", "9.9.9", "0" * 64)
    with pytest.raises(LabError, match=rf"version {token.version} .*the lab of 9\.9\.9 \(words 00000000\)"):
        other.check()


async def test_a_workers_name_tells_its_rental():
    assert rental_of(worker_name("a-b")) == "a-b"
    assert rental_of("gguf_factory-1") is None and rental_of("worker") is None and rental_of("worker-") is None


async def test_a_worker_whose_password_nobody_remembers_is_allowed_other_jobs(broker):
    token = workers.make("lent-pc", provider="lent")
    await workers.admit(control(broker), token, [])
    await workers.allow(control(broker), token.worker, ["a"])
    async with session_of(broker, token) as session:
        await session.publish(f"{LAB}/job/a/progress", b"{}")
        with pytest.raises(Refused, match="job/b/progress"):
            await session.publish(f"{LAB}/job/b/progress", b"{}")
    await workers.dismiss(control(broker), token.worker)
    with pytest.raises(LabError) as caught:
        await workers.allow(control(broker), token.worker, ["a"])
    assert caught.value.code is Code.NOT_FOUND and token.worker in str(caught.value)


async def test_a_broker_that_does_not_list_its_logins_says_so(monkeypatch):
    async def refused(control, *commands):
        return [{"command": "listClients", "error": "Invalid/missing verbose"}]

    monkeypatch.setattr(workers.users, "ask", refused)
    with pytest.raises(LabError, match="does not list its logins: Invalid/missing verbose"):
        await workers.admitted(BrokerAddress("127.0.0.1", 1))
