"""The meter of a rental, cut where one job hands over to another."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gpu_orchestrator.rentals import meter
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import SCHEMA, Rentals
from tests.agents.gpu_orchestrator.rentals.test_life import NOON, rental


def opened() -> Rentals:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    connection.executescript(SCHEMA)
    return Rentals(connection)


def running(price: int = 200_000) -> Rental:
    return rental(State.READY, metered_from=NOON, price_micros_per_hour=price)


moments = st.lists(st.integers(1, 10_000_000_000), min_size=1, max_size=8, unique=True).map(sorted)  # microseconds


@settings(max_examples=60, deadline=None)
@given(moments, st.integers(0, 50_000_000))
def test_what_the_jobs_owe_is_what_the_machine_costs(cuts: list[int], price: int) -> None:
    store, machine = opened(), running(price)
    store.save(machine)
    for number, cut in enumerate([0, *cuts[:-1]]):
        store.pays(machine, store.open_account(f"job-{number % 3}", f"res-{number % 3}", 10**9), NOON + timedelta(microseconds=cut))
    end = NOON + timedelta(microseconds=cuts[-1])
    store.save(machine.into(State.GONE, end, ended_at=end))
    owed = sum(payer.micros or 0 for payer in store.payers(machine.id))
    assert owed == meter.micros(price, end - NOON)
    assert owed == sum(payer.micros or 0 for payer in store.take_untold())
    assert store.take_untold() == [], "each is told once"


def test_a_job_pays_from_the_hand_over_on_and_one_that_pays_already_goes_on() -> None:
    store, machine = opened(), running(3_600_000_000)  # a dollar a second
    store.save(machine)
    first, second = store.open_account("a", "ra", 10**9), store.open_account("b", "rb", 10**9)
    store.pays(machine, first, NOON)
    store.pays(machine, first, NOON + timedelta(seconds=5))
    store.pays(machine, second, NOON + timedelta(seconds=10))
    assert store.spent("a", NOON + timedelta(seconds=60)) == 10_000_000
    assert store.spent("b", NOON + timedelta(seconds=60)) == 50_000_000


def test_an_account_ends_when_its_job_is_over_and_pays_for_nothing() -> None:
    store, machine = opened(), running()
    store.save(machine)
    store.pays(machine, store.open_account("a", "ra", 10**6), NOON)
    store.end_account("a", "ra")
    assert store.take_ended() == [], "its machine may still cost something"
    end = NOON + timedelta(seconds=60)
    store.save(machine.into(State.GONE, end, ended_at=end))
    [payer] = store.take_untold()
    assert store.take_ended() == [], "the cost monitor may not have it yet, and refuses what comes after the end"
    store.entered(payer.number)
    assert [account.job for account in store.take_ended()] == ["a"]
    assert store.take_ended() == []


def test_a_meter_that_never_began_shows_nothing_and_a_clock_set_back_owes_nothing() -> None:
    assert meter.reading(rental(), NOON + timedelta(days=1)) == 0
    assert meter.micros(10**9, timedelta(seconds=-5)) == 0


def test_money_lasts_exactly_as_long_as_the_price_says() -> None:
    store, machine = opened(), running(3_600_000)
    store.save(machine)
    store.pays(machine, store.open_account("a", "ra", 0), NOON)
    payer = store.payer(machine.id)
    assert payer is not None
    assert meter.lasts_until(machine, payer, 1_000_000) == NOON + timedelta(seconds=1000)
    assert meter.lasts_until(running(0), payer, 0) > datetime(9000, 1, 1, tzinfo=UTC), "what costs nothing lasts for ever"
