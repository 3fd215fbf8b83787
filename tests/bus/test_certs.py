"""Certificates: made once, kept, renewed in time, and refused where they must be."""

from __future__ import annotations

import asyncio
import ssl
import stat
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import pytest

from bus import certs
from bus.address import BrokerAddress
from bus.broker import free_port
from bus.door import Door
from bus.mosquitto import find_mosquitto
from bus.session import Session
from protocol import Code, LabError
from protocol.address import Endpoint
from tests.conftest import PlainBroker

NOW = datetime.now(UTC).replace(microsecond=0)


def made(folder: Path, **options) -> dict[str, str]:
    found = certs.make(folder, **{"hosts": ["lab.example"], "now": NOW, **options})
    return {certificate.name: certificate.done for certificate in found}


def test_a_second_run_keeps_everything_and_private_keys_are_private(tmp_path):
    assert made(tmp_path, agents=["router-1"]) == {"ca": "made", "broker": "made", "router-1": "made"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert made(tmp_path, agents=["router-1"]) == {"ca": "kept", "broker": "kept", "router-1": "kept"}
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for path in tmp_path.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_what_ends_soon_is_renewed_for_the_same_hosts_and_by_the_same_authority(tmp_path):
    made(tmp_path, hosts=["lab.example", "192.0.2.7"])
    authority = (tmp_path / "ca.pem").read_bytes()
    later = NOW + timedelta(days=certs.DAYS - certs.RENEW_DAYS)
    assert made(tmp_path, hosts=[], now=later - timedelta(days=1))["broker"] == "kept"
    assert made(tmp_path, hosts=[], now=later)["broker"] == "renewed"
    assert {"lab.example", "192.0.2.7", "localhost"} <= set(certs.known_hosts(tmp_path))
    assert certs.expiry(tmp_path / "broker.pem") == later + timedelta(days=certs.DAYS)
    assert (tmp_path / "ca.pem").read_bytes() == authority


def test_another_host_needs_force(tmp_path):
    made(tmp_path)
    before = (tmp_path / "broker.pem").read_bytes()
    with pytest.raises(LabError, match=r"not for other\.example.*--force") as caught:
        made(tmp_path, hosts=["other.example"])
    assert caught.value.code is Code.CONFLICT
    assert (tmp_path / "broker.pem").read_bytes() == before
    assert made(tmp_path, hosts=["other.example"], force=True) == {"ca": "made", "broker": "made"}
    assert "other.example" in certs.known_hosts(tmp_path)


def test_an_authority_near_its_end_signs_nothing(tmp_path):
    made(tmp_path)
    with pytest.raises(LabError, match="--force"):
        made(tmp_path, now=NOW + timedelta(days=certs.AUTHORITY_DAYS - certs.DAYS + 1))


def test_a_damaged_file_is_named(tmp_path):
    made(tmp_path)
    (tmp_path / "broker.pem").write_text("no certificate")
    with pytest.raises(LabError, match=r"broker\.pem cannot be read.*--force"):
        made(tmp_path)


@asynccontextmanager
async def tls_door(folder: Path, broker: PlainBroker, host: str = "127.0.0.1", **options):
    certs.make(folder, **{"hosts": [], "now": NOW, **options})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "broker.pem", folder / "broker.key")
    target = BrokerAddress(broker.address.host, broker.address.port, "someone", "")
    door = Door(Endpoint(host, 0), target, tls=context)
    await door.open()
    try:
        yield door
    finally:
        await door.close()


async def connect(door: Door, ca: Path | None, host: str = "127.0.0.1", *, tls: bool = True) -> None:
    async with asyncio.timeout(15):
        async with Session.connect(BrokerAddress(host, door.port, tls=tls, ca=ca), "someone", durable=False):
            pass


async def test_a_client_with_the_authority_gets_in_and_one_with_another_is_told(broker, tmp_path):
    certs.make(tmp_path / "other", hosts=[], now=NOW)
    async with tls_door(tmp_path / "certs", broker) as door:
        await connect(door, tmp_path / "certs" / "ca.pem")
        await connect(door, tmp_path / "certs" / "ca.pem", "localhost")
        for authority in (tmp_path / "other" / "ca.pem", None):
            with pytest.raises(LabError, match=r"certificate of mqtts://127.* is refused.*MEETARA_BROKER_CA") as caught:
                await connect(door, authority)
            assert caught.value.code is Code.CONFIGURATION


async def test_a_certificate_that_has_ended_is_told_as_such(broker, tmp_path):
    async with tls_door(tmp_path / "certs", broker, now=NOW - timedelta(days=certs.DAYS + 1)) as door:
        with pytest.raises(LabError, match=r"expired.*meetara certs"):
            await connect(door, tmp_path / "certs" / "ca.pem")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
async def test_a_host_that_the_certificate_does_not_name_is_told_as_such(broker, tmp_path):
    async with tls_door(tmp_path / "certs", broker, "127.0.0.2") as door:
        with pytest.raises(LabError, match=r"IP address mismatch.*meetara certs --host 127\.0\.0\.2"):
            await connect(door, tmp_path / "certs" / "ca.pem", "127.0.0.2")


async def test_tls_where_none_is_spoken_is_told_as_such(tmp_path):
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        address = BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
        with pytest.raises(LabError, match=r"does not speak TLS.*mqtt://"):
            async with Session.connect(address, "someone", durable=False):
                pass


async def test_an_authority_that_is_no_file_is_named(tmp_path):
    address = BrokerAddress("127.0.0.1", 1, tls=True, ca=tmp_path / "none.pem")
    with pytest.raises(LabError, match=r"none\.pem cannot be read.*MEETARA_BROKER_CA"):
        async with Session.connect(address, "someone", durable=False):
            pass


async def test_an_agents_certificate_opens_a_broker_that_asks_for_one(tmp_path):
    folder, port = tmp_path / "certs", free_port()
    certs.make(folder, hosts=[], agents=["router-1"], now=NOW)
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\ncafile {folder}/ca.pem\ncertfile {folder}/broker.pem\n"
        f"keyfile {folder}/broker.key\nrequire_certificate true\nuse_identity_as_username true\nlog_dest none\nuser root\n"
    )
    process = await asyncio.create_subprocess_exec(str(find_mosquitto()), "-c", str(conf), stderr=subprocess.DEVNULL)
    environment = {"MEETARA_BROKER": f"mqtts://127.0.0.1:{port}", "MEETARA_BROKER_CA": str(folder / "ca.pem")}
    try:
        with_it = BrokerAddress.read({**environment, "MEETARA_BROKER_CERT": str(folder / "router-1.pem")})
        async with asyncio.timeout(15):
            while True:
                try:
                    async with Session.connect(with_it, "router-1", durable=False):
                        break
                except aiomqtt.MqttError:
                    await asyncio.sleep(0.02)
        with pytest.raises(aiomqtt.MqttError):
            async with Session.connect(BrokerAddress.read(environment), "router-1", durable=False):
                pass
    finally:
        process.kill()
        await process.wait()
    with pytest.raises(LabError, match="MEETARA_BROKER_CERT"):
        BrokerAddress.read({**environment, "MEETARA_BROKER_CERT": str(folder / "none.pem")}).tls_context()
