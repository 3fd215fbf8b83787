"""Providers whose bills were far from their prices: nothing is rented from them until a person has looked."""

from __future__ import annotations

import sqlite3
from datetime import datetime

from protocol import Code, LabError


class Trust:
    """Which providers are frozen, in the ledger's database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def frozen(self) -> dict[str, str]:
        """Return from whom nothing is rented any more, and why."""
        rows = self._connection.execute("SELECT provider, reason FROM frozen_providers ORDER BY provider")
        return {row["provider"]: row["reason"] for row in rows}

    def freeze(self, provider: str, reason: str, now: datetime) -> None:
        """Rent nothing from a provider any more; the first reason stays."""
        self._connection.execute(
            "INSERT OR IGNORE INTO frozen_providers VALUES (?, ?, ?)", (provider, now.timestamp(), reason)
        )

    def unfreeze(self, provider: str, at: datetime) -> None:
        """Trust a provider again; `at` is when that was signed.

        Raises:
            LabError: NOT_FOUND, it is not frozen; CONFLICT, it was frozen after that.
        """
        row = self._connection.execute("SELECT at FROM frozen_providers WHERE provider = ?", (provider,)).fetchone()
        if row is None:
            listed = ", ".join(self.frozen()) or "none"
            raise LabError(
                Code.NOT_FOUND, f"{provider} is not frozen.", advice=f"Frozen are: {listed}.", field="provider"
            )
        if at.timestamp() <= row["at"]:
            raise LabError(Code.CONFLICT, f"{provider} was frozen after this was signed.", advice="Sign it again.", field="at")
        self._connection.execute("DELETE FROM frozen_providers WHERE provider = ?", (provider,))
