"""The lines of the ledger, and their sums. Append-only; all SQL over `entries` that counts money is here.

The ledger's time never goes back: while the clock is behind the newest entry, that entry's time holds. So a clock set back opens
no period again whose room was used up or has passed, and the ledger waits until the clock has caught up. A clock that is set
ahead does open the next period: nothing here can know better. An entry counts in the periods of the ledger's time; a refund in
those of what it refunds, so that it makes no room elsewhere.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Literal

from protocol.envelope import MAX_BYTES
from protocol.money import Entry, EntryPage

Kind = Literal["reserve", "extend", "part", "settle", "release", "correct"]

COUNTS = "kind IN ('part', 'settle', 'correct') AND counts_at >= :since"
"""Whether an entry counts in the period that began at :since; what is dated later than its end does as well (SLACK)."""
SLACK = timedelta(days=32)
"""How far the clock may have gone back, a month: an entry that is dated further ahead is of a clock that was wrong. It counts in
every period until its date has come, but the ledger's time does not wait years for that."""
PAGE_BYTES = MAX_BYTES // 2
"""Of entries in one page; the rest of a message is for its envelope."""
PAGE_ENTRIES = 500
"""About PAGE_BYTES of usual entries."""


class Entries:
    """The entries in a database that has the tables; `sqlite3.Row` is its row factory, and the caller commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def append(
        self, kind: Kind, amount: int, now: datetime, *, reservation: str, job: str, provider: str, domain: str,
        rental: str = "", part: str = "", bill_follows: bool = False, counts_at: float | None = None,
        refunds: int | None = None, note: str = "",
    ) -> None:  # fmt: skip
        """Add a line, for ever."""
        if counts_at is None:
            counts_at = self.time(now).timestamp()
        self._connection.execute(
            "INSERT INTO entries (at, counts_at, kind, reservation, job, provider, domain, rental, part, bill_follows,"
            " amount_micros, refunds, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (now.timestamp(), counts_at, kind, reservation, job, provider, domain, rental, part,
             bill_follows, amount, refunds, note),
        )  # fmt: skip

    def time(self, now: datetime) -> datetime:
        """Return the ledger's time: the clock's, or the newest entry's while the clock is behind it."""
        newest = self._connection.execute(
            "SELECT max(counts_at) FROM entries WHERE counts_at <= ?", ((now + SLACK).timestamp(),)
        ).fetchone()[0]
        return now if newest is None else max(now, datetime.fromtimestamp(newest, UTC))

    def reserved(self, reservation: str) -> sqlite3.Row | None:
        """Return a reservation's first line."""
        return self._row("SELECT * FROM entries WHERE reservation = ? AND kind = 'reserve'", reservation)

    def ended(self, reservation: str) -> sqlite3.Row | None:
        """Return a reservation's end, or None while it is open."""
        return self._row("SELECT * FROM entries WHERE reservation = ? AND kind IN ('settle', 'release')", reservation)

    def part(self, reservation: str, part: str) -> sqlite3.Row | None:
        """Return a part that was settled."""
        return self._row("SELECT * FROM entries WHERE reservation = ? AND part = ? AND kind = 'part'", reservation, part)

    def set_aside(self, reservation: str) -> int:
        """Return what was reserved in all, extensions included."""
        return self.sum("reservation = ? AND kind IN ('reserve', 'extend')", reservation)

    def paid(self, reservation: str) -> int:
        """Return what a reservation has paid, corrections included."""
        return self.sum("reservation = ? AND kind IN ('part', 'settle', 'correct')", reservation)

    def payer(self, provider: str, rental: str, job: str) -> sqlite3.Row | None:
        """Return the line by which a job paid for an instance; where it has not yet, that of its newest reservation."""
        return self._row(
            "SELECT * FROM entries WHERE job = ? AND (kind = 'reserve' OR (provider = ? AND rental = ? AND kind IN ('part', 'settle')))"
            " ORDER BY kind = 'reserve', number DESC LIMIT 1",
            job, provider, rental,
        )  # fmt: skip

    def spent(self, since: datetime) -> int:
        """Return what was spent in the period that began then."""
        return self.sum(COUNTS, since=since.timestamp())

    def spent_by(self, column: Literal["job", "provider", "domain"], since: datetime, limit: int) -> dict[str, int]:
        """Return what was spent in a period by job, provider or domain; the newest first."""
        rows = self._connection.execute(
            f"SELECT {column} AS name, sum(amount_micros) AS spent FROM entries WHERE {COUNTS}"
            f" GROUP BY {column} ORDER BY max(number) DESC LIMIT :limit",
            {"since": since.timestamp(), "limit": limit},
        )
        return {row["name"]: row["spent"] for row in rows}

    def spent_by_day(self, since: datetime, until: datetime) -> dict[str, int]:
        """Return what was spent on each UTC day on which anything was, as YYYY-MM-DD."""
        rows = self._connection.execute(
            "SELECT strftime('%Y-%m-%d', counts_at, 'unixepoch') AS day, sum(amount_micros) AS spent FROM entries"
            " WHERE kind IN ('part', 'settle', 'correct') AND counts_at >= ? AND counts_at < ? GROUP BY day ORDER BY day",
            (since.timestamp(), until.timestamp()),
        )
        return {row["day"]: row["spent"] for row in rows if row["spent"]}

    def page(self, after: int) -> EntryPage:
        """Return the entries with a greater number, as many as one message holds."""
        rows = self._connection.execute(
            "SELECT * FROM entries WHERE number > ? ORDER BY number LIMIT ?", (after, PAGE_ENTRIES + 1)
        )
        found: list[Entry] = []
        size = 0
        for row in rows:
            entry = _entry(row)
            size += len(entry.model_dump_json().encode())
            if found and (size > PAGE_BYTES or len(found) == PAGE_ENTRIES):
                return EntryPage(entries=found, more=True)
            found.append(entry)
        return EntryPage(entries=found)

    def sum(self, condition: str, *arguments: object, **named: object) -> int:
        """Return the sum of the amounts of the entries that meet an SQL condition."""
        sql = f"SELECT coalesce(sum(amount_micros), 0) FROM entries WHERE {condition}"
        return int(self._connection.execute(sql, named or arguments).fetchone()[0])

    def _row(self, sql: str, *arguments: object) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._connection.execute(sql, arguments).fetchone()
        return row


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        number=row["number"], at=datetime.fromtimestamp(row["at"], UTC), kind=row["kind"], reservation=row["reservation"],
        job=row["job"], provider=row["provider"], domain=row["domain"], rental=row["rental"],
        amount_micros=row["amount_micros"], counts_at=datetime.fromtimestamp(row["counts_at"], UTC), note=row["note"],
    )  # fmt: skip
