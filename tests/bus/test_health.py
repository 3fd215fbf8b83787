"""The sign of life: there while an agent is connected and can write its store, old or gone otherwise."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bus import BaseAgent, Wiring
from bus.health import STALE, SignOfLife
from bus.process import utc_now
from bus.store import BUSY_SECONDS, Store
from tests.bus.test_agent import Asker, running
from tests.conftest import PlainBroker

BEAT = 0.02


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.agent.BEAT", BEAT)


@pytest.fixture
def agent(broker: PlainBroker, tmp_path: Path) -> BaseAgent:
    return Asker(Wiring("conductor-1", tmp_path / "home", broker.address))


def sign(agent: BaseAgent) -> Path:
    return agent.home / "run" / "conductor-1.alive"


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():
            await asyncio.sleep(BEAT)


def alive(agent: BaseAgent) -> bool:
    return sign(agent).exists()


async def renewed(agent: BaseAgent) -> bool:
    """Whether the sign is written again within some beats."""
    agent._life.end()
    await asyncio.sleep(10 * BEAT)
    return alive(agent)


async def test_a_connected_agent_shows_life_at_once_and_again_and_not_after_its_end(agent: BaseAgent) -> None:
    async with running(agent):
        await until(lambda: alive(agent))
        assert await renewed(agent)
    assert not alive(agent)


async def test_an_agent_without_its_broker_shows_no_life(agent: BaseAgent, broker: PlainBroker) -> None:
    async with running(agent):
        await until(lambda: alive(agent))
        broker.kill()
        await until(lambda: agent._session is None)
        assert not await renewed(agent)
        broker.start()
        await until(lambda: alive(agent))


async def test_an_agent_whose_store_is_locked_shows_no_life_and_is_not_held_up(agent: BaseAgent) -> None:
    async with running(agent):
        await until(lambda: alive(agent) and not agent.store.publications(1))  # it has nothing to write
        other = sqlite3.connect(agent.store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        before = time.monotonic()
        assert not await renewed(agent)
        assert time.monotonic() - before < 5  # a store waits 10 s for a lock, the look at it must not
        other.execute("ROLLBACK")
        other.close()
        assert await renewed(agent)


def test_a_store_waits_for_locks_again_after_it_was_looked_at(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as store:
        assert store.writable()
        assert store.connection.execute("PRAGMA busy_timeout").fetchone()[0] == BUSY_SECONDS * 1000


def test_the_sign_of_a_killed_process_is_gone_when_the_next_one_starts(broker: PlainBroker, tmp_path: Path) -> None:
    old = SignOfLife(tmp_path / "home", "conductor-1")
    old.show(utc_now())
    Asker(Wiring("conductor-1", tmp_path / "home", broker.address)).store.close()
    assert not old.path.exists()


def test_a_refused_second_process_leaves_the_first_one_s_sign(broker: PlainBroker, tmp_path: Path) -> None:
    wiring = Wiring("conductor-1", tmp_path / "home", broker.address)
    first = Asker(wiring)
    first._life.show(utc_now())
    with pytest.raises(Exception, match="in use by another process"):
        Asker(wiring)
    assert first._life.path.exists()
    first.store.close()


@pytest.mark.parametrize(("age", "well"), [(0.0, True), (STALE - 5, True), (STALE + 1, False)])
def test_the_documented_check_compares_the_age(tmp_path: Path, age: float, well: bool) -> None:
    own = SignOfLife(tmp_path, "router-1")
    own.show(utc_now())
    os.utime(own.path, (time.time() - age,) * 2)
    check = f'find "{own.path}" -newermt "-{STALE:.0f} seconds" | grep -q .'
    assert (subprocess.run(["sh", "-c", check], check=False).returncode == 0) is well
