"""Which entries count when, on clocks that are set."""

from datetime import UTC, datetime, timedelta

import pytest

from agents.cost_monitor.ledger import Ledger
from protocol import LabError
from tests.agents.cost_monitor.ground import DOLLAR, day, fresh, reserve

JANUARY = datetime(2026, 1, 31, 12, tzinfo=UTC)
FEBRUARY = datetime(2026, 2, 1, 12, tzinfo=UTC)


@pytest.fixture
def ledger() -> Ledger:
    return fresh()


def spend(ledger: Ledger, name: str, amount: int, now: datetime) -> None:
    reserve(ledger, name, amount, now)
    ledger.settle(name, f"job-{name}", amount, now)


def test_a_new_period_opens_new_room(ledger):
    spend(ledger, "a", 4 * DOLLAR, JANUARY)
    assert day(ledger, FEBRUARY) == (0, 0)
    assert [sums.spent for sums in ledger.sums(FEBRUARY)] == [0, 4 * DOLLAR, 0], "the week goes on"


def test_a_clock_set_back_does_not_open_the_room_of_a_period_that_was_closed(ledger):
    spend(ledger, "a", 3 * DOLLAR, FEBRUARY)
    assert day(ledger, JANUARY) == (3 * DOLLAR, 0)
    with pytest.raises(LabError, match="does not hold it"):
        reserve(ledger, "b", 3 * DOLLAR, JANUARY)


def test_what_was_entered_while_the_clock_was_back_counts_when_it_is_right_again(ledger):
    spend(ledger, "a", DOLLAR, FEBRUARY)
    spend(ledger, "b", 2 * DOLLAR, JANUARY)
    assert day(ledger, FEBRUARY) == (3 * DOLLAR, 0)


def test_two_steps_back_leave_no_gap(ledger):
    spend(ledger, "a", DOLLAR, FEBRUARY)
    spend(ledger, "b", 2 * DOLLAR, JANUARY - timedelta(days=3))
    assert day(ledger, JANUARY) == (3 * DOLLAR, 0), "nothing was entered on that day, yet both came later than its beginning"


def test_a_clock_that_was_ahead_by_years_fills_no_other_period(ledger):
    spend(ledger, "a", DOLLAR, datetime(2031, 1, 1, 12, tzinfo=UTC))
    for number in range(5):
        spend(ledger, f"b{number}", 2 * DOLLAR, JANUARY + timedelta(days=number))
    assert day(ledger, JANUARY + timedelta(days=4)) == (3 * DOLLAR, 0), "it counts itself until its date has come"
    assert day(ledger, datetime(2031, 1, 1, 12, tzinfo=UTC)) == (DOLLAR, 0)


def test_pages_hold_every_entry_once(ledger):
    for number in range(600):
        reserve(ledger, f"r{number}", 0, FEBRUARY)
    first = ledger.entries.page(0)
    second = ledger.entries.page(first.entries[-1].number)
    assert first.more and not second.more
    assert [entry.number for entry in [*first.entries, *second.entries]] == list(range(1, 601))
    assert len(first.model_dump_json()) < 200_000
