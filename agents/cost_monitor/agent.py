"""The cost monitor's shell: each call is one entry of the ledger, committed together with its reply."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, cast

from agents.cost_monitor.ledger import SCHEMA, Ledger
from bus import BaseAgent, Transaction, Wiring
from configs import Configs, load
from protocol import MCPMessage
from protocol.job import Empty
from protocol.money import BudgetAlert, BudgetReport, ReleaseRequest, Reservation, ReserveRequest, SettleRequest


class CostMonitorAgent(BaseAgent):
    """Keeps the ledger: reservations before anything starts, settlements after it, alerts when a threshold is crossed."""

    role: ClassVar[str] = "cost_monitor"
    migrations: ClassVar[tuple[str, ...]] = (SCHEMA,)
    synchronous: ClassVar[Literal["FULL", "NORMAL"]] = "FULL"

    def __init__(self, wiring: Wiring, configs: Configs | None = None) -> None:
        self._budget = (configs or load()).budget  # before the store is opened: a bad value must leave nothing behind
        super().__init__(wiring)
        self.message_handlers.update(
            {
                "budget.reserve": self._reserve,
                "budget.settle": self._settle,
                "budget.release": self._release,
                "budget.report": self._report,
            }
        )

    def _ledger(self, tx: Transaction) -> Ledger:
        return Ledger(tx.connection, self._budget)

    def _reserve(self, message: MCPMessage, tx: Transaction) -> Reservation:
        request = cast(ReserveRequest, self.params(message))
        # The message's id names the reservation, so that a repeated call cannot make a second one.
        reservation, alerts = self._ledger(tx).reserve(
            message.id, request.job, request.amount_micros, request.provider, request.domain, tx.now
        )
        self.log.info("reserved", amount_micros=request.amount_micros)
        self._publish(alerts, tx)
        return reservation

    def _settle(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(SettleRequest, self.params(message))
        self._publish(self._ledger(tx).settle(request.reservation, request.job, request.amount_micros, tx.now), tx)
        self.log.info("settled", amount_micros=request.amount_micros)
        return Empty()

    def _release(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(ReleaseRequest, self.params(message))
        self._ledger(tx).release(request.reservation, request.job, tx.now)
        self.log.info("released")
        return Empty()

    def _report(self, message: MCPMessage, tx: Transaction) -> BudgetReport:
        return self._ledger(tx).report(tx.now)

    def _publish(self, alerts: Iterable[BudgetAlert], tx: Transaction) -> None:
        for alert in alerts:
            self.log.warning(
                "budget alert", period=alert.period, threshold=alert.threshold, spent=alert.spent_micros,
                reserved=alert.reserved_micros, cap=alert.cap_micros, note=alert.note,
            )  # fmt: skip
            tx.publish("cost_alert", alert)
            if alert.threshold >= self._budget.freeze_percent:
                tx.publish("cost_emergency", alert)
