"""The cost monitor's shell: each call is one entry of the ledger, committed together with its reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from agents.cost_monitor.bills import Bills
from agents.cost_monitor.caps import Caps, micros
from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.period import end
from agents.cost_monitor.report import report
from agents.cost_monitor.tables import MIGRATIONS
from agents.cost_monitor.thresholds import alert
from bus import BaseAgent, Transaction, Wiring, keys
from bus.freeze import read_freeze, write_freeze
from configs import Configs, load
from protocol import Code, LabError, MCPMessage
from protocol.job import Empty
from protocol.money import (
    BillReport,
    BillRequest,
    BudgetAlert,
    BudgetMode,
    BudgetReport,
    CapReply,
    CapRequest,
    EntriesQuery,
    EntryPage,
    ExtendRequest,
    Freeze,
    ReleaseRequest,
    Reservation,
    ReserveRequest,
    SettleRequest,
    UnfreezeRequest,
)
from protocol.signature import signed_text


class CostMonitorAgent(BaseAgent):
    """Keeps the ledger: reservations before anything starts, settlements after it, alerts when a threshold is crossed.

    Whether paid work goes on is told in three ways: the retained `cost/mode`, the retained `cost/emergency` while it is frozen,
    and the stop file in the home, which needs no broker.
    """

    role: ClassVar[str] = "cost_monitor"
    migrations: ClassVar[tuple[str, ...]] = MIGRATIONS
    synchronous: ClassVar[Literal["FULL", "NORMAL"]] = "FULL"

    def __init__(self, wiring: Wiring, configs: Configs | None = None) -> None:
        self._configured = (configs or load()).budget  # before the store is opened: a bad value must leave nothing behind
        super().__init__(wiring)
        self.message_handlers.update(
            {
                "budget.reserve": self._reserve,
                "budget.extend": self._extend,
                "budget.settle": self._settle,
                "budget.release": self._release,
                "budget.bill": self._bill,
                "budget.report": self._report,
                "budget.entries": self._entries,
                "budget.set": self._set,
                "budget.unfreeze": self._unfreeze,
            }
        )
        self.timer_handlers["period"] = self._period_due

    def broker_forgot(self) -> None:
        """Tell again what holds, which may have changed while this agent was away: the mode, whether there is an emergency, and
        the highest threshold that is reached."""
        with self.transaction() as tx:
            ledger = self._ledger(tx)
            alerts = ledger.note(tx.now)
            worst = max(ledger.sums(tx.now), key=lambda sums: (ledger.thresholds.highest(sums), sums.percent))
            threshold = ledger.thresholds.highest(worst)
            if not alerts and worst.used and threshold:
                tx.publish("cost_alert", alert(worst, threshold, tx.now))
            self._tell(alerts, tx, again=True)

    def _budget(self, tx: Transaction) -> Caps:
        return Caps(tx.connection, self._configured)

    def _ledger(self, tx: Transaction) -> Ledger:
        return Ledger(tx.connection, self._budget(tx).budget())

    # money

    def _reserve(self, message: MCPMessage, tx: Transaction) -> Reservation:
        request = cast(ReserveRequest, self.params(message))
        # The message's id names the reservation, so that a repeated call cannot make a second one.
        reservation, alerts = self._ledger(tx).reserve(
            message.id, request.job, request.amount_micros, request.provider, request.domain, tx.now, request.limit_micros
        )
        self.log.info("reserved", amount_micros=request.amount_micros)
        self._tell(alerts, tx)
        return reservation

    def _extend(self, message: MCPMessage, tx: Transaction) -> Reservation:
        request = cast(ExtendRequest, self.params(message))
        reservation, alerts = self._ledger(tx).extend(request.reservation, request.job, request.amount_micros, tx.now)
        self.log.info("extended", amount_micros=reservation.amount_micros)
        self._tell(alerts, tx)
        return reservation

    def _settle(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(SettleRequest, self.params(message))
        ledger = self._ledger(tx)
        alerts = ledger.settle(
            request.reservation, request.job, request.amount_micros, tx.now, part=request.part, provider=request.provider,
            rental=request.rental, bill_follows=request.bill_follows,
        )  # fmt: skip
        paid = request.provider or ledger.provider(request.reservation)
        alerts += Bills(tx.connection, ledger).settled(paid, request.rental, tx.now)
        self.log.info("settled", amount_micros=request.amount_micros, part=request.part)
        self._tell(alerts, tx)
        return Empty()

    def _release(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(ReleaseRequest, self.params(message))
        self._ledger(tx).release(request.reservation, request.job, tx.now)
        self.log.info("released")
        self._tell([], tx)
        return Empty()

    def _bill(self, message: MCPMessage, tx: Transaction) -> BillReport:
        request = cast(BillRequest, self.params(message))
        found, alerts = Bills(tx.connection, self._ledger(tx)).bill(request, tx.now)
        self.log.info(
            "billed", provider=request.provider, rental=request.rental, own_micros=found.own_micros,
            billed_micros=found.billed_micros, correction_micros=found.correction_micros,
        )  # fmt: skip
        self._tell(alerts, tx)
        return found

    # questions

    def _report(self, message: MCPMessage, tx: Transaction) -> BudgetReport:
        return report(tx.connection, self._configured, tx.now)

    def _entries(self, message: MCPMessage, tx: Transaction) -> EntryPage:
        return self._ledger(tx).entries.page(cast(EntriesQuery, self.params(message)).after)

    # orders

    def _set(self, message: MCPMessage, tx: Transaction) -> CapReply:
        request = cast(CapRequest, self.params(message))
        signer = None
        if request.signature is not None:
            if request.at is None:
                raise LabError(Code.INVALID_PARAMS, "at: a signature needs its time.", advice="Sign again.", field="at")
            text = signed_text(self.topics.lab, "budget.set", request.name, micros(request.usd), request.at.isoformat())
            signer = keys.who(self.home / keys.FOLDER, request.signature, text)
        reply = self._budget(tx).set(request, signer, tx.now)
        self.log.warning("budget", name=reply.name, state=reply.state, cap_micros=reply.cap_micros, signer=signer)
        ledger = self._ledger(tx)
        if reply.state == "set":
            ledger.thresholds.arm(ledger.sums(tx.now))
        self._tell(ledger.note(tx.now), tx)
        return reply

    def _unfreeze(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(UnfreezeRequest, self.params(message))
        text = signed_text(self.topics.lab, "budget.unfreeze", request.provider, request.at.isoformat())
        signer = keys.signer(self.home / keys.FOLDER, request.signature, text)
        self._ledger(tx).trust.unfreeze(request.provider, request.at)
        self.log.warning("trusted again", provider=request.provider, signer=signer)
        self._tell([], tx)
        return Empty()

    # what the lab is told

    def clock_was_set(self, seconds: float, tx: Transaction) -> None:
        """Look at once whether a day has ended."""
        tx.hasten_timers("period")

    def _period_due(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        """A day has ended: perhaps there is room again, and open reservations count in the new periods too."""
        ledger = self._ledger(tx)
        alerts = ledger.note(tx.now)
        if not ledger.thresholds.told(ledger.sums(tx.now)):
            tx.publish("cost_alert", None)  # of a period that has ended
        self._tell(alerts, tx)

    def _tell(self, alerts: Sequence[BudgetAlert], tx: Transaction, *, again: bool = False) -> None:
        """Publish alerts, and the mode where it has changed or is to be told again; have the stop file say the same."""
        ledger = self._ledger(tx)
        periods, thresholds = ledger.sums(tx.now), ledger.thresholds
        for item in alerts:
            self.log.warning(
                "budget alert", period=item.period, threshold=item.threshold, spent=item.spent_micros,
                reserved=item.reserved_micros, cap=item.cap_micros, note=item.note,
            )  # fmt: skip
            tx.publish("cost_alert", item)
        mode, freeze = thresholds.mode(periods, ledger.trust.frozen(), tx.now), thresholds.freeze(periods, tx.now)
        row = tx.connection.execute("SELECT mode FROM told").fetchone()
        told = BudgetMode.model_validate_json(row["mode"]) if row is not None else None
        if again or told is None or told.model_copy(update={"at": mode.at}) != mode:
            tx.connection.execute("INSERT OR REPLACE INTO told VALUES (1, ?)", (mode.model_dump_json(),))
            tx.publish("cost_mode", mode)
            if freeze is not None:
                short = next(sums for sums in periods if sums.period == mode.period)
                emergency = alert(short, thresholds.highest(short), tx.now)
                tx.publish("cost_emergency", emergency.model_copy(update={"changes": mode.changes}))
            elif again or (told is not None and told.mode == "frozen"):
                tx.publish("cost_emergency", None)
        if mode.mode != "normal" or thresholds.told(periods):
            tx.timer("period", "", end("day", tx.now))
        tx.after_commit(lambda: self._write(freeze))

    def _write(self, freeze: Freeze | None) -> None:
        known = read_freeze(self.home)
        same = known is not None and freeze is not None and (known.period, known.since, known.cap_micros) == (
            freeze.period, freeze.since, freeze.cap_micros
        )  # fmt: skip
        if same or known is freeze is None:
            return
        try:
            write_freeze(self.home, freeze)
        except OSError as error:  # the next entry tries again; the bus says it meanwhile
            self.log.error("the stop file cannot be written", reason=str(error), file=str(self.home))
