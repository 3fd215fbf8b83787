"""The own meter against what providers charge."""

from datetime import datetime, timedelta

import pytest

from agents.cost_monitor.bills import Bills
from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.report import report
from protocol import LabError
from protocol.money import BillReport, BillRequest
from tests.agents.cost_monitor.ground import BUDGET, CENT, DOLLAR, NOON, day, fresh, lines, reserve

LATER = NOON + timedelta(days=2)


@pytest.fixture
def ledger() -> Ledger:
    return fresh()


def bill(ledger: Ledger, billed: int | None, now: datetime = NOON, rental: str = "r1", **jobs: int) -> tuple[BillReport, list[str]]:
    request = BillRequest(
        provider="vast", rental=rental, jobs={f"job-{name}": used for name, used in jobs.items()}, billed_micros=billed,
        since=NOON, until=NOON,
    )  # fmt: skip
    found, alerts = Bills(ledger._connection, ledger).bill(request, now)
    return found, [alert.note for alert in alerts if alert.note]


def used(ledger: Ledger, name: str, amount: int, reserved: int = 2 * DOLLAR, **facts: object) -> None:
    reserve(ledger, name, reserved, provider="vast")
    ledger.settle(name, f"job-{name}", amount, NOON, rental="r1", **facts)


def spent(ledger: Ledger, now: datetime = NOON) -> dict[str, int]:
    return report(ledger._connection, BUDGET, now).jobs


def test_a_higher_bill_is_entered_once_however_often_it_is_told(ledger):
    used(ledger, "a", DOLLAR)
    for correction in (4 * CENT, 0, 0):
        found, alerts = bill(ledger, DOLLAR + 4 * CENT, a=DOLLAR)
        assert (found.correction_micros, found.drift_percent, found.frozen, alerts) == (correction, 4.0, None, [])
    assert lines(ledger) == [("reserve", "a", 2 * DOLLAR), ("settle", "a", DOLLAR), ("correct", "a", 4 * CENT)]
    assert spent(ledger) == {"job-a": DOLLAR + 4 * CENT}


def test_a_bill_that_is_lowered_later_is_a_refund(ledger):
    used(ledger, "a", DOLLAR)
    bill(ledger, DOLLAR + 4 * CENT, a=DOLLAR)
    assert bill(ledger, DOLLAR, a=DOLLAR)[0].correction_micros == -4 * CENT
    assert bill(ledger, 0, a=DOLLAR)[0].correction_micros == -DOLLAR
    assert day(ledger) == (0, 0) and min(entry[2] for entry in lines(ledger)) < 0


def test_a_refund_makes_no_room_in_another_period(ledger):
    used(ledger, "a", DOLLAR)
    bill(ledger, DOLLAR // 2, LATER, a=DOLLAR)
    assert [sums.spent for sums in ledger.sums(LATER)] == [0, DOLLAR // 2, DOLLAR // 2]
    assert day(ledger, NOON)[0] == DOLLAR // 2


def test_jobs_that_share_an_instance_share_its_bill_by_what_they_used(ledger):
    used(ledger, "a", 30 * CENT)
    used(ledger, "b", 10 * CENT)
    bill(ledger, 42 * CENT, a=30 * CENT, b=10 * CENT)
    assert spent(ledger) == {"job-a": 31_5000, "job-b": 10_5000}
    bill(ledger, 20 * CENT, a=30 * CENT, b=10 * CENT)
    found = spent(ledger)
    assert sum(found.values()) == 20 * CENT and abs(found["job-a"] - 15 * CENT) <= 1


@pytest.mark.parametrize(("own", "billed", "told"), [
    (DOLLAR, DOLLAR + 5 * CENT, False), (DOLLAR, DOLLAR + 5 * CENT + 1, True), (DOLLAR, DOLLAR - 5 * CENT - 1, True),
    (4 * DOLLAR, 4 * DOLLAR + 10 * CENT, False), (4 * DOLLAR, 4 * DOLLAR + 10 * CENT + 1, True), (0, 1, True),
])  # fmt: skip
def test_a_drift_above_five_percent_or_ten_cents_is_told_once_with_both_numbers(ledger, own, billed, told):
    used(ledger, "a", own, reserved=4_500_000)
    _, alerts = bill(ledger, billed, a=own)
    assert len(alerts) == told
    if told:
        assert "vast charges $" in alerts[0] and "for r1, the own meter says $" in alerts[0]
        assert bill(ledger, billed, a=own)[1] == [], "the same bill is no news"


@pytest.mark.parametrize(("own", "billed", "reserved", "frozen"), [
    (10 * CENT, 40 * CENT, 2 * DOLLAR, True), (10 * CENT, 39 * CENT, 2 * DOLLAR, False), (CENT, 9 * CENT, 2 * DOLLAR, False),
    (DOLLAR, 2 * DOLLAR + 1, 2 * DOLLAR, True), (DOLLAR, 2 * DOLLAR, 2 * DOLLAR, False),
])  # fmt: skip
def test_a_bill_far_above_the_meter_or_above_what_was_reserved_freezes_the_provider(ledger, own, billed, reserved, frozen):
    used(ledger, "a", own, reserved)
    found, alerts = bill(ledger, billed, a=own)
    assert (found.frozen is not None) == frozen and ("any more" in alerts[0]) == frozen
    assert (report(ledger._connection, BUDGET, NOON).frozen_providers == {"vast": found.frozen}) == frozen
    if frozen:
        with pytest.raises(LabError, match="nothing is rented from vast any more"):
            reserve(ledger, "b", CENT, provider="vast")


def test_what_a_bill_may_still_ask_for_stays_set_aside_until_it_has_come(ledger):
    used(ledger, "a", DOLLAR, bill_follows=True)
    assert day(ledger) == (DOLLAR, DOLLAR)
    bill(ledger, DOLLAR * 3 // 2, a=DOLLAR)
    assert day(ledger) == (DOLLAR * 3 // 2, 0)


def test_a_provider_that_tells_no_bill_leaves_the_own_meter_as_it_is(ledger):
    used(ledger, "a", DOLLAR, bill_follows=True)
    found, alerts = bill(ledger, None, a=DOLLAR)
    assert (found.correction_micros, found.drift_percent, alerts) == (0, None, [])
    assert day(ledger) == (DOLLAR, 0)


def test_a_reservation_waits_for_the_bills_of_all_its_instances(ledger):
    reserve(ledger, "a", 2 * DOLLAR, provider="vast")
    ledger.settle("a", "job-a", CENT, NOON, part="1", rental="r1", bill_follows=True)
    ledger.settle("a", "job-a", CENT, NOON, rental="r2", bill_follows=True)
    bill(ledger, CENT, rental="r2", a=CENT)
    assert day(ledger)[1] == 2 * DOLLAR - 2 * CENT
    bill(ledger, CENT, rental="r1", a=CENT)
    assert day(ledger) == (2 * CENT, 0)


@pytest.mark.parametrize("billed", [30 * CENT, 50 * CENT])
def test_a_bill_that_comes_before_the_settlements_comes_to_the_same(ledger, billed):
    reserve(ledger, "a", DOLLAR, provider="vast")
    bill(ledger, billed, a=40 * CENT)
    ledger.settle("a", "job-a", 40 * CENT, NOON, rental="r1")
    Bills(ledger._connection, ledger).settled("vast", "r1", NOON)
    assert spent(ledger) == {"job-a": billed} and day(ledger) == (billed, 0)


def test_an_instance_that_no_job_had_is_paid_for_and_told(ledger):
    found, alerts = bill(ledger, 20 * CENT)
    assert (found.correction_micros, found.drift_percent, found.frozen) == (20 * CENT, None, None)
    assert alerts and spent(ledger) == {"": 20 * CENT}


def test_a_wrong_bill_is_refused(ledger):
    with pytest.raises(LabError, match="a job used less than nothing"):
        bill(ledger, 1, a=-1)
    request = BillRequest(provider="vast", rental="r1", jobs={}, billed_micros=1, since=LATER, until=NOON)
    with pytest.raises(LabError, match="ends before it begins"):
        Bills(ledger._connection, ledger).bill(request, NOON)
    assert lines(ledger) == []
