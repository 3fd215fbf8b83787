"""`meetara watch` on a real broker: what is published is seen, a lost broker is told, programs get tagged lines."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from meetara.lab import Lab
from meetara.news import Link
from meetara.screens import watch
from protocol import JobSnapshot, Progress, State
from protocol.job import Stage
from protocol.machine import Card, Presence, ProviderStatus
from protocol.money import BudgetAlert, BudgetReport
from tests.conftest import PlainBroker
from tests.meetara.test_lab import lab_with_publisher, snapshot

LIMIT = 30.0
AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


class Screen(StringIO):
    """A terminal that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def write(self, text: str) -> int:
        self.changed.set()
        return super().write(text)

    async def until(self, test: Callable[[str], bool], writer: asyncio.Task[int]) -> None:
        async with asyncio.timeout(LIMIT):
            while not test(self.getvalue()):
                self.changed.clear()
                waiting = asyncio.create_task(self.changed.wait())
                await asyncio.wait([waiting, writer], return_when=asyncio.FIRST_COMPLETED)
                if writer.done():
                    writer.result()


async def publish_everything(publish) -> None:
    levels = {"role": "router", "agent": "router-1"}
    await publish("card", Card(agent="router-1", role="router", version="1", methods={}), **levels)
    await publish("presence", Presence(agent="router-1", role="router", online=True, at=AT), **levels)
    await publish("provider_status", ProviderStatus(provider="local", status="up", slots=2, free=1, at=AT), provider="local")
    alert = BudgetAlert(
        period="day", since=AT, threshold=80, spent_micros=1, reserved_micros=2, cap_micros=3, note="a note",
        at=AT + timedelta(seconds=1),
    )  # fmt: skip
    await publish("cost_alert", alert)
    await publish("job_state", snapshot(State.TRAINING), job="one")
    await publish("job_progress", Progress(job="one", stage=Stage.TRAIN, attempt=1, step=3, steps=9, at=AT), job="one")


async def test_news_are_typed(broker: PlainBroker, tmp_path) -> None:
    async with lab_with_publisher(broker, tmp_path) as (lab, publish), asyncio.timeout(LIMIT):
        await publish_everything(publish)
        wanted = {Card, Presence, ProviderStatus, BudgetAlert, JobSnapshot, Progress}
        seen: set[type] = set()
        async for item in lab.news():
            seen.add(type(item))
            if seen >= wanted:
                break


async def test_a_broker_that_goes_and_comes_back_is_told(broker: PlainBroker, tmp_path) -> None:
    async with Lab(home=tmp_path, port=broker.address.port) as lab, asyncio.timeout(LIMIT):
        links = asyncio.create_task(first_links(lab))
        screen = Screen()
        console = Console(file=screen, force_terminal=True, width=100, height=30, color_system=None)
        where = {"home": tmp_path, "host": None, "port": broker.address.port, "lab": None}
        watching = asyncio.create_task(watch.watch(where, None, as_json=False, console=console))
        await screen.until(lambda text: "No jobs yet" in text, watching)
        broker.kill()
        await screen.until(lambda text: "connection lost" in text, watching)
        broker.start()
        assert await links == [False, True]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def first_links(lab: Lab) -> list[bool]:
    found: list[bool] = []
    async for item in lab.news():
        found += [item.up] if isinstance(item, Link) else []
        if len(found) == 2:
            break
    return found


async def test_a_terminal_shows_what_is_published(broker: PlainBroker, tmp_path) -> None:
    async with lab_with_publisher(broker, tmp_path) as (lab, publish):
        await publish_everything(publish)
        screen = Screen()
        console = Console(file=screen, force_terminal=True, width=100, height=30, color_system=None)
        where = {"home": tmp_path, "host": None, "port": lab.address.port, "lab": None}
        watching = asyncio.create_task(watch.watch(where, None, as_json=False, console=console))
        await screen.until(lambda text: "1 running" in text and "3/9" in text and "1 of 1 online" in text and "a note" in text, watching)
        await publish("job_state", snapshot(State.DONE, seconds=5, quality_percent=103.0), job="one")
        await screen.until(lambda text: "one is done, quality 103.0 %" in text, watching)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert screen.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


async def test_programs_get_one_tagged_object_a_line(broker: PlainBroker, tmp_path, capsys) -> None:
    async with lab_with_publisher(broker, tmp_path) as (lab, publish):
        await publish_everything(publish)
        where = {"home": tmp_path, "host": None, "port": lab.address.port, "lab": None}
        watching = asyncio.create_task(watch.watch(where, None, as_json=True, console=Console()))
        lines: list[dict] = []
        async with asyncio.timeout(LIMIT):
            while {key for line in lines for key in line} < {"state", "progress", "card", "presence", "provider", "alert"}:
                lines += [json.loads(line) for line in capsys.readouterr().out.splitlines()]
                await asyncio.sleep(0.02)  # stdout tells nobody that it was written to
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert all(len(line) == 1 for line in lines)
    assert next(line["state"]["job"] for line in lines if "state" in line) == "one"


def test_every_kind_of_news_has_a_tag() -> None:
    assert watch.tagged(Link(up=False)) == {"connected": False}
    assert len(set(watch.TAGS.values())) == len(watch.TAGS)
    assert BudgetReport in watch.TAGS and Lab.news.__annotations__
