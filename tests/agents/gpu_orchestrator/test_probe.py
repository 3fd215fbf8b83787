"""What comes of a probe: a job on a rented machine whose first steps were measured, with the orchestrator's real books."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.gpu_orchestrator.rentals.rental import State
from agents.gpu_orchestrator.rentals.store import Rentals
from bus import Answer
from bus.lease import Leases
from protocol import Code, LabError, Retry
from protocol.money import Reservation
from tests.agents.gpu_orchestrator.market.samples import NOW, listing
from tests.agents.gpu_orchestrator.rentals.test_life import rental
from tests.agents.gpu_orchestrator.test_market import Seller, Stall, request

RESERVED = 1_000_000
REFUSAL = LabError(Code.BUDGET, "the day's budget does not hold it.", retry=Retry.LATER)


class Running(Stall):
    """The job j runs on a machine of 1,000 micro-dollars a second, with a dollar set aside for it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, Seller("lambda", listing()))
        with self.agent.transaction() as tx:
            store = Rentals(tx.connection)
            store.save(rented := rental(State.READY, provider="lambda", price_micros_per_hour=3_600_000, metered_from=NOW))
            store.pays(rented, store.open_account("j", "r", RESERVED), NOW)
            Leases(tx.connection).grant("j", "l", rented.machine, NOW, memory_bytes=1, price_micros_per_hour=3_600_000)

    async def probed(self, pace: float, **terms: Any) -> list[tuple[str, dict[str, Any]]]:
        """Tell what a step takes; returns what the orchestrator asks for then."""
        offer = {
            "provider": "lambda", "machine": "a", "price_micros_per_hour": 3_600_000, "seconds_p50": 1.0, "seconds_p90": 1.0,
            "cost_p50_micros": 1, "cost_p90_micros": 1, "reservation_micros": RESERVED,
        }  # fmt: skip
        probe = {"steps": 20, "seconds": 20 * pace, "step": 20, "elapsed_s": 60.0}
        await self.ask(f"p{pace}", "offer.requote", job="j", offer=offer, plan=request()["plan"], probe=probe, **terms)
        return self.calls()

    def answered(self, answer: Reservation | LabError) -> list[tuple[str, dict[str, Any]]]:
        """Let the cost monitor answer; returns what the orchestrator asks for then."""
        row = self.agent.store.connection.execute("SELECT id, context FROM outbox WHERE method = 'budget.extend'").fetchone()
        wrong = answer if isinstance(answer, LabError) else None
        with self.agent.transaction() as tx:
            tx.drop_calls("j", "budget.extend")
            said = Answer(row["id"], "budget.extend", "j", json.loads(row["context"]), None if wrong else answer, wrong)
            self.agent._answered(said, tx)
        return self.calls()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.agent.store.close()


async def test_a_new_p90_within_the_reservation_changes_only_what_is_shown(running: Running) -> None:
    assert await running.probed(0.1) == []


@pytest.mark.parametrize(("limit", "asked"), [(None, 1_553_420), (1_200_000, 1_200_000)])
async def test_a_new_p90_above_the_reservation_is_set_aside_at_once_as_far_as_the_limit_goes(
    running: Running, limit: int | None, asked: int
) -> None:
    [(_, call)] = await running.probed(1.0, limit_micros=limit)
    assert call == {"reservation": "r", "job": "j", "amount_micros": asked}  # 1.1 x (1.3 x 994 s + 120 s) at 1,000 a second
    assert running.answered(Reservation(reservation="r", job="j", amount_micros=asked)) == []
    with running.agent.transaction() as tx:
        assert Rentals(tx.connection).account("j").reserved_micros == asked  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("pace", "terms", "reason"),
    [
        (1.0, {"limit_micros": 900_000}, "it would likely cost $0.994 in all, more than what was agreed to, $0.90"),
        (5.0, {}, "it would likely cost $4.298 in all, more than 4 times what was quoted, $4.00"),
        (1.0, {"deadline_hours": 0.25}, "it would likely take 0.28 hours on this machine, longer than the 0.25 of deadline_hours"),
    ],
)
async def test_a_job_that_will_likely_not_hold_its_money_or_time_is_given_up_at_once(
    running: Running, pace: float, terms: dict[str, Any], reason: str
) -> None:
    [(id, call)] = await running.probed(pace, **terms)
    assert id == "l:give-up" and (call["lease"], call["fence"], call["final"]) == ("l", 1, True)
    assert reason in call["reason"] and call["reason"].startswith("stopped after its first steps on worker-r1, by which")


@pytest.mark.parametrize(("pace", "ends"), [(1.0, False), (1.1, True)])
async def test_where_more_is_refused_a_job_goes_on_only_if_what_it_likely_costs_is_set_aside(
    running: Running, pace: float, ends: bool
) -> None:
    await running.probed(pace)
    calls = running.answered(REFUSAL)
    assert [call["final"] for _, call in calls] == ([True] if ends else [])
    assert all("$1.0766 in all, $1.00 are set aside" in call["reason"] and "the day's budget" in call["reason"] for _, call in calls)


async def test_a_probe_of_a_job_that_has_left_the_machine_changes_nothing(running: Running) -> None:
    with running.agent.transaction() as tx:
        Leases(tx.connection).release("j", "l")
    assert await running.probed(5.0) == []
