"""What happens when money runs short: alerts, the optimisation, the freeze."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime

from agents.cost_monitor.period import PERIODS
from agents.cost_monitor.sums import Sums
from configs import Budget
from protocol.money import BudgetAlert, BudgetMode, Freeze, Mode

OPTIMISED = (
    "of paid machines only spot ones are taken, or such as cost less",
    "paid jobs of priority 1 wait",
    "no reservation is above half of what is left",
)
FROZEN = (
    "no paid work starts",
    "paid work that runs is checkpointed, and its machines are terminated",
)
"""What is different from a threshold on, in words (architecture §5)."""
CHANGES: dict[Mode, tuple[str, ...]] = {"normal": (), "optimise": OPTIMISED, "frozen": FROZEN}


class Thresholds:
    """The thresholds of a budget, and which of them were told.

    A freeze lasts until its period ends or its cap is changed, also when reservations are freed meanwhile: else what was
    stopped would be started again, and stopped again.
    """

    def __init__(self, connection: sqlite3.Connection, budget: Budget) -> None:
        self._connection = connection
        self._budget = budget

    def note(self, periods: Iterable[Sums], now: datetime) -> list[BudgetAlert]:
        """Note what is reached, and return the thresholds that were not told in their period.

        The highest comes last: it is the one that stays as the retained message.
        """
        alerts: list[BudgetAlert] = []
        for sums in periods:
            if sums.used == 0:
                continue  # a cap of 0 is reached by nothing at all; that is no news
            for threshold in self._budget.alert_percents:
                if sums.reached(threshold) and self._connection.execute(
                    "INSERT OR IGNORE INTO alerts VALUES (?, ?, ?)", (sums.period, sums.since.timestamp(), threshold)
                ).rowcount:
                    changes = list(CHANGES[self._mode_at(threshold)])
                    alerts.append(alert(sums, threshold, now).model_copy(update={"changes": changes}))
            if sums.reached(self._budget.freeze_percent):
                self._connection.execute(
                    "INSERT OR IGNORE INTO freezes VALUES (?, ?, ?)", (sums.period, sums.since.timestamp(), sums.cap)
                )
        return sorted(alerts, key=lambda item: (item.threshold, PERIODS.index(item.period)))

    def arm(self, periods: Iterable[Sums]) -> None:
        """Let the thresholds be told again that a budget no longer reaches because it was changed."""
        for sums in periods:
            for threshold in self._budget.alert_percents:
                if not sums.reached(threshold):
                    self._connection.execute(
                        "DELETE FROM alerts WHERE period = ? AND since = ? AND threshold = ?",
                        (sums.period, sums.since.timestamp(), threshold),
                    )

    def highest(self, sums: Sums) -> int:
        """Return the highest threshold that a period has reached; 0 if none."""
        return max((percent for percent in self._budget.alert_percents if sums.reached(percent)), default=0)

    def frozen(self, sums: Sums) -> bool:
        """Tell whether paid work is frozen in a period."""
        return sums.reached(self._budget.freeze_percent) or (
            self._connection.execute(
                "SELECT 1 FROM freezes WHERE period = ? AND since = ? AND cap_micros = ?",
                (sums.period, sums.since.timestamp(), sums.cap),
            ).fetchone()
            is not None
        )

    def mode(self, periods: Sequence[Sums], frozen_providers: dict[str, str], now: datetime) -> BudgetMode:
        """Return how paid work goes on; `until` is when the last of the periods ends that are short."""
        frozen = [sums for sums in periods if self.frozen(sums)]
        short = frozen or [sums for sums in periods if sums.reached(self._budget.optimise_percent)]
        mode: Mode = "frozen" if frozen else "optimise" if short else "normal"
        last = max(short, key=lambda sums: sums.until, default=None)
        return BudgetMode(
            mode=mode, period=last.period if last else None, until=last.until if last else None,
            changes=list(CHANGES[mode]), frozen_providers=frozen_providers, at=now,
        )  # fmt: skip

    def freeze(self, periods: Sequence[Sums], now: datetime) -> Freeze | None:
        """Return what the stop file says; None: paid work is not frozen."""
        last = max((sums for sums in periods if self.frozen(sums)), key=lambda sums: sums.until, default=None)
        if last is None:
            return None
        return Freeze(
            period=last.period, since=last.since, until=last.until, spent_micros=last.spent,
            reserved_micros=last.reserved, cap_micros=last.cap, at=now,
        )  # fmt: skip

    def told(self, periods: Iterable[Sums]) -> bool:
        """Tell whether any threshold was told in the present periods."""
        return any(
            self._connection.execute(
                "SELECT 1 FROM alerts WHERE period = ? AND since = ?", (sums.period, sums.since.timestamp())
            ).fetchone()
            for sums in periods
        )

    def _mode_at(self, threshold: int) -> Mode:
        if threshold >= self._budget.freeze_percent:
            return "frozen"
        return "optimise" if threshold >= self._budget.optimise_percent else "normal"


def alert(sums: Sums, threshold: int, now: datetime, note: str = "") -> BudgetAlert:
    """Return an alert about a period."""
    return BudgetAlert(
        period=sums.period, since=sums.since, threshold=threshold, spent_micros=sums.spent,
        reserved_micros=sums.reserved, cap_micros=sums.cap, at=now, note=note,
    )  # fmt: skip
