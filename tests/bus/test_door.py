"""The door and the folder of a compose file, with a real broker: who gets in, when, and as whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import pytest

from bus import certs, setup
from bus.acl import SHARED
from bus.address import BrokerAddress
from bus.broker import await_agents, free_port
from bus.door import Connect, Door, keep
from bus.mosquitto import find_mosquitto
from bus.session import Refused, Session
from protocol import Code, LabError, Topics
from protocol.address import Endpoint
from protocol.machine import Presence

AGENTS = ("router-1", "conductor-1")
TOPICS = Topics()
SUBMIT = TOPICS.of("call", role="router", method="train.submit")
NOW = datetime.now(UTC)


class Compose:
    """What a compose file runs: a folder that `bus.setup` wrote, and a Mosquitto on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "data").mkdir()
        self.write()
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, now: datetime = NOW) -> list[certs.Certificate]:
        return setup.write(
            self.folder / "lab", AGENTS, hosts=["broker"], inside=str(self.folder / "lab" / "broker"),
            data=str(self.folder / "data"), port=self.port, now=now,
        )  # fmt: skip

    def address(self, login: str) -> BrokerAddress:
        environment = {
            "MEETARA_BROKER": f"mqtts://127.0.0.1:{self.port}", "MEETARA_BROKER_USER": login,
            "MEETARA_BROKER_PASSWORD_FILE": str(self.folder / "lab" / login / "password"),
            "MEETARA_BROKER_CA": str(self.folder / "lab" / login / "ca.pem"),
        }  # fmt: skip
        return BrokerAddress.read(environment)

    def run(self) -> None:
        conf = self.folder / "lab" / "broker" / "mosquitto.conf"
        if os.geteuid() == 0 and "user root" not in (text := conf.read_text()):
            conf.write_text(text + "user root\n")  # the folder of a test belongs to root
        self.process = subprocess.Popen(
            [find_mosquitto(), "-c", conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    async def start(self) -> None:
        self.run()
        async with asyncio.timeout(15):
            while True:
                assert self.process.poll() is None, "mosquitto ended at once"
                with contextlib.suppress(aiomqtt.MqttError):
                    async with Session.connect(self.address("operator"), "probe", durable=False):
                        return
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextlib.asynccontextmanager
    async def agent(self, name: str) -> AsyncIterator[Session]:
        """Connect as an agent does: subscribe, then announce."""
        role = setup.role_of(name)
        address = self.address(name)
        async with Session.connect(address, f"lab-{address.client(name)}", durable=True) as session:
            await session.subscribe(TOPICS.shared(role))
            presence = Presence(agent=name, role=role, online=True, at=datetime.now(UTC))
            topic = TOPICS.of("presence", role=role, agent=name)
            await session.publish(topic, presence.model_dump_json().encode(), retain=True)
            yield session


@pytest.fixture
async def compose(tmp_path) -> AsyncIterator[Compose]:
    found = Compose(tmp_path)
    await found.start()
    yield found
    found.kill()


@contextlib.asynccontextmanager
async def kept(door: Door) -> AsyncIterator[None]:
    task = asyncio.create_task(keep(door, "lab", AGENTS))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not door.is_open


async def opened(door: Door, *, is_open: bool = True) -> None:
    async with asyncio.timeout(20):
        while door.is_open is not is_open:
            await asyncio.sleep(0.02)


async def pub(port: int, *options: str) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(
        subprocess.run,
        ["mosquitto_pub", "-p", str(port), "-q", "1", "-t", SUBMIT, "-m", "{}", *options], capture_output=True, timeout=20,
    )  # fmt: skip


async def test_the_door_is_open_while_the_broker_has_all_agents(compose):
    port = free_port()
    door = Door(Endpoint("127.0.0.1", port), compose.address("door"))
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(compose.agent("router-1"))
        await stack.enter_async_context(kept(door))
        assert (await pub(port)).returncode != 0, "the conductor is not there"
        async with compose.agent("conductor-1"):
            await opened(door)
            for version in ("mqttv31", "mqttv311", "5"):
                assert (await pub(port, "-V", version, "-i", "me")).returncode == 0
            person = BrokerAddress(port=port)
            async with asyncio.timeout(10), Session.connect(person, "watcher", durable=False) as session:
                await session.subscribe("meetara/v1/lab/job/#")
                with pytest.raises(Refused):
                    await session.subscribe(TOPICS.shared("router"))
                received = aiter(router)
                assert [(await anext(received)).payload for _ in range(3)] == [b"{}"] * 3
                compose.kill()
                with pytest.raises(aiomqtt.MqttError):
                    await anext(aiter(session))
            await opened(door, is_open=False)
            assert (await pub(port)).returncode != 0
    await compose.start()
    async with kept(door):
        async with compose.agent("router-1"):
            async with Session.connect(compose.address("door"), "test", durable=False) as session:
                await await_agents(session, TOPICS, AGENTS)  # as was said before the broker was killed
                await session.subscribe(SHARED)
                async for incoming in session:
                    if incoming.topic == SHARED and incoming.payload == b"1":
                        break
            assert not door.is_open, "what the conductor said before is still there, its subscription is not"
            async with compose.agent("conductor-1"):
                await opened(door)
        await opened(door)


async def test_a_door_that_starts_later_than_the_agents_opens_all_the_same(compose):
    async with compose.agent("router-1"), compose.agent("conductor-1"):
        door = Door(Endpoint("127.0.0.1", 0), compose.address("door"))
        async with kept(door):
            await opened(door)


async def test_only_the_door_and_agents_know_the_broker(compose):
    plain = BrokerAddress("127.0.0.1", compose.port, tls=True, ca=compose.address("door").ca)
    with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
        async with Session.connect(plain, "somebody", durable=False):
            pass


async def test_a_door_without_a_login_turns_away_who_brings_none(broker):
    door = Door(Endpoint("127.0.0.1", 0), broker.address)
    await door.open()
    for version in ("mqttv31", "mqttv311", "5"):
        refused = await pub(door.port, "-V", version)
        assert refused.returncode != 0 and b"uthori" in refused.stderr, refused
        assert (await pub(door.port, "-V", version, "-u", "me", "-P", "secret")).returncode == 0
    await door.close()


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff\xff", b"\x10\xff\xff\x7f", b"\x10\x02ab", b"\x10\x0a\x00\x04HTTP\x05\x02\x00\x3c"],
)  # fmt: skip
async def test_what_is_no_connect_is_cut_off(broker, noise):
    door = Door(Endpoint("127.0.0.1", 0), broker.address)
    await door.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(noise)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    await door.close()


@pytest.mark.parametrize("length", [20, 127 - 12, 128, 200, 16_383, 20_000])
async def test_a_login_is_added_to_a_packet_of_any_length(length):
    name = b"c" * length
    body = b"\x00\x04MQTT\x05\x02\x00\x3c\x00" + len(name).to_bytes(2, "big") + name
    reader = asyncio.StreamReader()
    reader.feed_data(Connect(body).with_login("door", "öffne dich").packet())
    hello = await Connect.read(reader)
    assert hello.has_login and not Connect(body).has_login
    assert hello.body.endswith(b"\x00\x04door\x00\x0b" + "öffne dich".encode())
    assert hello.body[:7] == body[:7] and hello.body[7] == 0xC2 and hello.body[8 : len(body)] == body[8:]


async def test_an_address_that_is_taken_is_told(broker):
    door = Door(Endpoint("127.0.0.1", broker.address.port), broker.address)
    with pytest.raises(LabError, match="--listen") as caught:
        await door.open()
    assert caught.value.code is Code.BUSY


def test_a_second_setup_keeps_passwords_and_renews_certificates(tmp_path):
    compose = Compose(tmp_path)
    lab = tmp_path / "lab"
    before = {path: path.read_bytes() for path in lab.rglob("*") if path.name in ("password", "ca.pem", "broker.key")}
    assert {certificate.done for certificate in compose.write()} == {"kept"}
    assert {path: path.read_bytes() for path in before} == before
    assert {c.name: c.done for c in compose.write(NOW + timedelta(days=certs.DAYS))} == {"ca": "kept", "broker": "renewed"}
    assert (lab / "broker" / "broker.key").read_bytes() != before[lab / "broker" / "broker.key"]
    for path in lab.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) in ((0o700,) if path.is_dir() else (0o600, 0o644)), path
        assert path.suffix == ".pem" or path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600, path
    words = b"".join(path.read_bytes() for path in (lab / "broker").iterdir())
    assert str(tmp_path / "lab" / "broker").encode() in words
    for login in (*AGENTS, "door", "operator"):
        assert (lab / login / "password").read_bytes().strip() not in words


def test_the_command_says_what_it_made_and_what_is_wrong(tmp_path, capsys):
    lab = str(tmp_path / "lab")
    assert setup.main([lab, "--agents", "router-1,gguf_factory-2", "--host", "broker", "--as", "/mosquitto/config"]) == 0
    assert "broker.pem made, valid until" in capsys.readouterr().out
    text = (tmp_path / "lab" / "broker" / "mosquitto.conf").read_text()
    assert str(tmp_path) not in text and "certfile /mosquitto/config/broker.pem" in text
    assert setup.main([lab, "--agents", "router-1,painter-1"]) == 2
    assert "'painter-1' is not the id of an agent" in capsys.readouterr().err
    assert setup.main([lab, "--agents", "router-1", "--owner", "nobody=7"]) == 2
    assert "--owner names 'nobody'" in capsys.readouterr().err
