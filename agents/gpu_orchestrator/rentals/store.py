"""Rentals, who pays for them, and the accounts of the jobs, in the orchestrator's database. All SQL of it is here."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from agents.gpu_orchestrator.rentals import life
from agents.gpu_orchestrator.rentals.meter import Payer, share
from agents.gpu_orchestrator.rentals.rental import Rental, State

SCHEMA = """
CREATE TABLE rentals (
    id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    state TEXT NOT NULL,
    record TEXT NOT NULL               -- the Rental as JSON
) WITHOUT ROWID;
CREATE INDEX rentals_living ON rentals (provider) WHERE state <> 'gone';
CREATE INDEX rentals_unbilled ON rentals (id) WHERE state = 'gone' AND record ->> 'bill_at' IS NOT NULL;
CREATE INDEX rentals_stopped ON rentals (id) WHERE record ->> 'stopped_by' IS NOT NULL;
CREATE TABLE payers (                  -- the meter of a rental, cut by the jobs that pay
    number INTEGER PRIMARY KEY,
    rental TEXT NOT NULL,
    job TEXT NOT NULL,
    reservation TEXT NOT NULL,
    since REAL NOT NULL,
    until REAL,                        -- NULL: it still pays
    micros INTEGER,                    -- what it owes; NULL while it pays
    told INTEGER NOT NULL DEFAULT 0    -- 1: the cost monitor was told, 2: it has answered
);
CREATE UNIQUE INDEX paying_now ON payers (rental) WHERE until IS NULL;
CREATE INDEX payers_by_job ON payers (job);
CREATE TABLE accounts (                -- jobs with money set aside for machines
    job TEXT PRIMARY KEY,
    reservation TEXT NOT NULL,
    reserved_micros INTEGER NOT NULL,
    agreed_micros INTEGER NOT NULL,    -- what was reserved at first, as it was quoted
    over INTEGER NOT NULL DEFAULT 0,   -- the job has ended, nothing more is bought for it
    settled INTEGER NOT NULL DEFAULT 0,
    refused TEXT NOT NULL DEFAULT ''   -- why no more is set aside
) WITHOUT ROWID;
CREATE TABLE shunned (                 -- listings that were not what they said
    provider TEXT NOT NULL,
    listing TEXT NOT NULL,
    reason TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (provider, listing)
) WITHOUT ROWID;
"""
SHUNNED_FOR_NOW = "ALTER TABLE shunned ADD COLUMN until REAL"  # NULL: for ever


@dataclass(frozen=True)
class Account:
    """The money of one job. `refused`: why the cost monitor sets no more aside for it."""

    job: str
    reservation: str
    reserved_micros: int
    agreed_micros: int
    over: bool
    settled: bool
    refused: str


@dataclass(frozen=True)
class Paying:
    """Who pays for a rental now. `left_micros`: what its account had left for this rental when it began to."""

    payer: Payer
    account: Account
    left_micros: int


class Rentals:
    """The rentals in a database that has SCHEMA's tables.

    Args:
        connection: with `sqlite3.Row` as row factory; the caller commits.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def living(self, provider: str | None = None) -> list[Rental]:
        """Return rentals that are not gone, oldest first."""
        rows = self._connection.execute(
            "SELECT record FROM rentals WHERE state <> 'gone' AND ? IN (provider, '')", (provider or "",)
        )
        return sorted((read(row["record"]) for row in rows), key=lambda found: (found.created_at, found.id))

    def unbilled(self, provider: str) -> list[Rental]:
        """Return rentals that are gone and whose bill is still asked for."""
        return [rental for rental in self._unbilled() if rental.provider == provider]

    def _unbilled(self) -> list[Rental]:
        rows = self._connection.execute("SELECT record FROM rentals WHERE state = 'gone' AND record ->> 'bill_at' IS NOT NULL")
        return [read(row["record"]) for row in rows]

    def stopped_by(self, began: datetime) -> list[Rental]:
        """Return what the freeze that began then has ended."""
        rows = self._connection.execute("SELECT record FROM rentals WHERE record ->> 'stopped_by' IS NOT NULL")
        found = [read(row["record"]) for row in rows]
        return [rental for rental in found if rental.stopped_by == began]

    def of(self, id: str) -> Rental | None:
        row = self._connection.execute("SELECT record FROM rentals WHERE id = ?", (id,)).fetchone()
        return read(row["record"]) if row else None

    def save(self, rental: Rental) -> None:
        """Write a rental; one that is gone stops its meter."""
        self._connection.execute(
            "INSERT OR REPLACE INTO rentals VALUES (?, ?, ?, ?)",
            (rental.id, rental.provider, rental.state.value, rental.model_dump_json()),
        )
        if rental.state is State.GONE and (payer := self.payer(rental.id)) is not None:
            self._close(rental, payer, rental.ended_at or rental.state_at)

    def payers(self, rental: str) -> list[Payer]:
        """Return who has paid for a rental, in order."""
        rows = self._connection.execute("SELECT * FROM payers WHERE rental = ? ORDER BY number", (rental,))
        return [_payer(row) for row in rows]

    # who pays

    def payer(self, rental: str) -> Payer | None:
        """Return who pays for a rental now."""
        row = self._connection.execute("SELECT * FROM payers WHERE rental = ? AND until IS NULL", (rental,)).fetchone()
        return _payer(row) if row else None

    def paying(self, living: Iterable[Rental], now: datetime) -> dict[str, Paying]:
        """Return who pays for which of the living rentals now, by the rental's id."""
        machines = {rental.id: rental for rental in living}
        rows = self._connection.execute(
            "SELECT p.*, a.reserved_micros, a.agreed_micros, a.over, a.settled, a.refused"
            " FROM payers p JOIN accounts a USING (job) WHERE until IS NULL"
        ).fetchall()
        closed = self._connection.execute(
            "SELECT job, sum(micros) FROM payers WHERE until IS NOT NULL AND job IN (SELECT job FROM payers WHERE until IS NULL)"
            " GROUP BY job"
        )
        spent: dict[str, int] = defaultdict(int, ((row[0], row[1]) for row in closed))
        payers = [(_payer(row), _account(row)) for row in rows if row["rental"] in machines]
        shares = {payer.rental: share(machines[payer.rental], payer, now) for payer, _ in payers}
        for payer, _ in payers:
            spent[payer.job] += shares[payer.rental]
        return {  # what other machines of a job cost is not left for this one
            payer.rental: Paying(payer, account, account.reserved_micros - (spent[payer.job] - shares[payer.rental]))
            for payer, account in payers
        }

    def pays(self, rental: Rental, account: Account, now: datetime) -> None:
        """Let a job pay for a rental from now on, instead of whoever did."""
        before = self.payer(rental.id)
        if before is not None and before.job == account.job:
            return
        if before is not None:
            self._close(rental, before, now)
        self._connection.execute(
            "INSERT INTO payers (rental, job, reservation, since) VALUES (?, ?, ?, ?)",
            (rental.id, account.job, account.reservation, now.timestamp()),
        )

    def paid_by(self, job: str) -> list[Payer]:
        """Return all that a job pays and has paid for, in order."""
        rows = self._connection.execute("SELECT * FROM payers WHERE job = ? ORDER BY number", (job,))
        return [_payer(row) for row in rows]

    def spent(self, job: str, now: datetime) -> int:
        """Return what a job owes so far, in micro-dollars."""
        total = 0
        for payer in self.paid_by(job):
            rental = self.of(payer.rental)
            assert rental is not None
            total += payer.micros if payer.micros is not None else share(rental, payer, now)
        return total

    def _close(self, rental: Rental, payer: Payer, at: datetime) -> None:
        self._connection.execute(
            "UPDATE payers SET until = ?, micros = ? WHERE rental = ? AND until IS NULL",
            (at.timestamp(), share(rental, payer, at), rental.id),
        )

    # accounts

    def account(self, job: str) -> Account | None:
        row = self._connection.execute("SELECT * FROM accounts WHERE job = ?", (job,)).fetchone()
        return None if row is None else _account(row)

    def open_account(self, job: str, reservation: str, reserved_micros: int) -> Account:
        """Note what was set aside for a job. A job that was over and comes back with the same reservation goes on."""
        self._connection.execute(
            "INSERT INTO accounts (job, reservation, reserved_micros, agreed_micros) VALUES (?, ?, ?, ?) ON CONFLICT (job)"
            " DO UPDATE SET reserved_micros = max(reserved_micros, excluded.reserved_micros), refused = ''",
            (job, reservation, reserved_micros, reserved_micros),
        )
        account = self.account(job)
        assert account is not None
        return account

    def extended(self, job: str, reserved_micros: int) -> None:
        """Note that more was set aside."""
        self._connection.execute("UPDATE accounts SET reserved_micros = ? WHERE job = ?", (reserved_micros, job))

    def refuse(self, job: str, reason: str) -> None:
        """Note that no more is set aside."""
        self._connection.execute("UPDATE accounts SET refused = ? WHERE job = ?", (reason, job))

    def end_account(self, job: str, reservation: str | None) -> None:
        """Note that a job is over; one that never came to ask for a machine still has its reservation."""
        if reservation is not None and self.account(job) is None:
            self.open_account(job, reservation, 0)
        self._connection.execute("UPDATE accounts SET over = 1 WHERE job = ?", (job,))

    def shift(self, seconds: float, metered: float) -> None:
        """Follow the wall clock, which was set; see `life.shifted`."""
        for rental in [*self.living(), *self._unbilled()]:
            self.save(life.shifted(rental, seconds, metered))
        self._connection.execute("UPDATE payers SET since = since + ? WHERE until IS NULL", (metered,))

    def take_untold(self) -> list[Payer]:
        """Return payers whose time is over and of which the cost monitor was not told; each once."""
        rows = self._connection.execute("SELECT * FROM payers WHERE until IS NOT NULL AND NOT told ORDER BY number").fetchall()
        self._connection.execute("UPDATE payers SET told = CASE WHEN micros THEN 1 ELSE 2 END WHERE until IS NOT NULL AND NOT told")
        return [_payer(row) for row in rows]

    def entered(self, number: int) -> None:
        """Note that the cost monitor has entered what a payer owes."""
        self._connection.execute("UPDATE payers SET told = 2 WHERE number = ?", (number,))

    def take_ended(self) -> list[Account]:
        """Return accounts of jobs that are over, pay for nothing any more, and whose payments are entered; each once."""
        rows = self._connection.execute(
            "UPDATE accounts SET settled = 1 WHERE over AND NOT settled AND NOT EXISTS"
            " (SELECT 1 FROM payers WHERE payers.job = accounts.job AND told < 2) RETURNING job"
        ).fetchall()
        return [account for row in rows if (account := self.account(row["job"])) is not None]

    # listings that lied

    def shun(self, rental: Rental, reason: str, now: datetime, until: datetime | None = None) -> None:
        """Take a listing no more; `until` None: never again."""
        self._connection.execute(
            "INSERT OR REPLACE INTO shunned VALUES (?, ?, ?, ?, ?)",
            (rental.provider, rental.listing.id, reason, now.timestamp(), until and until.timestamp()),
        )

    def shunned(self, now: datetime) -> dict[tuple[str, str], str]:
        """Return (provider, listing) to the reason."""
        rows = self._connection.execute("SELECT * FROM shunned WHERE until IS NULL OR until > ?", (now.timestamp(),))
        return {(row["provider"], row["listing"]): row["reason"] for row in rows}


@lru_cache(maxsize=4096)
def read(record: str) -> Rental:
    """Return a rental from its JSON. Kept: hundreds are looked at several times a second, and few have changed."""
    return Rental.model_validate_json(record)


def _account(row: sqlite3.Row) -> Account:
    return Account(
        row["job"], row["reservation"], row["reserved_micros"], row["agreed_micros"], bool(row["over"]), bool(row["settled"]), row["refused"]
    )


def _payer(row: sqlite3.Row) -> Payer:
    until = None if row["until"] is None else datetime.fromtimestamp(row["until"], UTC)
    since = datetime.fromtimestamp(row["since"], UTC)
    return Payer(row["rental"], row["job"], row["reservation"], since, until, row["micros"], row["number"])
