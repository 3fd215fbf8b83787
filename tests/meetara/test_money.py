"""Budgets, keys and approvals as a person meets them: the screens alone, and over a lab that rents nothing but says so."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import configs
from agents.conductor.agent import ConductorAgent
from agents.cost_monitor.agent import CostMonitorAgent
from agents.router.agent import RouterAgent
from bus import DEFERRED, BaseAgent, Wiring, keys
from configs import Settings
from meetara.cli import app
from meetara.lab import Lab
from meetara.screens import approve, budget
from protocol import Code, JobSnapshot, LabError, State
from protocol.job import TrainRequest, digest
from protocol.machine import Offer, Quote
from protocol.money import EmergencyReport, Entry, PeriodReport, StoppedRental
from protocol.signature import Signature, submission
from tests.agents.gpu_orchestrator.market.samples import plan
from tests.conftest import PlainBroker

AT = datetime(2026, 3, 4, 12, tzinfo=UTC)
DOLLAR = 1_000_000


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


# what is shown


def month(until: datetime = datetime(2026, 4, 1, tzinfo=UTC)) -> PeriodReport:
    return PeriodReport(
        period="month", since=datetime(2026, 3, 1, tzinfo=UTC), until=until, cap_micros=50 * DOLLAR, spent_micros=DOLLAR,
        reserved_micros=0, percent=2.0,
    )  # fmt: skip


def test_the_chart_has_a_bar_for_each_day_and_none_where_nothing_was_spent() -> None:
    text = budget.chart({"2026-03-01": DOLLAR, "2026-03-03": 4 * DOLLAR, "2026-03-04": 1}, month()).plain
    assert "from 2026-03-01  ▂ █▁  2026-03-04; most on 2026-03-03: $4.00" in text


def test_csv_has_every_entry_exactly_and_quotes_what_needs_it() -> None:
    facts = {"at": AT, "reservation": "r", "job": "a,b", "provider": "vast", "domain": "sleep", "rental": "", "counts_at": AT}
    text = budget.table(
        [Entry(number=1, kind="reserve", amount_micros=1_234_567, note="", **facts),
         Entry(number=2, kind="correct", amount_micros=-500_001, note='it said "less"', **facts)]
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["amount_usd"] for row in rows] == ["1.234567", "-0.500001"]
    assert (rows[1]["job"], rows[1]["note"], rows[1]["amount_micros"]) == ("a,b", 'it said "less"', "-500001")


# keys, without a lab


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_keys_are_made_added_listed_and_removed(tmp_path: Path) -> None:
    here, there = ["--home", tmp_path / "here"], ["--home", tmp_path / "there"]
    assert "nobody can approve it" in call("keys", "list", *here).stdout
    made = json.loads(call("keys", "make", *here, "--json").stdout)
    other = json.loads(call("keys", "make", *there, "--json").stdout)
    assert call("keys", "add", "ana", other["key"], *here).exit_code == 0
    listed = json.loads(call("keys", "list", *here, "--json").stdout)
    assert listed == {"own": made["key"], "trusted": {"owner": made["key"], "ana": other["key"]}}
    assert f"{made['key']}  owner  (this home)" in call("keys", "list", *here).stdout
    assert call("keys", "remove", "ana", *here).exit_code == 0
    assert list(keys.trusted(tmp_path / "here" / keys.FOLDER)) == ["owner"]
    for wrong, told in (
        (["make"], "is there already"), (["add", "owner", other["key"]], "is trusted already"),
        (["add", "bo", "abc"], "is no public key"), (["remove", "bo"], "there is no key 'bo'"),
    ):  # fmt: skip
        outcome = call("keys", *wrong, *(["--name", "x"] if wrong == ["make"] else []), *here)
        assert outcome.exit_code == 2 and told in outcome.stderr
    assert list(keys.trusted(tmp_path / "here" / keys.FOLDER)) == ["owner"], "a refused call leaves nothing behind"


def test_a_signed_request_can_be_sent_with_any_client(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text('{"domain": "sleep", "dataset": "file:///data/sleep.jsonl", "budget_usd": 3}')
    call("keys", "make", "--home", tmp_path)
    printed = json.loads(call("keys", "sign", request, "--id", "sleep-1", "--home", tmp_path).stdout)
    signature = Signature.model_validate(printed.pop("signature"))
    assert printed.pop("id") == "sleep-1"
    keys.check(signature, submission("lab", "sleep-1", digest(TrainRequest.model_validate(printed))))
    assert call("keys", "sign", request, "--home", tmp_path / "none").exit_code == 2
    request.write_text("[]")
    assert "is no request" in call("keys", "sign", request, "--home", tmp_path).stderr


# over a lab


class Planner(BaseAgent):
    """A factory that plans everything alike."""

    role = "gguf_factory"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["job.plan"] = lambda message, tx: plan()


class Seller(BaseAgent):
    """An orchestrator with one paid machine, which it never hands out."""

    role = "gpu_orchestrator"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.quotes = 0
        self.leases: list[str] = []
        self.reservation_micros = DOLLAR
        self.holds = timedelta(hours=1)
        self.message_handlers |= {"offer.quote": self._quote, "lease.request": self._lease}
        self.message_handlers["lease.release"] = lambda message, tx: self.params(message) and _empty()

    def _quote(self, message: Any, tx: Any) -> Quote:
        self.quotes += 1
        offer = Offer(
            provider="vast", machine="ask-7", price_micros_per_hour=500_000, seconds_p50=1800, seconds_p90=3600,
            cost_p50_micros=250_000, cost_p90_micros=500_000, reservation_micros=self.reservation_micros, gpu="A100",
            spot=True, expires_at=tx.now + self.holds,
        )  # fmt: skip
        return Quote(job=self.params(message).job, choice=offer)

    def _lease(self, message: Any, tx: Any) -> Any:
        self.leases.append(self.params(message).job)
        return DEFERRED


def _empty() -> Any:
    from protocol.job import Empty

    return Empty()


class Ground:
    """A lab of which every agent shares one home, and a person at a terminal."""

    def __init__(self, home: Path, broker: PlainBroker) -> None:
        self.home = home
        self.where = {"home": home, "host": broker.address.host, "port": broker.address.port, "lab": None}
        self.out = io.StringIO()
        self.console = Console(file=self.out, width=200)
        wired = lambda name: Wiring(name, home, broker.address)  # noqa: E731
        known = configs.load(Settings.read())
        self.seller = Seller(wired("gpu_orchestrator-1"))
        self.agents: list[BaseAgent] = [
            RouterAgent(wired("router-1"), known), ConductorAgent(wired("conductor-1")),
            CostMonitorAgent(wired("cost_monitor-1"), known), self.seller, Planner(wired("f1")),
        ]  # fmt: skip

    def said(self) -> str:
        text = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return text


@pytest.fixture
async def ground(broker: PlainBroker, tmp_path: Path) -> AsyncIterator[Ground]:
    made = Ground(tmp_path, broker)
    tasks = [asyncio.create_task(agent.run()) for agent in made.agents]
    async with Lab(**made.where) as lab, asyncio.timeout(30):
        while await lab.online(*(agent.role for agent in made.agents)) != {agent.role for agent in made.agents}:
            pass  # each look waits a moment for what is retained
    yield made
    for agent in made.agents:
        agent._stop.set()
    await asyncio.gather(*tasks)


async def submit(lab: Lab, id: str) -> State:
    job = await lab.train(domain="sleep", dataset="/data/sleep.jsonl", id=id, timeout=30)
    assert job.submitted is not None
    return job.submitted.state


async def until(lab: Lab, id: str, holds: Callable[[JobSnapshot], bool]) -> None:
    async with asyncio.timeout(30):
        async for snapshot in (await lab.job(id)).states():
            if holds(snapshot):
                return


async def test_what_costs_money_waits_is_shown_approved_or_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    approve_it = {"yes": True, "as_json": False, "console": ground.console}
    async with Lab(**ground.where) as lab:
        assert [await submit(lab, id) for id in ("a", "b")] == [State.AWAITING_APPROVAL] * 2
        with pytest.raises(LabError, match="has no key to sign with") as caught:
            await approve.approve(ground.where, "a", **approve_it)
        assert caught.value.code is Code.CONFIGURATION
        call("keys", "make", "--home", ground.home)
        with pytest.raises(LabError, match=r"this costs money: A100 \(spot, may be taken away\) of vast for \$0\.50 an hour"):
            await approve.approve(ground.where, "a", yes=False, as_json=True, console=ground.console)
        assert (await lab.budget()).open_reservations == [] and ground.seller.leases == []

        assert await approve.approve(ground.where, "a", **approve_it) == 0
        assert "a  approved" in ground.said()
        await until(lab, "a", lambda snapshot: snapshot.state is State.PROVISIONING)
        assert [item.job for item in (await lab.budget()).open_reservations] == ["a"]
        for again, told in (("a", "it does not wait for approval"), ("nope", "there is no job 'nope'")):
            with pytest.raises(LabError, match=told):
                await approve.approve(ground.where, again, **approve_it)
        with pytest.raises(LabError, match="`meetara cancel a` ends it"):
            await approve.refuse(ground.where, "a", as_json=False, console=ground.console)
        assert await approve.refuse(ground.where, "b", as_json=False, console=ground.console) == 0
        assert "b  cancelled" in ground.said()
        assert await submit(lab, "signed") in (State.RESERVED, State.PROVISIONING), "the home's key signs by itself"

        ground.seller.holds = timedelta(0)
        (ground.home / keys.FOLDER / keys.PRIVATE).rename(ground.home / "aside")
        assert await submit(lab, "c") is State.AWAITING_APPROVAL
        (ground.home / "aside").rename(ground.home / keys.FOLDER / keys.PRIVATE)
        ground.seller.reservation_micros = 1_200_000
        quotes = ground.seller.quotes
        await approve.approve(ground.where, "c", **approve_it)
        await until(lab, "c", lambda snapshot: "The price rose by more than 10 %" in (snapshot.reason or ""))
        assert ground.seller.quotes == quotes + 1
        assert set(ground.seller.leases) <= {"a", "signed"}, "nothing was asked of a machine for the others"


async def test_budgets_are_shown_changed_approved_and_exported(ground: Ground, tmp_path: Path, capsys: Any) -> None:
    plainly = {"as_json": False, "console": ground.console}
    await budget.change(ground.where, "monthly_usd", "80", **plainly)
    assert "monthly_usd stays $50.00: $80.00 waits for who may spend" in ground.said()
    await budget.budget(ground.where, **plainly)
    shown = ground.said()
    assert "monthly_usd = $80.00 waits for approval" in shown and "50 %, 80 %, 90 %, 95 %" in shown
    call("keys", "make", "--home", ground.home)
    await approve.approve(ground.where, "budget", yes=True, **plainly)
    assert "monthly_usd is $80.00." in ground.said()
    with pytest.raises(LabError, match="no budget waits"):
        await approve.approve(ground.where, "budget", yes=True, **plainly)
    await budget.change(ground.where, "weekly_usd", "30", **plainly)
    assert "weekly_usd is $30.00." in ground.said(), "a signed raise holds at once"
    async with Lab(**ground.where) as lab:
        await submit(lab, "a")
    for name, usd, told in (
        ("daily_usd", "-5", "greater than or equal to 0"), ("daily_usd", "0.5", r"daily_usd cannot be \$0\.50"),
        ("yearly_usd", "5", "is no budget"), ("daily_usd", "much", "is no sum"),
    ):  # fmt: skip
        with pytest.raises(LabError, match=told):
            await budget.change(ground.where, name, usd, **plainly)
    await budget.change(ground.where, "daily_usd", "1", **plainly)
    rental = StoppedRental(rental="r-1", provider="vast", job="a", verified_gone_at=AT, cost_micros=DOLLAR)
    with ground.seller.transaction() as tx:
        tx.publish("cost_stopped", EmergencyReport(began_at=AT, stopped=[rental], at=AT))
    shown = ""
    async with asyncio.timeout(30):
        while "r-1" not in shown:  # what is retained has come, if the machine is not too busy
            ground.said()
            await budget.budget(ground.where, **plainly)
            shown = ground.said()
    assert "Paid work is frozen: no paid work starts" in shown and "$1.00" in shown and "2026-03-04 12:00:00" in shown
    await budget.change(ground.where, "daily_usd", "5", **plainly)
    target = tmp_path / "ledger.csv"
    await budget.export(ground.where, str(target), console=ground.console)
    assert [row["kind"] for row in csv.DictReader(target.open())] == ["reserve"]
    assert "1 entries in" in ground.said()
    capsys.readouterr()
    await budget.budget(ground.where, as_json=True, console=ground.console)
    report = json.loads(capsys.readouterr().out)
    assert [period["cap_micros"] for period in report["periods"]] == [5 * DOLLAR, 30 * DOLLAR, 80 * DOLLAR]
    assert report["periods"][2]["forecast_micros"] is None and report["mode"] == "normal"
