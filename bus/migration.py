"""Bringing a store's tables to the version that this program knows. Each component (the bus, the agent) counts its own scripts.

A script and the note that it was applied commit together, so a half-done migration cannot be; what a killed process left is
gone on with at the next start. Before the first script the whole file is copied beside itself: `conductor-1.db.v1.bak`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from protocol.errors import Code, LabError

TABLE = "CREATE TABLE IF NOT EXISTS versions (component TEXT PRIMARY KEY, version INTEGER)"


def migrate(connection: sqlite3.Connection, path: Path, components: Mapping[str, Sequence[str]]) -> None:
    """Apply the scripts that a store lacks.

    Args:
        connection: in autocommit mode; nobody else writes.
        path: the store's file, for the backup and for errors.
        components: name to its SQL scripts in order; each is applied once.

    Raises:
        LabError: CONFIGURATION, the store is of a newer program; nothing was changed.
        sqlite3.Error: the backup or a script failed; scripts before it stay applied.
    """
    connection.execute(TABLE)
    found = _versions(connection)
    for component, scripts in components.items():
        if found.get(component, 0) > len(scripts):
            raise LabError(
                Code.CONFIGURATION,
                f"{path} has version {found[component]} of the {component} tables, this program knows {len(scripts)}.",
                advice="A newer meetara wrote it. Upgrade this program, or use another MEETARA_HOME.", file=str(path),
            )  # fmt: skip
    due = [component for component, scripts in components.items() if found.get(component, 0) < len(scripts)]
    if due and any(found.values()):
        back_up(connection, path, found)
    for component in due:
        for number in range(found.get(component, 0) + 1, len(components[component]) + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE; {components[component][number - 1]};"
                f"INSERT INTO versions VALUES ('{component}', {number})"
                f" ON CONFLICT (component) DO UPDATE SET version = {number}; COMMIT;"
            )


def back_up(connection: sqlite3.Connection, path: Path, versions: Mapping[str, int]) -> Path:
    """Copy a store beside itself, whole or not at all, and return where the copy is."""
    numbers = dict.fromkeys(str(versions.get(component, 0)) for component in ("bus", "agent"))
    target = path.with_name(f"{path.name}.v{'.'.join(numbers)}.bak")
    temporary = target.with_name(f"{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(temporary)) as copy:
            connection.backup(copy)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return target


def versions(path: Path) -> dict[str, int]:
    """Return a store's versions without changing it, also while an agent uses it; {} where it holds none.

    Raises:
        sqlite3.Error: it is no store, or cannot be read.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
        return _versions(connection)


def _versions(connection: sqlite3.Connection) -> dict[str, int]:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'versions'").fetchone() is None:
        return {}
    return {str(component): int(number) for component, number in connection.execute("SELECT component, version FROM versions")}
