"""The report of the ledger: what a person asks first about money."""

from __future__ import annotations

import sqlite3
from datetime import datetime

from agents.cost_monitor.caps import Caps
from agents.cost_monitor.ledger import Ledger
from configs import Budget
from protocol.money import BudgetReport, PeriodReport, Reservation

REPORT_LIMIT = 200
"""Jobs and open reservations in one report, newest first; a message of the bus has at most 256 KiB."""


def report(connection: sqlite3.Connection, configured: Budget, now: datetime) -> BudgetReport:
    """Return the state of the ledger: all periods, and this month's spending by job, provider, domain and day.

    Args:
        configured: the budget of budget_settings.json.
    """
    caps = Caps(connection, configured)
    budget = caps.budget()
    ledger = Ledger(connection, budget)
    periods = ledger.sums(now)
    month = periods[-1]
    mode = ledger.thresholds.mode(periods, ledger.trust.frozen(), now)
    return BudgetReport(
        periods=[
            PeriodReport(
                period=item.period, since=item.since, until=item.until, cap_micros=item.cap, spent_micros=item.spent,
                reserved_micros=item.reserved, percent=round(item.percent, 3), forecast_micros=item.forecast(now),
            )
            for item in periods
        ],
        jobs=ledger.entries.spent_by("job", month.since, REPORT_LIMIT),
        providers=ledger.entries.spent_by("provider", month.since, REPORT_LIMIT),
        domains=ledger.entries.spent_by("domain", month.since, REPORT_LIMIT),
        open_reservations=open_reservations(connection),
        frozen=mode.mode == "frozen", mode=mode.mode, changes=mode.changes, frozen_providers=mode.frozen_providers,
        wishes=caps.wishes(), days=ledger.entries.spent_by_day(month.since, month.until),
        alert_percents=list(budget.alert_percents), freeze_percent=budget.freeze_percent,
    )  # fmt: skip


def open_reservations(connection: sqlite3.Connection) -> list[Reservation]:
    """Return what is set aside, the newest first."""
    rows = connection.execute(
        "SELECT e.reservation, e.job, o.amount_micros FROM open_reservations o JOIN entries e"
        " ON e.reservation = o.reservation AND e.kind = 'reserve' ORDER BY e.number DESC LIMIT ?",
        (REPORT_LIMIT,),
    )
    return [
        Reservation(reservation=row["reservation"], job=row["job"], amount_micros=row["amount_micros"]) for row in rows
    ]
