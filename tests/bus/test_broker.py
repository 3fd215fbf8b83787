"""The private Mosquitto: gate, persistence over kill -9, ports, homes. All on the real program."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import pytest

from bus.address import BrokerAddress
from bus.broker import HOST, Broker, agents_present, check_port, free_port
from bus.mosquitto import find_mosquitto
from bus.session import Session
from protocol import MAX_BYTES, Code, LabError, Topics
from protocol.machine import Presence
from protocol.topics import OPERATOR

AGENTS = {"router-1": "router", "router-2": "router", "conductor-1": "conductor"}
TOPIC = Topics().of("call", role="router", method="train.submit")
DIRECT = Topics().of("direct", role="router", agent="router-1", method="train.submit")


def broker_of(home: Path, port: int = 0) -> Broker:
    return Broker(home, port, agents=AGENTS, program=find_mosquitto())


@asynccontextmanager
async def running(home: Path, port: int = 0):
    broker = broker_of(home, port)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


def connect(broker: Broker, agent: str):
    address = broker.address(agent)
    return Session.connect(address, f"lab-{address.client(agent)}", durable=True)


@asynccontextmanager
async def router(broker: Broker):
    async with connect(broker, "router-1") as session:
        await session.subscribe(Topics().shared("router"))
        await session.subscribe(DIRECT)
        yield session


async def received(session: Session, count: int) -> list[bytes]:
    payloads: list[bytes] = []
    async with asyncio.timeout(10):
        async for incoming in session:
            session.ack(incoming)
            payloads.append(incoming.payload)
            if len(payloads) == count:
                break
    return payloads


async def send(address: BrokerAddress, *payloads: bytes, topic: str = TOPIC) -> None:
    async with Session.connect(address, f"user-{os.urandom(4).hex()}", durable=False) as session:
        for payload in payloads:
            await session.publish(topic, payload)


async def test_users_are_refused_until_the_gate_opens_and_agents_are_not(tmp_path):
    async with running(tmp_path) as broker:
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            await send(broker.address(), b"{}")
        async with router(broker) as session:
            await broker.open_gate()
            await send(broker.address(), b"first")
            assert await received(session, 1) == [b"first"]


async def test_a_wrong_password_is_refused_even_with_the_gate_open(tmp_path):
    async with running(tmp_path) as broker:
        await broker.open_gate()
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            await send(BrokerAddress(HOST, broker.port, "router-1", "guess"), b"{}")


async def test_opening_the_gate_keeps_connections_and_queues_for_absent_agents(tmp_path):
    async with running(tmp_path) as broker:
        async with router(broker):
            await broker.open_gate()
        await send(broker.address(), b"one", b"two")
        async with connect(broker, "router-1") as session:
            assert await received(session, 2) == [b"one", b"two"]


async def test_kill_9_keeps_queued_messages_and_closes_the_gate(tmp_path):
    async with running(tmp_path) as broker:
        async with router(broker):
            await broker.open_gate()
        await send(broker.address(), b"queued")
        database = broker.folder / "mosquitto.db"
        async with asyncio.timeout(10):
            while b"queued" not in database.read_bytes():
                await asyncio.sleep(0.01)
        broker.process.send_signal(signal.SIGKILL)
        await broker.process.wait()
        await broker.start()
        assert not await broker.accepts(None), "users would publish to shared subscriptions that no longer exist"
        await send(broker.address(OPERATOR), b"direct", topic=DIRECT)
        async with connect(broker, "router-1") as session:
            assert await received(session, 2) == [b"queued", b"direct"], "plain subscriptions survive by themselves"


async def test_kill_9_forgets_shared_subscriptions(tmp_path):
    """The measured reason for closing the gate; when Mosquitto learns to keep them, the gate may stay open."""
    async with running(tmp_path) as broker:
        async with router(broker):
            pass
        await broker.stop()
        await broker.start()
        await send(broker.address(OPERATOR), b"lost")
        await send(broker.address(OPERATOR), b"kept", topic=DIRECT)
        async with connect(broker, "router-1") as session:
            assert await received(session, 1) == [b"kept"]


async def test_a_message_over_the_limit_reaches_the_agent_that_must_answer_it(tmp_path):
    async with running(tmp_path) as broker, router(broker) as session:
        await send(broker.address(OPERATOR), b"x" * (MAX_BYTES + 1))
        assert len((await received(session, 1))[0]) == MAX_BYTES + 1


async def test_presence_counts_only_when_online_and_fresh(tmp_path):
    topics = Topics()
    began = datetime.now(UTC)
    async with (
        running(tmp_path) as broker,
        connect(broker, "router-1") as one,
        connect(broker, "router-2") as two,
    ):
        async def announce(agent: str, online: bool, at: datetime) -> None:
            presence = Presence(agent=agent, role="router", online=online, at=at)
            topic = topics.of("presence", role="router", agent=agent)
            await {"router-1": one, "router-2": two}[agent].publish(topic, presence.model_dump_json().encode(), retain=True)

        await announce("router-1", True, began - timedelta(seconds=5))
        await announce("router-2", False, began)
        waiting = asyncio.create_task(
            agents_present(broker.address(OPERATOR), "lab", ["router-1", "router-2"], since=began)
        )
        await announce("router-2", True, began)
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done, "the announcement of router-1 is older than the broker"
        await announce("router-1", True, began)
        async with asyncio.timeout(10):
            await waiting


async def test_a_taken_port_names_its_owner_and_the_flag(tmp_path):
    with socket.socket() as owner:
        owner.bind((HOST, 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(LabError) as caught:
            await broker_of(tmp_path, port).start()
    assert caught.value.code is Code.BUSY
    assert f"pid {os.getpid()}" in str(caught.value) and "--port" in str(caught.value)
    assert not (tmp_path / "broker").exists(), "nothing half-started"


async def test_two_homes_have_two_brokers_with_passwords_of_their_own(tmp_path):
    async with running(tmp_path / "a") as one, running(tmp_path / "b") as two:
        assert one.port != two.port
        stranger = one.address(OPERATOR)
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            await send(BrokerAddress(HOST, two.port, stranger.username, stranger.password), b"{}")


async def test_passwords_stay_the_same_over_restarts_and_are_private(tmp_path):
    async with running(tmp_path) as broker:
        first = broker.address("router-1").password
        for name in ("dynamic-security.json", "passwords.json", "mosquitto.conf"):
            assert stat.S_IMODE((broker.folder / name).stat().st_mode) == 0o600
        assert first not in (broker.folder / "dynamic-security.json").read_text()
    async with running(tmp_path) as broker:
        assert broker.address("router-1").password == first


async def test_a_home_with_spaces_works(tmp_path):
    async with running(tmp_path / "my lab") as broker:
        await send(broker.address(OPERATOR), b"x")
    assert (tmp_path / "my lab" / "broker" / "mosquitto.db").exists()


async def test_it_listens_on_loopback_only_and_stop_leaves_nothing(tmp_path):
    async with running(tmp_path) as broker:
        listeners = re.findall(r"^listener .*$", (broker.folder / "mosquitto.conf").read_text(), re.MULTILINE)
        assert listeners == [f"listener {broker.port} 127.0.0.1"]
    assert broker.process.returncode is not None
    check_port(broker.port)


async def test_a_broker_that_cannot_run_says_why(tmp_path):
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(LabError, match=r"exit code 3.*no such option") as caught:
        await Broker(tmp_path, free_port(), agents=AGENTS, program=program).start()
    assert caught.value.code is Code.TOOLCHAIN


def test_a_missing_mosquitto_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(LabError, match="install mosquitto") as caught:
        find_mosquitto({"PATH": str(tmp_path)})
    assert caught.value.code is Code.TOOLCHAIN


def test_a_wrong_path_to_mosquitto_is_named(tmp_path):
    with pytest.raises(LabError, match="MEETARA_MOSQUITTO"):
        find_mosquitto({"MEETARA_MOSQUITTO": str(tmp_path / "none")})
