"""Work that has a price: what the budget cannot hold is refused before anything starts, the rest is paid for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol import Code, LabError, Progress
from protocol.job import State
from protocol.money import BudgetAlert
from tests.integration.lab import (
    DOMAIN,
    LONG,
    SHORT,
    Ground,
    events_of,
    ledger,
    listening,
    processes_of,
    running,
    settled,
    snapshot_of,
    submit,
)

pytestmark = pytest.mark.timeout(900)

RATE = 50.0
"""Dollars per hour: a short job's reservation is about $3.3 of the day's $5, a long one's is far beyond it."""


async def test_a_job_beyond_the_budget_is_refused_and_a_smaller_one_is_paid_for(ground: Ground, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home, ground.configs, MEETARA_LOCAL_USD_PER_HOUR=str(RATE)) as lab:
        async with lab.client() as client:
            with pytest.raises(LabError) as caught:
                await submit(client, "dear", ground.request({**LONG, "max_steps": 1_000_000}))
            error = caught.value
            assert error.code is Code.BUDGET
            needed = error.data["needed_micros"]
            assert needed > error.data["left_micros"] == error.data["cap_micros"] == 5_000_000
            assert f"${needed // 10_000 / 100:.2f}" in error.message and "$5.00 per day" in error.message
            assert "$0.00 spent + $0.00 reserved" in error.message and "daily_usd" in error.advice
            refused = await snapshot_of(client, "dear")
            assert refused.state is State.REFUSED and refused.reason == str(error)
            assert refused.artefacts == [] and refused.attempt == 0
            kinds = [event.type for event in await events_of(client, "dear")]
            assert "reserved" not in kinds and "leased" not in kinds
            assert not lab.folder("dear").exists()
            assert not any("agents.gguf_factory.work" in process.cmdline() for process in processes_of(home))

            with pytest.raises(LabError, match="budget_usd"):
                await submit(client, "own-limit", ground.request(SHORT, budget_usd=0.5))

            async with listening(client, "paid") as ears, client.subscription("cost_alert") as alerts:
                await submit(client, "paid", ground.request(SHORT))
                _, payload = await anext(alerts)
                alert = BudgetAlert.model_validate_json(payload)
                assert alert.threshold == 50 and alert.spent_micros == 0 and alert.reserved_micros > 2_500_000
                final = await ears.end()
                assert final.state is State.DONE, final.reason
                assert any(item.cost_usd for item in ears.all(Progress)), "the cost so far was told"
            assert final.cost_usd is not None and final.cost_usd > 0
            report = await settled(client, "paid")
            spent = report.jobs["paid"]
            assert spent == round(final.cost_usd * 1e6)
            assert report.domains == {DOMAIN: spent} and report.providers == {"local": spent}
            assert all(period.spent_micros == spent and period.reserved_micros == 0 for period in report.periods)
        shown = await lab.cli("budget", "--json")
        assert shown.json["jobs"] == {"paid": spent}
    entries = [(entry["kind"], entry["job"]) for entry in ledger(home)]
    assert entries == [("reserve", "paid"), ("settle", "paid")]
    settle = ledger(home)[1]
    assert settle["amount_micros"] == spent
    leased = json.loads((home / "jobs" / "paid" / "job.json").read_text())
    assert leased["price_micros_per_hour"] == RATE * 1e6
