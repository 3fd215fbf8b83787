"""Tells the cost monitor what rentals have cost: parts as jobs hand machines over, ends of reservations, bills, what a freeze ended."""

from __future__ import annotations

import hashlib
from datetime import datetime

from agents.gpu_orchestrator.rentals import meter
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import Rentals
from bus import Transaction
from protocol.money import BillRequest, EmergencyReport, ReleaseRequest, SettleRequest, StoppedRental


class Till:
    """Settles what jobs owe for rented machines.

    Args:
        billing: providers that tell what they have charged.
    """

    def __init__(self, billing: frozenset[str]) -> None:
        self._billing = billing

    def settle(self, tx: Transaction) -> None:
        """Tell the cost monitor what jobs have paid for, and end the reservations of those that are over."""
        store = Rentals(tx.connection)
        for payer in store.take_untold():
            rental = store.of(payer.rental)
            assert rental is not None and payer.micros is not None
            if payer.micros:
                part = SettleRequest(
                    reservation=payer.reservation, job=payer.job, amount_micros=payer.micros, rental=rental.id,
                    part=f"{rental.id} {payer.number}", provider=rental.provider,
                    bill_follows=rental.provider in self._billing,
                )  # fmt: skip
                id = f"{payer.reservation}:{rental.id}:{payer.number}"
                tx.call("budget.settle", part, key=payer.job, id=id, context={"payer": payer.number})
        for account in store.take_ended():
            rest = ReleaseRequest(reservation=account.reservation, job=account.job)
            tx.call("budget.release", rest, key=account.job, id=f"{account.reservation}:release")

    def settled(self, payer: int, tx: Transaction) -> None:
        """Take in that the cost monitor has a part: only when it has all of them a reservation may end."""
        Rentals(tx.connection).entered(payer)
        self.settle(tx)

    def bill(self, rental: Rental, tx: Transaction) -> None:
        """Tell the cost monitor what the provider charges, beside what the meter says."""
        assert rental.metered_from is not None and rental.ended_at is not None
        jobs: dict[str, int] = {}
        for payer in Rentals(tx.connection).payers(rental.id):
            jobs[payer.job] = jobs.get(payer.job, 0) + (payer.micros or 0)
        bill = BillRequest(
            provider=rental.provider, rental=rental.id, jobs=jobs, billed_micros=rental.billed_micros,
            since=rental.metered_from, until=max(rental.metered_from, rental.ended_at),  # the clock may have been set back
        )  # fmt: skip
        content = hashlib.sha256(bill.model_dump_json().encode()).hexdigest()[:16]
        tx.call("budget.bill", bill, key=rental.id, id=f"{rental.id}:bill:{content}")

    def report(self, began: datetime, tx: Transaction) -> EmergencyReport:
        """Return what a freeze has stopped."""
        store = Rentals(tx.connection)
        stopped = [
            StoppedRental(
                rental=rental.id, provider=rental.provider, cost_micros=meter.reading(rental, tx.now),
                job=next((payer.job for payer in reversed(store.payers(rental.id))), ""),
                verified_gone_at=rental.ended_at if rental.state is State.GONE else None,
            )
            for rental in store.stopped_by(began)
        ]  # fmt: skip
        return EmergencyReport(began_at=began, stopped=stopped, at=tx.now)

    def unpaid(self, rental: Rental, tx: Transaction) -> None:
        """Tell of a machine that nobody has paid for, where its provider will not: the own meter is all there is."""
        assert rental.ended_at is not None
        paid = sum(payer.micros or 0 for payer in Rentals(tx.connection).payers(rental.id))
        if rental.provider not in self._billing and meter.reading(rental, rental.ended_at) > paid:
            self.bill(rental.model_copy(update={"billed_micros": meter.reading(rental, rental.ended_at)}), tx)
