"""One SQLite file per agent: inbox, outbox, events, timers. All SQL of the bus is in this file.

WAL; one writer, guarded by an OS lock; integrity checked at start; each component's schema has a version.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from bus.migration import migrate
from protocol.errors import Code, LabError, Retry

SCHEMA: tuple[str, ...] = (
    """
    CREATE TABLE inbox (
        id TEXT PRIMARY KEY,              -- the caller's message id: the key of exactly-once effect
        digest TEXT NOT NULL,             -- sha256 of method and params: another body under one id is a conflict
        message TEXT NOT NULL,            -- the envelope as JSON
        priority INTEGER NOT NULL,
        response_topic TEXT,
        correlation BLOB,
        received_at REAL NOT NULL,
        next_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        state TEXT NOT NULL CHECK (state IN ('pending', 'open', 'done')),  -- open: the answer comes later
        reply TEXT                        -- the reply as JSON, kept so that a repeated call gets the same one
    );
    CREATE INDEX inbox_pending ON inbox (priority DESC, received_at) WHERE state = 'pending';
    CREATE INDEX inbox_done ON inbox (received_at) WHERE state = 'done';
    CREATE TABLE outbox (
        id TEXT PRIMARY KEY,
        method TEXT NOT NULL,
        recipient TEXT,                   -- an agent's id, or NULL for whoever serves the method
        message TEXT NOT NULL,
        key TEXT NOT NULL,
        context TEXT NOT NULL,
        deadline REAL,
        next_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        failures INTEGER NOT NULL DEFAULT 0  -- how often the handler of the reply failed
    );
    CREATE INDEX outbox_due ON outbox (next_at);
    CREATE INDEX outbox_key ON outbox (key, method);
    CREATE TABLE publications (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        retain INTEGER NOT NULL,
        expiry INTEGER
    );
    CREATE TABLE events (
        stream TEXT NOT NULL,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        data TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (stream, seq)
    ) WITHOUT ROWID;
    CREATE TABLE timers (
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        due REAL NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (name, key)
    ) WITHOUT ROWID;
    """,
)

FIRST_OF_ITS_KIND = (
    "NOT EXISTS (SELECT 1 FROM outbox AS earlier WHERE earlier.key = outbox.key AND earlier.key != ''"
    " AND earlier.method = outbox.method AND earlier.rowid < outbox.rowid)"
)
"""Reports of one job must arrive in order although each is repeated until it is answered."""

BUSY_SECONDS = 20
"""How long a transaction waits for a lock of somebody else, such as a person's sqlite3 that makes a copy. The agent
stands still meanwhile, so it is less than what the broker waits for a sign of life (1.5 × 15 s)."""
PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM,
})  # fmt: skip
"""SQLite's codes for what the surroundings do to a statement that is right: it can succeed later."""
INBOX_KEPT = timedelta(days=7)
"""How long the reply to a call is kept for a repetition; as long as the broker keeps a session."""


@dataclass(frozen=True)
class Event:
    """A numbered fact of a stream."""

    stream: str
    seq: int
    type: str
    data: dict[str, Any]
    at: datetime


def passing(error: BaseException) -> bool:
    """Tell whether an error is SQLite's about a full disk or a locked file: the same work can succeed later."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.OperationalError) and code is not None and code & 0xFF in PASSING


class Store:
    """The file. Use as a context manager, or call `close`.

    Args:
        path: the database file; its folder is made.
        synchronous: FULL where money or the truth about jobs is kept, NORMAL elsewhere (a power cut may lose the last
            transactions, a killed process never).
        migrations: the agent's own SQL scripts in order; each is applied once.

    Raises:
        LabError: CONFLICT if another process has the file, INTERNAL if it is damaged or from a newer version; BUSY (to be
            tried later) if it is locked or the disk is full.
    """

    def __init__(
        self, path: Path, *, synchronous: Literal["FULL", "NORMAL"] = "NORMAL", migrations: Sequence[str] = ()
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.synchronous = synchronous
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise LabError(
                Code.CONFLICT,
                f"{path} is in use by another process.",
                advice="Stop the other agent, or use another MEETARA_HOME.",
            ) from error
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
        self.connection.row_factory = sqlite3.Row
        try:
            self._open(synchronous, migrations)
        except BaseException as error:
            self.close()
            if not passing(error):
                raise
            raise LabError(
                Code.BUSY, f"{path} cannot be opened now: {error}.",
                advice="Free some space on its disk, or end the program that has locked the file.", retry=Retry.LATER,
            ) from error  # fmt: skip

    def _open(self, synchronous: str, migrations: Sequence[str]) -> None:
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            verdict = self.connection.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if passing(error):
                raise
            verdict = str(error)
        if verdict != "ok":
            raise LabError(
                Code.INTERNAL,
                f"{self.path} is damaged: {verdict}.",
                advice="Move the file away (keep it: `sqlite3 FILE .recover` may read it) and start again.",
            )
        self.connection.execute(f"PRAGMA synchronous = {synchronous}")
        self.connection.execute("PRAGMA foreign_keys = ON")
        if not self.identity:
            self.connection.execute(f"PRAGMA user_version = {secrets.randbelow(2**31 - 1) + 1}")
        migrate(self.connection, self.path, {"bus": SCHEMA, "agent": migrations})

    @property
    def identity(self) -> int:
        """A random number above 0 that the file got when it was made, and keeps."""
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def writable(self) -> bool:
        """Tell whether a transaction could begin now, without waiting. Must not be called inside one."""
        self.connection.execute("PRAGMA busy_timeout = 0")
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute("ROLLBACK")
        except sqlite3.OperationalError:  # locked, read-only, disk full
            return False
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        return True

    def close(self) -> None:
        """Close the file and give back the lock."""
        self.connection.close()
        os.close(self._lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE … COMMIT; an exception rolls back, also one of the commit itself.

        Args:
            durable: whether it must outlive a power cut, where the store is FULL. What is written for convenience only
                saves the wait for the disk, and reaches it with the next transaction.
        """
        lax = self.synchronous == "FULL" and not durable
        if lax:
            self.connection.execute("PRAGMA synchronous = NORMAL")
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:  # a full disk may have made SQLite roll back by itself
                self.connection.execute("ROLLBACK")
            raise
        finally:
            if lax:
                self.connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """A part of a transaction that can fail alone."""
        self.connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:  # else SQLite has rolled back everything, this part with it
                self.connection.execute("ROLLBACK TO part")
                self.connection.execute("RELEASE part")
            raise
        self.connection.execute("RELEASE part")

    # inbox

    def find_call(self, identity: str) -> sqlite3.Row | None:
        """Return the inbox row of a message id."""
        row: sqlite3.Row | None = self.connection.execute("SELECT * FROM inbox WHERE id = ?", (identity,)).fetchone()
        return row

    def find_twin(self, digest: str, since: datetime) -> sqlite3.Row | None:
        """Return a row with the same method and params that came in since then."""
        row: sqlite3.Row | None = self.connection.execute(
            "SELECT * FROM inbox WHERE digest = ? AND received_at >= ? LIMIT 1", (digest, since.timestamp())
        ).fetchone()
        return row

    def take_in(
        self, identity: str, digest: str, message: str, priority: int, response: tuple[str | None, bytes | None], now: datetime
    ) -> None:
        """Insert a call."""
        self.connection.execute(
            "INSERT INTO inbox (id, digest, message, priority, response_topic, correlation, received_at, next_at, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'pending')",
            (identity, digest, message, priority, *response, now.timestamp(), now.timestamp()),
        )

    def pending(self, now: datetime, limit: int) -> list[sqlite3.Row]:
        """Return calls to be handled now, most urgent first."""
        return self.connection.execute(
            "SELECT * FROM inbox WHERE state = 'pending' AND next_at <= ?"
            " ORDER BY priority DESC, received_at, rowid LIMIT ?",
            (now.timestamp(), limit),
        ).fetchall()

    def pending_count(self) -> int:
        """Return how many calls wait."""
        return int(self.connection.execute("SELECT count(*) FROM inbox WHERE state = 'pending'").fetchone()[0])

    def mark(self, identity: str, state: str, reply: str | None = None) -> None:
        """Set a call's state and reply."""
        self.connection.execute("UPDATE inbox SET state = ?, reply = ? WHERE id = ?", (state, reply, identity))

    def postpone_call(self, identity: str, until: datetime) -> int:
        """Count a failed attempt and return how many there were."""
        return int(
            self.connection.execute(
                "UPDATE inbox SET attempts = attempts + 1, next_at = ? WHERE id = ? RETURNING attempts",
                (until.timestamp(), identity),
            ).fetchone()[0]
        )

    def reopen(self, methods: Sequence[str]) -> int:
        """Make open calls of these methods pending again (their work died with the process)."""
        changed = 0
        for row in self.connection.execute("SELECT id, message FROM inbox WHERE state = 'open'").fetchall():
            if json.loads(row["message"])["type"] in methods:
                self.connection.execute("UPDATE inbox SET state = 'pending' WHERE id = ?", (row["id"],))
                changed += 1
        return changed

    def forget_call(self, identity: str) -> None:
        """Delete a call and its reply."""
        self.connection.execute("DELETE FROM inbox WHERE id = ?", (identity,))

    def forget(self, now: datetime) -> None:
        """Delete answered calls older than INBOX_KEPT."""
        self.connection.execute(
            "DELETE FROM inbox WHERE state = 'done' AND received_at < ?", ((now - INBOX_KEPT).timestamp(),)
        )

    # outbox

    def send(
        self, identity: str, method: str, recipient: str | None, message: str, key: str, context: dict[str, Any],
        deadline: datetime | None, now: datetime,
    ) -> bool:  # fmt: skip
        """Insert a call to be sent until it is answered; False if it is there already."""
        cursor = self.connection.execute(
            "INSERT OR IGNORE INTO outbox (id, method, recipient, message, key, context, deadline, next_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                identity, method, recipient, message, key, json.dumps(context),
                deadline.timestamp() if deadline else None, now.timestamp(),
            ),
        )  # fmt: skip
        return cursor.rowcount == 1

    def due_calls(self, now: datetime, limit: int) -> list[sqlite3.Row]:
        """Return calls that must be sent (again) now; those of one key and method go one after another, in order."""
        return self.connection.execute(
            f"SELECT * FROM outbox WHERE next_at <= ? AND {FIRST_OF_ITS_KIND} ORDER BY next_at, rowid LIMIT ?",
            (now.timestamp(), limit),
        ).fetchall()

    def outgoing(self, identity: str) -> sqlite3.Row | None:
        """Return an unanswered call."""
        row: sqlite3.Row | None = self.connection.execute("SELECT * FROM outbox WHERE id = ?", (identity,)).fetchone()
        return row

    def sent(self, calls: Sequence[tuple[str, datetime]]) -> None:
        """Count a sending of each call and set when it is repeated."""
        self.connection.executemany(
            "UPDATE outbox SET attempts = attempts + 1, next_at = ? WHERE id = ?",
            [(again.timestamp(), identity) for identity, again in calls],
        )

    def reply_failed(self, identity: str) -> int:
        """Count a failure of the reply's handler and return how many there were."""
        return int(
            self.connection.execute(
                "UPDATE outbox SET failures = failures + 1 WHERE id = ? RETURNING failures", (identity,)
            ).fetchone()[0]
        )

    def answered(self, identity: str) -> None:
        """Delete a call."""
        self.connection.execute("DELETE FROM outbox WHERE id = ?", (identity,))

    def drop_calls(self, key: str, method: str | None) -> None:
        """Delete unanswered calls by key, and method if given."""
        self.connection.execute("DELETE FROM outbox WHERE key = ? AND ? IN (method, '')", (key, method or ""))

    def send_all_again(self, now: datetime) -> None:
        """Make every unanswered call due: the broker may have forgotten them."""
        self.connection.execute("UPDATE outbox SET next_at = ?", (now.timestamp(),))

    # publications

    def publish(self, topic: str, payload: bytes, retain: bool, expiry: int | None) -> None:
        """Queue a publication; they go out in order."""
        self.connection.execute(
            "INSERT INTO publications (topic, payload, retain, expiry) VALUES (?, ?, ?, ?)",
            (topic, payload, retain, expiry),
        )

    def publications(self, limit: int) -> list[sqlite3.Row]:
        """Return the oldest publications."""
        return self.connection.execute("SELECT * FROM publications ORDER BY number LIMIT ?", (limit,)).fetchall()

    def published(self, number: int) -> None:
        """Delete the publications up to the last one that the broker acknowledged."""
        self.connection.execute("DELETE FROM publications WHERE number <= ?", (number,))

    # events and timers

    def append(self, stream: str, kind: str, data: dict[str, Any], now: datetime) -> int:
        """Append a fact and return its number in the stream, counted from 1."""
        last = self.connection.execute("SELECT max(seq) FROM events WHERE stream = ?", (stream,)).fetchone()[0]
        seq = (last or 0) + 1
        self.connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)", (stream, seq, kind, json.dumps(data), now.timestamp())
        )
        return seq

    def events(self, stream: str, since: int = 0) -> list[Event]:
        """Return the facts of a stream with a number greater than `since`."""
        rows = self.connection.execute("SELECT * FROM events WHERE stream = ? AND seq > ? ORDER BY seq", (stream, since))
        return [
            Event(row["stream"], row["seq"], row["type"], json.loads(row["data"]), datetime.fromtimestamp(row["at"], UTC))
            for row in rows
        ]

    def set_timer(self, name: str, key: str, due: datetime, data: dict[str, Any]) -> None:
        """Set a timer; one of the same name and key is replaced."""
        self.connection.execute(
            "INSERT OR REPLACE INTO timers VALUES (?, ?, ?, ?)", (name, key, due.timestamp(), json.dumps(data))
        )

    def cancel_timer(self, name: str, key: str) -> None:
        """Delete a timer."""
        self.connection.execute("DELETE FROM timers WHERE name = ? AND key = ?", (name, key))

    def shift(self, seconds: float) -> None:
        """Move everything that waits for a time by so many seconds (the wall clock was set), and what it is compared with."""
        # also of calls that are open: a restart makes them wait again
        self.connection.execute("UPDATE inbox SET received_at = received_at + ?, next_at = next_at + ?", (seconds, seconds))
        self.connection.execute("UPDATE timers SET due = due + ?", (seconds,))
        self.connection.execute("UPDATE outbox SET next_at = next_at + ?, deadline = deadline + ?", (seconds, seconds))

    def hasten_timers(self, name: str, now: datetime) -> None:
        """Make all timers of a name due."""
        self.connection.execute("UPDATE timers SET due = ? WHERE name = ?", (now.timestamp(), name))

    def seconds_ahead(self, now: datetime) -> float:
        """Return by how many seconds the newest call is later than now: by so many at least the clock was set back."""
        newest = self.connection.execute("SELECT max(received_at) FROM inbox").fetchone()[0]
        return 0.0 if newest is None else max(0.0, newest - now.timestamp())

    def due_timers(self, now: datetime) -> list[sqlite3.Row]:
        """Return timers whose time has come."""
        return self.connection.execute(
            "SELECT * FROM timers WHERE due <= ? ORDER BY due", (now.timestamp(),)
        ).fetchall()

    def next_timer(self, *, postponed: bool) -> float | None:
        """Return the Unix time of the next timer, or of the next postponed call where those count."""
        return self._earliest(
            "SELECT (SELECT min(due) FROM timers), (SELECT min(next_at) FROM inbox WHERE state = 'pending' AND ?)", postponed
        )

    def next_call(self) -> float | None:
        """Return the Unix time at which the next call must be sent (again)."""
        return self._earliest(  # min() would read them all
            f"SELECT (SELECT next_at FROM outbox WHERE {FIRST_OF_ITS_KIND} ORDER BY next_at LIMIT 1)"
        )

    def _earliest(self, sql: str, *arguments: object) -> float | None:
        row = self.connection.execute(sql, arguments).fetchone()
        return min((float(time) for time in row if time is not None), default=None)
