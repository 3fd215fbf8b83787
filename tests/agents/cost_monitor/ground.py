"""What tests of the ledger stand on."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.tables import MIGRATIONS
from configs import Budget

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
CENT = 10_000
DOLLAR = 1_000_000
BUDGET = Budget(
    monthly_usd=50, weekly_usd=25, daily_usd=5, alert_percents=(50, 80, 90, 95), optimise_percent=80, freeze_percent=95
)


def opened(path: Path | str = ":memory:") -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = OFF")  # no test pulls the plug of the machine
    return connection


def fresh(budget: Budget = BUDGET, path: Path | str = ":memory:") -> Ledger:
    connection = opened(path)
    connection.executescript("BEGIN;" + "".join(MIGRATIONS) + "COMMIT;")
    return Ledger(connection, budget)


def reserve(
    ledger: Ledger, name: str, amount: int, now: datetime = NOON, provider: str = "local"
) -> list[tuple[str, int]]:
    _, alerts = ledger.reserve(name, f"job-{name}", amount, provider, "sleep", now)
    return [(alert.period, alert.threshold) for alert in alerts]


def day(ledger: Ledger, now: datetime = NOON) -> tuple[int, int]:
    """What was spent, and what is set aside."""
    sums = ledger.sums(now)[0]
    return sums.spent, sums.reserved


def lines(ledger: Ledger) -> list[tuple[str, str, int]]:
    return [(entry.kind, entry.reservation, entry.amount_micros) for entry in ledger.entries.page(0).entries]
