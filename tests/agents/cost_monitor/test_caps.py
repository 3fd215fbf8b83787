"""Budgets that are changed while the lab runs."""

from datetime import datetime, timedelta

import pytest

from agents.cost_monitor.caps import Caps
from agents.cost_monitor.ledger import Ledger
from configs import Budget
from protocol import Code, LabError
from protocol.money import CapReply, CapRequest
from tests.agents.cost_monitor.ground import BUDGET, DOLLAR, NOON, fresh, reserve

SOON = NOON + timedelta(seconds=1)


@pytest.fixture
def ledger() -> Ledger:
    return fresh()


def change(
    ledger: Ledger, usd: float, signer: str | None = None, at: datetime = NOON, configured: Budget = BUDGET
) -> CapReply:
    request = CapRequest(name="daily_usd", usd=usd, at=at if signer else None)
    return Caps(ledger._connection, configured).set(request, signer, NOON)


def daily(ledger: Ledger, configured: Budget = BUDGET) -> float:
    return Caps(ledger._connection, configured).budget().daily_usd


def test_a_lower_budget_holds_at_once(ledger):
    assert change(ledger, 3) == CapReply(name="daily_usd", state="set", cap_micros=3 * DOLLAR)
    assert daily(ledger) == 3
    assert change(ledger, 3).state == "same"


def test_a_higher_one_waits_and_holds_when_it_is_signed(ledger):
    assert change(ledger, 8) == CapReply(name="daily_usd", state="waits", cap_micros=5 * DOLLAR, wished_micros=8 * DOLLAR)
    caps = Caps(ledger._connection, BUDGET)
    assert daily(ledger) == 5 and caps.wishes() == {"daily_usd": 8 * DOLLAR}
    assert change(ledger, 8, "me").state == "set"
    assert daily(ledger) == 8 and caps.wishes() == {}


def test_a_signature_that_was_used_does_not_undo_what_came_later(ledger):
    change(ledger, 8, "me", SOON)
    change(ledger, 4)
    with pytest.raises(LabError, match="was changed after this was signed"):
        change(ledger, 8, "me", SOON)
    with pytest.raises(LabError, match="signed in the future"):
        change(ledger, 8, "me", NOON + timedelta(hours=1))
    assert daily(ledger) == 4
    assert change(ledger, 8, "me", SOON + timedelta(seconds=1)).state == "set"


def test_a_budget_below_what_is_spent_and_reserved_is_refused_with_the_sums(ledger):
    reserve(ledger, "a", DOLLAR)
    ledger.settle("a", "job-a", DOLLAR, NOON)
    reserve(ledger, "b", 2 * DOLLAR)
    with pytest.raises(LabError) as caught:
        change(ledger, 2.99)
    assert caught.value.code is Code.BUDGET and caught.value.data["needed_micros"] == 3 * DOLLAR
    assert "daily_usd cannot be $2.99: $1.00 spent + $2.00 reserved of $5.00 per day" in caught.value.message
    assert daily(ledger) == 5
    assert change(ledger, 3).state == "set"
    assert Ledger(ledger._connection, Caps(ledger._connection, BUDGET).budget()).frozen(NOON)


def test_who_edits_the_file_has_the_last_word(ledger):
    change(ledger, 8, "me")
    edited = BUDGET.model_copy(update={"daily_usd": 6.0})
    assert daily(ledger) == 8 and daily(ledger, edited) == 6


def test_other_budgets_stay_as_they_are(ledger):
    change(ledger, 3)
    found = Caps(ledger._connection, BUDGET).budget()
    assert (found.weekly_usd, found.monthly_usd, found.alert_percents) == (25, 50, (50, 80, 90, 95))
