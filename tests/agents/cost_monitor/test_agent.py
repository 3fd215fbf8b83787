"""The cost monitor's shell over a real store."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.cost_monitor.agent import CostMonitorAgent
from bus import BrokerAddress, Wiring, keys
from bus.freeze import read_freeze, write_freeze
from configs import Settings
from protocol import MCPMessage
from protocol.signature import Signature, signed_text

DOLLAR = 1_000_000
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def monitor(tmp_path: Path, clock: Clock) -> AsyncIterator[CostMonitorAgent]:
    wiring = Wiring("cost_monitor-1", tmp_path, BrokerAddress("127.0.0.1", 1), now=clock)
    agent = CostMonitorAgent(wiring, configs.load(Settings.read()))
    yield agent
    agent.store.close()


async def ask(agent: CostMonitorAgent, identity: str, method: str, **data: Any) -> dict[str, Any]:
    await agent.handle_message(MCPMessage(id=identity, type=method, data=data))
    row = agent.store.find_call(identity)
    assert row is not None and row["state"] == "done"
    return json.loads(row["reply"])


async def reserve(agent: CostMonitorAgent, identity: str, amount: int, provider: str = "local") -> dict[str, Any]:
    return await ask(
        agent, identity, "budget.reserve", job="j", amount_micros=amount, provider=provider, domain="sleep", priority=1
    )


def topics(agent: CostMonitorAgent) -> list[str]:
    rows = agent.store.connection.execute("SELECT topic FROM publications ORDER BY number")
    return [row["topic"].removeprefix("meetara/v1/lab/") for row in rows]


async def test_the_call_names_the_reservation_so_a_repetition_makes_no_second(monitor):
    first = await reserve(monitor, "j:reserve", DOLLAR)
    assert first["result"] == {"reservation": "j:reserve", "job": "j", "amount_micros": DOLLAR}
    assert await reserve(monitor, "j:reserve", DOLLAR) == first
    assert monitor.store.connection.execute("SELECT count(*) FROM entries").fetchone()[0] == 1
    assert topics(monitor) == ["cost/mode"]


async def test_a_reservation_that_does_not_fit_is_refused_with_the_sums(monitor):
    reply = await reserve(monitor, "r", 9 * DOLLAR)
    assert reply["error"]["code"] == -32006
    assert "needs $9.00" in reply["error"]["message"] and reply["error"]["data"]["cap_micros"] == 5 * DOLLAR
    assert monitor.store.connection.execute("SELECT count(*) FROM entries").fetchone()[0] == 0


async def test_a_jump_over_all_thresholds_is_alerted_and_the_last_is_an_emergency(monitor):
    await reserve(monitor, "r", 4_800_000)
    assert topics(monitor) == ["cost/alert"] * 4 + ["cost/mode", "cost/emergency"]


async def test_settling_and_the_report(monitor):
    await reserve(monitor, "r", DOLLAR)
    assert (await ask(monitor, "s", "budget.settle", reservation="r", job="j", amount_micros=7))["result"] == {}
    report = (await ask(monitor, "q", "budget.report"))["result"]
    assert report["jobs"] == {"j": 7} and report["open_reservations"] == []
    assert [item["spent_micros"] for item in report["periods"]] == [7, 7, 7]


async def test_the_ledger_survives_the_process(monitor):
    await reserve(monitor, "r", DOLLAR)
    monitor.store.close()
    monitor.__init__(monitor.wiring, configs.load(Settings.read()))
    report = (await ask(monitor, "q", "budget.report"))["result"]
    assert report["open_reservations"] == [{"reservation": "r", "job": "j", "amount_micros": DOLLAR}]


def last(agent: CostMonitorAgent, topic: str) -> dict[str, Any] | None:
    """What stays retained on a topic; None: it was cleared."""
    row = agent.store.connection.execute(
        "SELECT payload FROM publications WHERE topic = ? ORDER BY number DESC", (f"meetara/v1/lab/{topic}",)
    ).fetchone()
    return json.loads(row["payload"]) if row["payload"] else None


def sent(agent: CostMonitorAgent) -> None:
    agent.store.connection.execute("DELETE FROM publications")


async def test_the_highest_threshold_of_a_jump_stays_and_says_what_changes(monitor):
    await reserve(monitor, "r", 4_200_000)
    alert, mode = last(monitor, "cost/alert"), last(monitor, "cost/mode")
    assert alert["threshold"] == 80 and "paid jobs of priority 1 wait" in alert["changes"]
    assert (mode["mode"], mode["period"], mode["until"]) == ("optimise", "day", "2026-03-05T00:00:00Z")
    report = (await ask(monitor, "q", "budget.report"))["result"]
    assert report["mode"] == "optimise" and report["changes"] == mode["changes"] == alert["changes"]


async def test_a_freeze_is_told_on_the_bus_and_in_the_home_and_ends_with_the_period(monitor, clock, tmp_path):
    await reserve(monitor, "r", 4_800_000)
    found = read_freeze(tmp_path)
    assert found is not None and (found.period, found.reserved_micros, found.cap_micros) == ("day", 4_800_000, 5 * DOLLAR)
    assert last(monitor, "cost/emergency")["threshold"] == 95 and last(monitor, "cost/mode")["mode"] == "frozen"
    await ask(monitor, "s", "budget.settle", reservation="r", job="j", amount_micros=DOLLAR)
    assert read_freeze(tmp_path) == found, "what is freed meanwhile starts nothing"
    assert (await reserve(monitor, "p", DOLLAR, "vast"))["error"]["data"]["period"] == "day"
    sent(monitor)
    clock.at = datetime(2026, 3, 5, tzinfo=UTC)
    monitor.fire_due()
    assert read_freeze(tmp_path) is None and topics(monitor) == ["cost/alert", "cost/mode", "cost/emergency"]
    assert (last(monitor, "cost/alert"), last(monitor, "cost/emergency")) == (None, None)
    assert last(monitor, "cost/mode")["mode"] == "normal"
    assert "result" in await reserve(monitor, "p2", DOLLAR, "vast")
    assert monitor.store.connection.execute("SELECT count(*) FROM timers").fetchone()[0] == 0


async def test_a_clock_that_is_set_over_the_end_of_a_day_ends_the_freeze_at_once(monitor, clock, tmp_path):
    await reserve(monitor, "r", 4_800_000)
    await ask(monitor, "s", "budget.release", reservation="r", job="j")
    clock.at = NOON + timedelta(days=1)
    monitor.follow_clock(86_400)  # as the agent's loop does when it notices
    monitor.fire_due()
    assert read_freeze(tmp_path) is None


async def test_the_end_of_a_period_is_seen_after_a_time_away(monitor, clock, tmp_path):
    await reserve(monitor, "r", 4_800_000)
    await ask(monitor, "s", "budget.release", reservation="r", job="j")
    sent(monitor)
    clock.at = NOON + timedelta(days=1)
    monitor.broker_forgot()
    assert read_freeze(tmp_path) is None and topics(monitor) == ["cost/mode", "cost/emergency"]
    assert last(monitor, "cost/emergency") is None


async def test_a_broker_that_lost_its_memory_is_told_again(monitor, tmp_path):
    await reserve(monitor, "r", 4_800_000)
    sent(monitor)
    write_freeze(tmp_path, None)
    monitor.broker_forgot()
    assert topics(monitor) == ["cost/alert", "cost/mode", "cost/emergency"]
    assert last(monitor, "cost/alert")["threshold"] == 95
    assert read_freeze(tmp_path) is not None, "and the stop file is made again"


async def test_bills_parts_and_pages_over_the_bus(monitor):
    await reserve(monitor, "r", DOLLAR, "vast")
    extended = await ask(monitor, "e", "budget.extend", reservation="r", job="j", amount_micros=2 * DOLLAR)
    assert extended["result"]["amount_micros"] == 2 * DOLLAR
    await ask(
        monitor, "s", "budget.settle", reservation="r", job="j", amount_micros=DOLLAR, rental="i1", bill_follows=True
    )
    bill = {"provider": "vast", "rental": "i1", "jobs": {"j": DOLLAR}, "billed_micros": 1_200_000,
            "since": NOON.isoformat(), "until": NOON.isoformat()}  # fmt: skip
    found = (await ask(monitor, "b", "budget.bill", **bill))["result"]
    assert (found["correction_micros"], found["drift_percent"], found["frozen"]) == (200_000, 20.0, None)
    alert = last(monitor, "cost/alert")
    assert (alert["own_micros"], alert["billed_micros"], alert["rental"]) == (DOLLAR, 1_200_000, "i1")
    page = (await ask(monitor, "p", "budget.entries", after=1))["result"]
    assert [entry["kind"] for entry in page["entries"]] == ["extend", "settle", "correct"] and not page["more"]
    assert (await ask(monitor, "q", "budget.report"))["result"]["open_reservations"] == []


@pytest.fixture
def sign(tmp_path: Path) -> Callable[..., Signature]:
    key = keys.make(tmp_path / "keys")
    keys.trust(tmp_path / "keys", "me", key.public)
    return lambda *parts, lab="lab": key.sign(signed_text(lab, *parts))


async def test_a_raise_waits_for_a_signature_and_ends_a_freeze(monitor, tmp_path, sign):
    await reserve(monitor, "r", 4_800_000)
    waits = (await ask(monitor, "1", "budget.set", name="daily_usd", usd=8))["result"]
    assert waits["state"] == "waits" and read_freeze(tmp_path) is not None
    assert (await ask(monitor, "q", "budget.report"))["result"]["wishes"] == {"daily_usd": 8 * DOLLAR}
    at = NOON.isoformat()
    signed = sign("budget.set", "daily_usd", 8 * DOLLAR, at).model_dump()
    reply = await ask(monitor, "2", "budget.set", name="daily_usd", usd=8, at=at, signature=signed)
    assert reply["result"]["state"] == "set" and read_freeze(tmp_path) is None
    sent(monitor)
    await reserve(monitor, "more", 1_700_000)
    assert topics(monitor) == ["cost/alert", "cost/mode"] and last(monitor, "cost/alert")["threshold"] == 80, "told again"
    report = (await ask(monitor, "q2", "budget.report"))["result"]
    assert report["periods"][0]["cap_micros"] == 8 * DOLLAR and report["wishes"] == {} and not report["frozen"]


@pytest.mark.parametrize(("usd", "told"), [(-1, "greater than or equal to 0"), (4.5, "daily_usd cannot be $4.50")])
async def test_a_wrong_budget_is_refused_and_nothing_changes(monitor, usd, told):
    await reserve(monitor, "r", 4_600_000)
    reply = await ask(monitor, "1", "budget.set", name="daily_usd", usd=usd)
    assert told in reply["error"]["message"]
    assert (await ask(monitor, "q", "budget.report"))["result"]["periods"][0]["cap_micros"] == 5 * DOLLAR


async def test_a_signature_for_another_sum_lab_or_by_another_key_raises_nothing(monitor, tmp_path, sign):
    at = NOON.isoformat()
    stranger = keys.make(tmp_path / "elsewhere").sign(signed_text("lab", "budget.set", "daily_usd", 8 * DOLLAR, at))
    for number, (signature, told) in enumerate([
        (sign("budget.set", "daily_usd", 7 * DOLLAR, at), "not of this request"),
        (sign("budget.set", "daily_usd", 8 * DOLLAR, at, lab="other"), "not of this request"),
    ]):  # fmt: skip
        reply = await ask(
            monitor, str(number), "budget.set", name="daily_usd", usd=8, at=at, signature=signature.model_dump()
        )
        assert told in reply["error"]["message"]
    reply = await ask(monitor, "s", "budget.set", name="daily_usd", usd=8, at=at, signature=stranger.model_dump())
    assert reply["result"]["state"] == "waits", "a key that the lab does not trust is as good as none"
    assert (await ask(monitor, "q", "budget.report"))["result"]["periods"][0]["cap_micros"] == 5 * DOLLAR


async def test_a_frozen_provider_is_told_and_trusted_again_by_a_signature(monitor, sign):
    await reserve(monitor, "r", DOLLAR, "vast")
    await ask(monitor, "s", "budget.settle", reservation="r", job="j", amount_micros=DOLLAR + 1)
    assert list(last(monitor, "cost/mode")["frozen_providers"]) == ["vast"]
    assert "meetara budget unfreeze vast" in (await reserve(monitor, "r2", 1, "vast"))["error"]["message"]
    at = (NOON + timedelta(seconds=1)).isoformat()
    signed = sign("budget.unfreeze", "vast", at).model_dump()
    assert (await ask(monitor, "u", "budget.unfreeze", provider="vast", at=at, signature=signed))["result"] == {}
    assert last(monitor, "cost/mode")["frozen_providers"] == {}
    assert "result" in await reserve(monitor, "r3", 1, "vast")
