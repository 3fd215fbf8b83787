"""People from elsewhere: no listener without TLS and logins, and with them who may come in."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bus import certs
from bus.address import is_loopback
from bus.broker import Broker, free_port
from bus.mosquitto import find_mosquitto
from configs import Settings
from meetara.cli import app
from meetara.lab import Lab
from meetara.listener import listener
from meetara.supervise import supervised
from protocol import Code, LabError
from protocol.address import Endpoint

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


def call(home: Path, *arguments: str) -> dict:
    outcome = CliRunner().invoke(app, [*arguments, "--home", str(home), "--json"])
    return json.loads(outcome.stdout)


@asynccontextmanager
async def lab_on(home: Path, listen: str):
    settings = Settings.read(home=home, listen=listen)
    async with supervised(settings, port=0, tell=lambda _: None, roles=("cost_monitor",)) as lab:
        yield lab


async def refusal(home: Path, listen: str = "0.0.0.0") -> LabError:
    with pytest.raises(LabError) as caught:
        async with lab_on(home, listen):
            pass
    assert not (home / "run" / "up.json").exists()
    return caught.value


async def test_a_listener_beyond_loopback_needs_a_certificate_that_is_valid_and_a_login(tmp_path):
    for listen in ("0.0.0.0", "[::]:9999", "192.0.2.1", "lab.example"):
        refused = await refusal(tmp_path, listen)
        assert refused.code is Code.CONFIGURATION and "needs TLS" in str(refused) and "meetara certs" in refused.advice
    made = call(tmp_path, "certs")
    assert {item["done"] for item in made["certificates"]} == {"made"} and socket.gethostname() in made["hosts"]
    refused = await refusal(tmp_path)
    assert "needs logins" in str(refused) and "meetara user add" in refused.advice
    assert call(tmp_path, "user", "add", "alice")["user"] == "alice"
    certs.make(tmp_path / "certs", hosts=[], now=NOW - timedelta(days=certs.DAYS + 1), force=True)
    refused = await refusal(tmp_path)
    assert "ended on" in str(refused) and "meetara certs" in refused.advice
    assert {item["done"] for item in call(tmp_path, "certs")["certificates"]} == {"kept", "renewed"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
async def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    with socket.socket() as owner:
        owner.bind(("127.0.0.2", 0))
        owner.listen()
        refused = await refusal(tmp_path, f"127.0.0.2:{owner.getsockname()[1]}")
    assert refused.code is Code.BUSY and "--listen" in refused.advice and f"pid {os.getpid()}" in str(refused)


async def test_who_has_the_authority_and_a_login_comes_in_and_nobody_else(tmp_path, monkeypatch):
    call(tmp_path, "certs")
    certs.make(tmp_path / "other", hosts=[], now=NOW)
    port = free_port()
    password = call(tmp_path, "user", "add", "alice")["password"]
    there = {"home": tmp_path / "elsewhere", "host": f"mqtts://localhost:{port}"}

    async def come(authority: Path, user: str | None = None, password: str = "") -> int:
        monkeypatch.setenv("MEETARA_BROKER_CA", str(authority))
        monkeypatch.setenv("MEETARA_BROKER_USER", user or "")
        monkeypatch.setenv("MEETARA_BROKER_PASSWORD", password)
        async with Lab(**there) as lab:
            return len((await lab.budget()).periods)

    mine = tmp_path / "certs" / "ca.pem"
    async with lab_on(tmp_path, f"0.0.0.0:{port}") as lab:
        assert lab.listening == f"mqtts://0.0.0.0:{port}"
        async with Lab(home=tmp_path) as local:
            assert len((await local.budget()).periods) == 3, "people on this machine need nothing"
        assert await come(mine, "alice", password) == 3
        with pytest.raises(LabError, match=r"nobody in who has no login.*meetara user add"):
            await come(mine)
        with pytest.raises(LabError, match="the login 'alice' not in"):
            await come(mine, "alice", "guess")
        with pytest.raises(LabError, match=r"certificate.*MEETARA_BROKER_CA"):
            await come(tmp_path / "other" / "ca.pem", "alice", password)
        operator = json.loads((tmp_path / "broker" / "passwords.json").read_text())["operator"]
        assert operator not in (tmp_path / "broker" / "dynamic-security.json").read_text()
    with pytest.raises(LabError) as caught:
        await come(mine, "alice", password)
    assert caught.value.code is Code.UNREACHABLE, "the door is closed with the lab"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
async def test_another_loopback_address_asks_for_nothing(tmp_path):
    port = free_port("127.0.0.2")
    async with lab_on(tmp_path, f"127.0.0.2:{port}"), Lab(home=tmp_path / "e", host="127.0.0.2", port=port) as lab:
        assert len((await lab.budget()).periods) == 3


def test_loopback_speaks_tls_where_it_is_asked_for(tmp_path):
    call(tmp_path, "certs")
    call(tmp_path, "user", "add", "alice")
    broker = Broker(tmp_path, 0, agents={}, program=find_mosquitto())
    assert listener(Endpoint.parse("127.0.0.1:1"), tmp_path, broker, NOW).tls is None
    assert listener(Endpoint.parse("mqtts://127.0.0.1:1"), tmp_path, broker, NOW).tls is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "lab.example", "localhost.example"])
def test_not_loopback(host):
    assert not is_loopback(host)


def test_logins_are_added_listed_and_removed_while_nothing_runs(tmp_path):
    assert call(tmp_path, "user", "add", "alice")["password"]
    assert call(tmp_path, "user", "add", "alice")["error"]["code"] == Code.CONFLICT
    assert call(tmp_path, "user", "list") == {"users": ["alice"]}
    assert call(tmp_path, "user", "remove", "alice") == {"removed": "alice"}
    assert call(tmp_path, "user", "remove", "alice")["error"]["code"] == Code.NOT_FOUND
    assert call(tmp_path, "user", "list") == {"users": []}
