"""Leases: who may work on a job, until when, proven by a fence that grows with every grant of the job.

Pure: the connection, the time and the ids are passed in; the caller's transaction makes each change atomic. A lease that is
past its time stays valid until its owner of record (the orchestrator) has taken it with `take_expired`: so there is never a
moment in which two holders could both be right.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from protocol.errors import Code, LabError

LEASE_SECONDS = "MEETARA_LEASE_SECONDS"
"""Environment of all agents of a lab: another lease time. For tests of lost leases, which would wait for half a minute."""
TTL = timedelta(seconds=float(os.environ.get(LEASE_SECONDS) or 30))
"""How long a lease lives without renewal. A holder renews about every 10 s: two renewals may be lost (a broker's restart
takes a few seconds) before a job is given to another machine, and a dead machine's job waits for half a minute at most."""

SCHEMA = """
CREATE TABLE leases (
    job TEXT PRIMARY KEY,            -- a job has one holder at most
    lease TEXT NOT NULL UNIQUE,
    fence INTEGER NOT NULL,
    machine TEXT NOT NULL,
    memory_bytes INTEGER NOT NULL,   -- what the job may take of the machine
    price_micros_per_hour INTEGER NOT NULL,
    expires_at REAL NOT NULL         -- Unix time
) WITHOUT ROWID;
CREATE INDEX leases_expiry ON leases (expires_at);
CREATE TABLE fences (                -- outlives the leases, so that a fence is never used twice
    job TEXT PRIMARY KEY,
    fence INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Lease:
    """The right to run `job` on `machine` until `expires_at` (UTC)."""

    job: str
    lease: str
    fence: int
    machine: str
    memory_bytes: int
    price_micros_per_hour: int
    expires_at: datetime


class Leases:
    """The leases in one database that has SCHEMA's tables.

    Args:
        connection: with `sqlite3.Row` as row factory; the caller commits.
        ttl: life without renewal.
    """

    def __init__(self, connection: sqlite3.Connection, ttl: timedelta = TTL) -> None:
        self._connection = connection
        self.ttl = ttl

    def grant(
        self, job: str, lease: str, machine: str, now: datetime, *, memory_bytes: int = 0, price_micros_per_hour: int = 0
    ) -> Lease:
        """Lease a job to a machine. A job that holds a lease keeps it: the same one is returned.

        Args:
            lease: a fresh id for the new lease.
        """
        held = self.of(job)
        if held is not None:
            return held
        fence = int(
            self._connection.execute(
                "INSERT INTO fences VALUES (?, 1) ON CONFLICT (job) DO UPDATE SET fence = fence + 1 RETURNING fence", (job,)
            ).fetchone()[0]
        )
        granted = Lease(job, lease, fence, machine, memory_bytes, price_micros_per_hour, now + self.ttl)
        self._connection.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)",
            (job, lease, fence, machine, memory_bytes, price_micros_per_hour, granted.expires_at.timestamp()),
        )
        return granted

    def renew(self, job: str, lease: str, fence: int, now: datetime) -> Lease:
        """Let a lease live for another ttl from now.

        Raises:
            LabError: FENCED; the job is leased anew, or not at all: the holder must stop.
        """
        held = self.of(job)
        if held is None or held.lease != lease or held.fence != fence:
            raise self._fenced(job, fence)
        until = now + self.ttl  # also where that is earlier: then the clock was set back, and nobody was promised more
        self._connection.execute("UPDATE leases SET expires_at = ? WHERE job = ?", (until.timestamp(), job))
        return self._one(job)

    def check(self, job: str, fence: int) -> Lease:
        """Return the live lease of a job if `fence` is its fence.

        Raises:
            LabError: FENCED.
        """
        held = self.of(job)
        if held is None or held.fence != fence:
            raise self._fenced(job, fence)
        return held

    def release(self, job: str, lease: str | None = None) -> Lease | None:
        """End a job's lease and return it; None if it was over already or `lease` names another one.

        Args:
            lease: the lease to end; None: whichever the job holds.
        """
        held = self.of(job)
        if held is None or lease not in (None, held.lease):
            return None
        self._connection.execute("DELETE FROM leases WHERE job = ?", (job,))
        return held

    def expired(self, now: datetime) -> list[Lease]:
        """Return leases whose time is over, oldest first."""
        rows = self._connection.execute(
            "SELECT * FROM leases WHERE expires_at <= ? ORDER BY expires_at, job", (now.timestamp(),)
        )
        return [_lease(row) for row in rows]

    def take_expired(self, now: datetime) -> list[Lease]:
        """End the leases whose time is over and return them."""
        over = self.expired(now)
        for lease in over:
            self._connection.execute("DELETE FROM leases WHERE job = ?", (lease.job,))
        return over

    def grace(self, now: datetime) -> list[Lease]:
        """Give every lease one ttl from now, and return all: for an authority that was away."""
        self._connection.execute("UPDATE leases SET expires_at = ?", ((now + self.ttl).timestamp(),))
        return self.live()

    def shift(self, seconds: float) -> None:
        """Move the end of every lease by so many seconds (the wall clock was set)."""
        self._connection.execute("UPDATE leases SET expires_at = expires_at + ?", (seconds,))

    def of(self, job: str) -> Lease | None:
        """Return the lease that a job holds."""
        row = self._connection.execute("SELECT * FROM leases WHERE job = ?", (job,)).fetchone()
        return None if row is None else _lease(row)

    def live(self) -> list[Lease]:
        """Return all leases, by job."""
        return [_lease(row) for row in self._connection.execute("SELECT * FROM leases ORDER BY job")]

    def machines(self) -> set[str]:
        """Return the machines that somebody leases."""
        return {row[0] for row in self._connection.execute("SELECT machine FROM leases")}

    def _one(self, job: str) -> Lease:
        return _lease(self._connection.execute("SELECT * FROM leases WHERE job = ?", (job,)).fetchone())

    def _fenced(self, job: str, fence: int) -> LabError:
        row = self._connection.execute("SELECT fence FROM fences WHERE job = ?", (job,)).fetchone()
        current = int(row["fence"]) if row else 0
        held = self.of(job)
        state = f"it is leased with fence {held.fence}" if held else "it is not leased"
        return LabError(
            Code.FENCED, f"fence {fence} no longer holds job {job}: {state}.",
            advice="Stop working on the job; its results would be refused.", job=job, fence=fence, current_fence=current,
        )  # fmt: skip


def _lease(row: sqlite3.Row) -> Lease:
    return Lease(
        row["job"], row["lease"], row["fence"], row["machine"], row["memory_bytes"], row["price_micros_per_hour"],
        datetime.fromtimestamp(row["expires_at"], UTC),
    )  # fmt: skip
