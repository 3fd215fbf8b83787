import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cost_monitor import period
from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.report import report
from agents.cost_monitor.sums import shares
from protocol import Code, LabError, Retry
from protocol.money import dollars
from tests.agents.cost_monitor.ground import BUDGET, CENT, DOLLAR, NOON, day, fresh, reserve
from tests.agents.cost_monitor.ground import lines as entries


@pytest.fixture
def ledger() -> Ledger:
    return fresh()


def test_periods_are_the_utc_day_the_week_from_monday_and_the_month():
    assert period.start("day", NOON) == datetime(2026, 3, 4, tzinfo=UTC)
    assert period.start("week", NOON) == datetime(2026, 3, 2, tzinfo=UTC)
    assert period.start("month", NOON) == datetime(2026, 3, 1, tzinfo=UTC)
    assert period.start("day", datetime.fromisoformat("2026-03-05T01:00:00+02:00")) == datetime(2026, 3, 4, tzinfo=UTC)
    assert period.end("month", datetime(2026, 12, 31, 23, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert period.end("week", NOON) == datetime(2026, 3, 9, tzinfo=UTC)


def test_settling_turns_a_reservation_into_spending_and_frees_the_rest(ledger):
    reserve(ledger, "a", 2 * DOLLAR)
    assert day(ledger) == (0, 2 * DOLLAR)
    ledger.settle("a", "job-a", DOLLAR // 2, NOON)
    assert day(ledger) == (DOLLAR // 2, 0)


def test_releasing_frees_everything(ledger):
    reserve(ledger, "a", 2 * DOLLAR)
    ledger.release("a", "job-a", NOON)
    assert day(ledger) == (0, 0)


def test_repeated_entries_change_nothing(ledger):
    for _ in range(2):
        reserve(ledger, "a", DOLLAR)
        reserve(ledger, "b", DOLLAR)
    for _ in range(2):
        ledger.settle("a", "job-a", 7, NOON)
        ledger.release("b", "job-b", NOON)
    reserve(ledger, "a", DOLLAR)
    assert entries(ledger) == [("reserve", "a", DOLLAR), ("reserve", "b", DOLLAR), ("settle", "a", 7), ("release", "b", 0)]
    assert day(ledger) == (7, 0)


def test_a_reservation_ends_once(ledger):
    reserve(ledger, "a", DOLLAR)
    ledger.settle("a", "job-a", 7, NOON)
    with pytest.raises(LabError, match=r"was settled with \$0\.000007") as caught:
        ledger.release("a", "job-a", NOON)
    assert caught.value.code is Code.CONFLICT
    with pytest.raises(LabError):
        ledger.settle("a", "job-a", 8, NOON)
    assert day(ledger) == (7, 0)


def test_an_unknown_or_foreign_reservation_is_not_found(ledger):
    reserve(ledger, "a", DOLLAR)
    for name, job in (("x", "job-a"), ("a", "job-x")):
        with pytest.raises(LabError) as caught:
            ledger.settle(name, job, 1, NOON)
        assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(LabError) as caught:
        ledger.reserve("a", "job-x", DOLLAR, "local", "sleep", NOON)
    assert caught.value.code is Code.CONFLICT


def test_a_refusal_says_all_sums(ledger):
    reserve(ledger, "a", DOLLAR)
    ledger.settle("a", "job-a", DOLLAR, NOON)
    reserve(ledger, "b", DOLLAR + DOLLAR // 2)
    with pytest.raises(LabError) as caught:
        reserve(ledger, "c", 3 * DOLLAR)
    error = caught.value
    assert error.code is Code.BUDGET and error.retry is Retry.LATER
    for part in ("needs $3.00", "$1.00 spent", "$1.50 reserved", "of $5.00 per day", "$2.50 left"):
        assert part in error.message
    assert "daily_usd" in error.advice and "2026-03-05 00:00 UTC" in error.advice
    assert {key: error.data[key] for key in ("needed_micros", "spent_micros", "reserved_micros", "cap_micros", "left_micros")} == {
        "needed_micros": 3 * DOLLAR, "spent_micros": DOLLAR, "reserved_micros": 1_500_000, "cap_micros": 5 * DOLLAR,
        "left_micros": 2_500_000,
    }  # fmt: skip
    assert entries(ledger)[-1] == ("reserve", "b", 1_500_000)


def test_what_no_period_can_ever_hold_is_refused_for_good(ledger):
    with pytest.raises(LabError) as caught:
        reserve(ledger, "a", 6 * DOLLAR)
    assert caught.value.retry is Retry.NEVER and "wait" not in caught.value.advice


def test_a_reservation_of_exactly_what_is_left_passes_and_one_micro_more_does_not(ledger):
    with pytest.raises(LabError):
        reserve(ledger, "a", 5 * DOLLAR + 1)
    reserve(ledger, "b", 5 * DOLLAR)
    assert day(ledger) == (0, 5 * DOLLAR)


def test_from_80_percent_on_no_reservation_above_half_of_the_rest(ledger):
    reserve(ledger, "a", 4 * DOLLAR)
    with pytest.raises(LabError, match="more than half of what is left"):
        reserve(ledger, "b", 50 * CENT + 1)
    reserve(ledger, "c", 50 * CENT)


def test_from_95_percent_on_paid_work_is_frozen_and_free_work_goes_on(ledger):
    reserve(ledger, "a", 4_750_000)
    assert ledger.frozen(NOON)
    with pytest.raises(LabError, match="frozen"):
        reserve(ledger, "b", 1)
    reserve(ledger, "c", 0)
    assert entries(ledger)[-1] == ("reserve", "c", 0)


def test_free_work_passes_where_the_cap_is_zero_and_makes_no_alert():
    ledger = fresh(BUDGET.model_copy(update={"daily_usd": 0.0}))
    assert reserve(ledger, "a", 0) == []
    with pytest.raises(LabError):
        reserve(ledger, "b", 1)


def test_every_period_counts_and_a_new_day_frees_only_the_day(ledger):
    monday = NOON - timedelta(days=2)
    for number in range(5):
        now = monday + timedelta(days=number)
        reserve(ledger, f"d{number}", 4_900_000, now)
        ledger.settle(f"d{number}", f"job-d{number}", 4_900_000, now)
    saturday = monday + timedelta(days=5)
    assert [sums.spent for sums in ledger.sums(saturday)] == [0, 24_500_000, 24_500_000]
    with pytest.raises(LabError) as caught:
        reserve(ledger, "e", DOLLAR, saturday)
    assert caught.value.data["period"] == "week" and "weekly_usd" in caught.value.advice
    reserve(ledger, "e", DOLLAR, monday + timedelta(days=7))


def test_an_open_reservation_of_yesterday_counts_today(ledger):
    reserve(ledger, "a", 3 * DOLLAR, NOON - timedelta(days=1))
    assert day(ledger) == (0, 3 * DOLLAR)
    with pytest.raises(LabError):
        reserve(ledger, "b", 3 * DOLLAR)


def test_thresholds_are_told_once_per_period_and_all_in_a_jump(ledger):
    assert reserve(ledger, "a", 2_400_000) == []
    assert reserve(ledger, "b", 100_000) == [("day", 50)]
    assert reserve(ledger, "c", 100_000) == []
    assert reserve(ledger, "d", 2_300_000) == [("day", 80), ("day", 90), ("day", 95)]
    ledger.release("d", "job-d", NOON)
    assert reserve(ledger, "e", 2_300_000) == []
    ledger.release("e", "job-e", NOON)
    assert ("day", 50) in reserve(ledger, "f", 0, NOON + timedelta(days=1))


def test_more_than_reserved_is_entered_as_it_is_and_told(ledger):
    reserve(ledger, "a", DOLLAR)
    alerts = ledger.settle("a", "job-a", 6 * DOLLAR, NOON)
    assert day(ledger) == (6 * DOLLAR, 0)
    assert [(a.period, a.threshold) for a in alerts[:4]] == [("day", 50), ("day", 80), ("day", 90), ("day", 95)]
    assert "job-a spent $6.00, more than the $1.00" in alerts[-1].note
    with pytest.raises(LabError) as caught:
        reserve(ledger, "b", 1)
    assert "$0.00 left" in caught.value.message and caught.value.data["left_micros"] == -DOLLAR


def test_a_small_overrun_is_told_even_where_no_threshold_is_crossed(ledger):
    reserve(ledger, "a", 10)
    (alert,) = ledger.settle("a", "job-a", 11, NOON)
    assert alert.threshold == 0 and alert.note
    assert ledger.settle("a", "job-a", 11, NOON) == []


def test_the_ledger_is_append_only(ledger):
    reserve(ledger, "a", DOLLAR)
    for sql in ("UPDATE entries SET amount_micros = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger._connection.execute(sql)


def test_the_report_adds_up(ledger):
    reserve(ledger, "a", DOLLAR)
    ledger.settle("a", "job-a", CENT, NOON)
    reserve(ledger, "b", 2 * DOLLAR)
    found = report(ledger._connection, BUDGET, NOON)
    assert [(p.period, p.spent_micros, p.reserved_micros, p.percent) for p in found.periods] == [
        ("day", CENT, 2 * DOLLAR, 40.2), ("week", CENT, 2 * DOLLAR, 8.04), ("month", CENT, 2 * DOLLAR, 4.02),
    ]  # fmt: skip
    assert (found.jobs, found.providers, found.domains) == ({"job-a": CENT}, {"local": CENT}, {"sleep": CENT})
    assert [(r.reservation, r.job) for r in found.open_reservations] == [("b", "job-b")]
    assert not found.frozen


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "$0.00"), (5_000_000, "$5.00"), (1, "$0.000001"), (1_230_000, "$1.23"), (-10_000, "-$0.01")]
)
def test_amounts_are_exact(micros, text):
    assert dollars(micros) == text


def test_a_reservation_is_settled_in_parts_and_each_part_once(ledger):
    reserve(ledger, "a", 3 * DOLLAR)
    for _ in range(2):
        ledger.settle("a", "job-a", DOLLAR, NOON, part="first", rental="r1")
        ledger.settle("a", "job-a", DOLLAR // 2, NOON, part="second", rental="r2", provider="vast")
    assert day(ledger) == (DOLLAR * 3 // 2, DOLLAR * 3 // 2)
    with pytest.raises(LabError, match=r"the part 'first' of reservation a is of \$1\.00"):
        ledger.settle("a", "job-a", 2, NOON, part="first")
    ledger.release("a", "job-a", NOON)
    assert day(ledger) == (DOLLAR * 3 // 2, 0)
    assert report(ledger._connection, BUDGET, NOON).providers == {"vast": DOLLAR // 2, "local": DOLLAR}
    with pytest.raises(LabError, match="was released"):
        ledger.settle("a", "job-a", 1, NOON, part="late")


def test_an_extension_asks_again_and_a_refused_one_changes_nothing(ledger):
    reserve(ledger, "a", DOLLAR)
    for _ in range(2):
        found, _ = ledger.extend("a", "job-a", 2 * DOLLAR, NOON)
        assert found.amount_micros == 2 * DOLLAR
    assert ledger.extend("a", "job-a", DOLLAR, NOON)[0].amount_micros == 2 * DOLLAR, "less than it is changes nothing"
    with pytest.raises(LabError, match=r"needs \$3\.01, but the day's budget does not hold it"):
        ledger.extend("a", "job-a", 5 * DOLLAR + CENT, NOON)
    assert entries(ledger) == [("reserve", "a", DOLLAR), ("extend", "a", DOLLAR)]
    ledger.settle("a", "job-a", 2 * DOLLAR, NOON)
    with pytest.raises(LabError, match="was settled"):
        ledger.extend("a", "job-a", 3 * DOLLAR, NOON)


def test_no_extension_goes_beyond_what_was_agreed_to(ledger):
    ledger.reserve("a", "job-a", DOLLAR, "vast", "sleep", NOON, limit=DOLLAR + CENT)
    ledger.extend("a", "job-a", DOLLAR + CENT, NOON)
    with pytest.raises(LabError, match=r"needs \$1\.02 in all, more than the \$1\.01 that were agreed to") as caught:
        ledger.extend("a", "job-a", DOLLAR + 2 * CENT, NOON)
    assert caught.value.code is Code.BUDGET and caught.value.retry is Retry.NEVER
    assert day(ledger) == (0, DOLLAR + CENT)


def test_no_time_frees_a_reservation(ledger):
    reserve(ledger, "a", DOLLAR)
    assert day(ledger, NOON + timedelta(days=400)) == (0, DOLLAR)


def test_a_paid_reservation_that_would_freeze_all_paid_work_is_refused_and_local_work_is_not(ledger):
    with pytest.raises(LabError, match="with it 95 % of the day's budget are reached"):
        reserve(ledger, "a", 4_750_000, provider="vast")
    assert reserve(ledger, "b", 4_749_999, provider="vast")[-1] == ("day", 90)
    ledger.release("b", "job-b", NOON)
    reserve(ledger, "c", 4_750_000)


def test_a_freeze_lasts_until_the_period_ends_or_the_budget_is_another(ledger):
    reserve(ledger, "a", 4_800_000)
    ledger.release("a", "job-a", NOON)
    assert ledger.frozen(NOON)
    with pytest.raises(LabError, match="paid work is frozen"):
        reserve(ledger, "b", CENT, provider="vast")
    reserve(ledger, "c", CENT)
    raised = Ledger(ledger._connection, BUDGET.model_copy(update={"daily_usd": 6.0}))
    assert not raised.frozen(NOON)
    assert not ledger.frozen(NOON + timedelta(days=1))
    reserve(ledger, "b", CENT, NOON + timedelta(days=1), provider="vast")


def test_a_paid_job_that_spends_more_than_it_reserved_freezes_its_provider(ledger):
    reserve(ledger, "a", DOLLAR, provider="vast")
    ledger.settle("a", "job-a", DOLLAR + 1, NOON)
    with pytest.raises(LabError, match="nothing is rented from vast any more: job job-a spent"):
        reserve(ledger, "b", CENT, provider="vast")
    reserve(ledger, "b", CENT, provider="runpod")
    with pytest.raises(LabError, match="runpod is not frozen"):
        ledger.trust.unfreeze("runpod", NOON)
    with pytest.raises(LabError, match="frozen after this was signed"):
        ledger.trust.unfreeze("vast", NOON)
    ledger.trust.unfreeze("vast", NOON + timedelta(seconds=1))
    reserve(ledger, "c", CENT, provider="vast")


def test_of_several_providers_the_one_that_was_paid_last_is_frozen(ledger):
    reserve(ledger, "a", DOLLAR, provider="vast")
    ledger.settle("a", "job-a", DOLLAR, NOON, part="1", rental="r1")
    assert ledger.trust.frozen() == {}
    ledger.settle("a", "job-a", 1, NOON, part="2", rental="r2", provider="runpod")
    assert list(ledger.trust.frozen()) == ["runpod"]


def test_the_forecast_goes_on_as_the_period_did_and_is_null_while_nothing_was_spent(ledger):
    def forecasts(now):
        return [item.forecast_micros for item in report(ledger._connection, BUDGET, now).periods]

    reserve(ledger, "a", 2 * DOLLAR)
    assert forecasts(NOON) == [None, None, None]
    ledger.settle("a", "job-a", DOLLAR, NOON)
    assert forecasts(NOON) == [2 * DOLLAR, round(DOLLAR * 7 / 2.5), round(DOLLAR * 31 / 3.5)]
    midnight = datetime(2026, 3, 5, tzinfo=UTC)
    reserve(ledger, "b", DOLLAR, midnight)
    ledger.settle("b", "job-b", DOLLAR, midnight)
    assert forecasts(midnight)[0] == 24 * DOLLAR, "the first hour counts as passed"
    assert report(ledger._connection, BUDGET, midnight).days == {"2026-03-04": DOLLAR, "2026-03-05": DOLLAR}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_shares_add_up_and_none_is_off_by_a_whole_micro_dollar(amount, weights):
    found = shares(amount, weights)
    assert sum(found) == amount
    whole = sum(weights)
    if whole:
        assert all(abs(share * whole - amount * weight) < whole for share, weight in zip(found, weights, strict=True))
        if amount <= whole:
            assert all(share <= weight for share, weight in zip(found, weights, strict=True))
