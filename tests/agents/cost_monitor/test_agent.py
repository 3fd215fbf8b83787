"""The cost monitor's shell over a real store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.cost_monitor.agent import CostMonitorAgent
from bus import BrokerAddress, Wiring
from configs import Settings
from protocol import MCPMessage

DOLLAR = 1_000_000


@pytest.fixture
async def monitor(tmp_path: Path) -> Iterator[CostMonitorAgent]:
    agent = CostMonitorAgent(Wiring("cost_monitor-1", tmp_path, BrokerAddress("127.0.0.1", 1)), configs.load(Settings.read()))
    yield agent
    agent.store.close()


async def ask(agent: CostMonitorAgent, identity: str, method: str, **data: Any) -> dict[str, Any]:
    await agent.handle_message(MCPMessage(id=identity, type=method, data=data))
    row = agent.store.find_call(identity)
    assert row is not None and row["state"] == "done"
    return json.loads(row["reply"])


async def reserve(agent: CostMonitorAgent, identity: str, amount: int) -> dict[str, Any]:
    return await ask(
        agent, identity, "budget.reserve", job="j", amount_micros=amount, provider="local", domain="sleep", priority=1
    )


def topics(agent: CostMonitorAgent) -> list[str]:
    rows = agent.store.connection.execute("SELECT topic FROM publications ORDER BY number")
    return [row["topic"].removeprefix("meetara/v1/lab/") for row in rows]


async def test_the_call_names_the_reservation_so_a_repetition_makes_no_second(monitor):
    first = await reserve(monitor, "j:reserve", DOLLAR)
    assert first["result"] == {"reservation": "j:reserve", "job": "j", "amount_micros": DOLLAR}
    assert await reserve(monitor, "j:reserve", DOLLAR) == first
    assert monitor.store.connection.execute("SELECT count(*) FROM entries").fetchone()[0] == 1
    assert topics(monitor) == []


async def test_a_reservation_that_does_not_fit_is_refused_with_the_sums(monitor):
    reply = await reserve(monitor, "r", 9 * DOLLAR)
    assert reply["error"]["code"] == -32006
    assert "needs $9.00" in reply["error"]["message"] and reply["error"]["data"]["cap_micros"] == 5 * DOLLAR
    assert monitor.store.connection.execute("SELECT count(*) FROM entries").fetchone()[0] == 0


async def test_a_jump_over_all_thresholds_is_alerted_and_the_last_is_an_emergency(monitor):
    await reserve(monitor, "r", 4_800_000)
    assert topics(monitor) == ["cost/alert"] * 4 + ["cost/emergency"]


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
