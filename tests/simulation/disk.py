"""A disk: SQLite files in memory that outlive the process which writes them, and fail as real ones do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from protocol.job import Finished

Trouble = Literal["locked", "full", "spilled"]
"""locked: another program holds the write lock longer than SQLite waits. full: a commit finds no space. spilled: already a
statement finds none, because its transaction is larger than the cache."""


class Killed(BaseException):
    """The process is gone in the middle of a step."""


def trouble(message: str, code: int) -> sqlite3.OperationalError:
    """What SQLite raises for a result code."""
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class Opened:
    """One process's connection to a file. When the process is dead nothing of it reaches the file any more.

    Args:
        disk: where the file is.
        file: the connection that keeps it in memory.
        passing: called with "before_commit" and "after_commit" on the way; may raise Killed.
        committed: called after a commit.
    """

    def __init__(
        self, disk: Disk, file: sqlite3.Connection, passing: Callable[[str], None], committed: Callable[[], None]
    ) -> None:
        self._disk = disk
        self._file = file
        self._passing = passing
        self._committed = committed
        self._written = False
        self.dead = False

    def execute(self, sql: str, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        if self.dead:
            raise Killed
        word = sql.lstrip()[:6].upper()
        if word == "COMMIT":
            return self._commit()
        if word in ("INSERT", "UPDATE", "DELETE", "BEGIN "):
            if self._disk.trouble is not None:
                self._disk.fail(word)
            self._written = True
            cursor = self._file.execute(sql, parameters)  # type: ignore[arg-type]
            if not self._file.in_transaction:
                self._committed()
            return cursor
        return self._file.execute(sql, parameters)  # type: ignore[arg-type]

    def _commit(self) -> sqlite3.Cursor:
        self._passing("before_commit")
        if self._disk.trouble == "full":
            self._file.execute("ROLLBACK")  # SQLite does the same by itself when a commit fails for want of space
            raise trouble("database or disk is full", sqlite3.SQLITE_FULL)
        cursor = self._file.execute("COMMIT")
        self._committed()
        self._passing("after_commit")
        return cursor

    def die(self) -> None:
        """Roll back what is open, as the next process to open the file would."""
        if not self.dead:
            self.dead = True
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")

    def close(self) -> None:
        self.die()

    @property
    def row_factory(self) -> Any:
        return self._file.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._file.row_factory = factory

    def __getattr__(self, name: str) -> Any:
        if self.dead:
            raise Killed
        return getattr(self._file, name)


class Disk:
    """The files of one machine."""

    def __init__(self) -> None:
        self.trouble: Trouble | None = None
        self.checkpoints: dict[str, int] = {}
        self.models: dict[str, Finished] = {}
        self._files: dict[str, sqlite3.Connection] = {}

    def open(self, path: Path, passing: Callable[[str], None], committed: Callable[[], None]) -> Opened:
        """Open a file; it is made when it is not there."""
        file = self._files.get(path.name)
        if file is None:
            file = self._files[path.name] = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
        return Opened(self, file, passing, committed)

    def read(self, name: str, sql: str) -> list[sqlite3.Row]:
        """Read a file as an onlooker."""
        file = self._files.get(name)
        return [] if file is None else file.execute(sql).fetchall()

    def fail(self, word: str) -> None:
        """Raise what SQLite would raise for a statement now, if it would."""
        if self.trouble == "locked" and word == "BEGIN ":
            raise trouble("database is locked", sqlite3.SQLITE_BUSY)
        if self.trouble == "spilled" and word == "INSERT":
            raise trouble("database or disk is full", sqlite3.SQLITE_FULL)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
