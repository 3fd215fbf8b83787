"""Rentals, payers and accounts in a real database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import timedelta

import pytest

from agents.gpu_orchestrator.rentals import meter
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import SCHEMA, SHUNNED_FOR_NOW, Rentals
from tests.agents.gpu_orchestrator.rentals.test_life import NOON, rental

MINUTE = timedelta(minutes=1)


@pytest.fixture
def store() -> Iterator[Rentals]:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    connection.executescript(SCHEMA + SHUNNED_FOR_NOW)
    yield Rentals(connection)
    connection.close()


def running(store: Rentals, id: str) -> Rental:
    found = rental(State.READY).model_copy(update={"id": id, "metered_from": NOON, "price_micros_per_hour": 6_000_000})
    store.save(found)
    return found


def test_what_is_left_for_a_machine_is_without_what_its_job_paid_and_pays_elsewhere(store: Rentals) -> None:
    lost, first, second = (running(store, id) for id in ("lost", "first", "second"))
    account = store.open_account("job", "reservation", 10_000_000)
    store.pays(lost, account, NOON)
    store.save(lost.into(State.GONE, NOON + 5 * MINUTE, ended_at=NOON + 5 * MINUTE))
    store.pays(first, account, NOON + 5 * MINUTE)
    store.pays(second, account, NOON + 10 * MINUTE)
    now = NOON + 20 * MINUTE
    paying = store.paying(store.living(), now)
    assert {id: found.left_micros for id, found in paying.items()} == {"first": 10_000_000 - 500_000 - 1_000_000, "second": 10_000_000 - 500_000 - 1_500_000}
    for machine in (first, second):
        found = paying[machine.id]
        assert found.left_micros == 10_000_000 - (store.spent("job", now) - meter.share(machine, found.payer, now))
        assert (found.payer, found.account) == (store.payer(machine.id), store.account("job"))


def test_a_machine_that_lied_is_taken_never_again_and_a_type_of_machines_later(store: Rentals) -> None:
    one, many = rental(State.READY), rental(State.READY)
    many = many.model_copy(update={"listing": many.listing.model_copy(update={"id": "a type"})})
    store.shun(one, "it lied", NOON)
    store.shun(many, "one of them lied", NOON, NOON + MINUTE)
    assert set(store.shunned(NOON)) == {(one.provider, one.listing.id), (many.provider, "a type")}
    assert set(store.shunned(NOON + MINUTE)) == {(one.provider, one.listing.id)}
