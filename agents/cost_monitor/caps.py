"""Budgets that are changed while the lab runs: lower at once, higher only with a signature.

A change holds as long as budget_settings.json says what it said then; who edits the file has the last word.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

from agents.cost_monitor.ledger import Ledger
from configs import Budget
from configs.budget import Period
from protocol import Code, LabError
from protocol.money import CapReply, CapRequest, dollars

AHEAD = timedelta(minutes=5)
"""How far the clock of who signs may be ahead: a time far ahead would keep every later signature out."""
PERIOD_OF: dict[str, Period] = {"daily_usd": "day", "weekly_usd": "week", "monthly_usd": "month"}


class Caps:
    """The changes of a budget, in the ledger's database.

    Args:
        configured: the budget of budget_settings.json.
    """

    def __init__(self, connection: sqlite3.Connection, configured: Budget) -> None:
        self._connection = connection
        self._configured = configured

    def budget(self) -> Budget:
        """Return the budget that holds."""
        changed: dict[str, float] = {}
        for row in self._connection.execute("SELECT name, usd, configured_usd FROM caps ORDER BY number"):
            if row["configured_usd"] == getattr(self._configured, row["name"]):
                changed[row["name"]] = row["usd"]
        return self._configured.model_copy(update=changed)

    def wishes(self) -> dict[str, int]:
        """Return the budgets that wait for approval, in micro-dollars."""
        rows = self._connection.execute("SELECT name, usd FROM wishes ORDER BY name")
        return {row["name"]: micros(row["usd"]) for row in rows}

    def set(self, request: CapRequest, signer: str | None, now: datetime) -> CapReply:
        """Change a budget, or note the wish for a higher one.

        Args:
            signer: the name of the trusted key that signed it; None: nobody did.

        Raises:
            LabError: BUDGET with the sums, it is below what is spent and reserved already; CONFLICT, the signature is not
                newer than the last change of this budget.
        """
        before, after = micros(getattr(self.budget(), request.name)), micros(request.usd)
        if after > before and signer is None:
            self._connection.execute(
                "INSERT OR REPLACE INTO wishes VALUES (?, ?, ?)", (request.name, request.usd, now.timestamp())
            )
            return CapReply(name=request.name, state="waits", cap_micros=before, wished_micros=after)
        if after < before:
            self._must_hold(request, after, now)
        if after > before:
            self._must_be_new(request, now)
        self._connection.execute("DELETE FROM wishes WHERE name = ?", (request.name,))
        if after == before:
            return CapReply(name=request.name, state="same", cap_micros=before)
        at = request.at if signer is not None and request.at is not None else now
        self._connection.execute(
            "INSERT INTO caps (name, usd, configured_usd, at, signer) VALUES (?, ?, ?, ?, ?)",
            (request.name, request.usd, getattr(self._configured, request.name), at.timestamp(), signer or ""),
        )
        return CapReply(name=request.name, state="set", cap_micros=after)

    def _must_hold(self, request: CapRequest, cap: int, now: datetime) -> None:
        period = PERIOD_OF[request.name]
        sums = next(item for item in Ledger(self._connection, self.budget()).sums(now) if item.period == period)
        if cap < sums.used:
            raise LabError(
                Code.BUDGET, f"{request.name} cannot be {dollars(cap)}: {sums}.",
                advice=f"Give at least {dollars(sums.used)}; that freezes paid work. `meetara cancel` frees what a job reserves.",
                field="usd", needed_micros=sums.used, **sums.facts(),
            )  # fmt: skip

    def _must_be_new(self, request: CapRequest, now: datetime) -> None:
        """A signature that was seen once must not undo what came later."""
        last = self._connection.execute("SELECT max(at) FROM caps WHERE name = ?", (request.name,)).fetchone()[0]
        if request.at is not None and request.at > now + AHEAD:
            raise LabError(
                Code.INVALID_PARAMS, f"at: {request.name} was signed in the future, at {request.at.isoformat()}.",
                advice="Set the clock of the machine that signs.", field="at",
            )  # fmt: skip
        if request.at is None or (last is not None and request.at.timestamp() <= last):
            raise LabError(
                Code.CONFLICT, f"{request.name} was changed after this was signed.", advice="Sign it again.", field="at"
            )


def micros(usd: float) -> int:
    """Return dollars in micro-dollars, rounded down as `Budget.caps` does."""
    return int((Decimal(str(usd)) * 1_000_000).to_integral_value(ROUND_FLOOR))
