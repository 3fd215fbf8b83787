"""The logs of a home as one: all agents, the broker and the jobs' processes, merged by time, filtered, and followed."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STAMP = re.compile(r"^(?:\x1b\[[0-9;]*m)*(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)(Z|[+-]\d\d:\d\d)?")
"""The time at the beginning of a line that is no JSON: Mosquitto's (local time), or a console line's (UTC)."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Line:
    """One line of one log. `facts` is None where it is not JSON; then `agent` comes from the file, in a job's log it is the
    job."""

    at: datetime
    agent: str
    text: str
    facts: dict[str, Any] | None = None

    def about(self, name: str, value: str) -> bool:
        """Whether the line tells this fact (`job`, `trace`)."""
        if self.facts is not None:
            return self.facts.get(name) == value
        return self.agent == value or f"{name}={value}" in COLOURS.sub("", self.text).split()


@dataclass
class Wanted:
    """Which lines are wanted; None means all."""

    agent: str | None = None
    job: str | None = None
    trace: str | None = None

    def __call__(self, line: Line) -> bool:
        if self.agent is not None and line.agent != self.agent and line.agent.rpartition("-")[0] != self.agent:
            return False
        return all(
            value is None or line.about(name, value) for name, value in (("job", self.job), ("trace", self.trace))
        )


def files(home: Path) -> list[Path]:
    """Return the log files of a home, those set aside (`.1`) included."""
    logs, jobs = home / "logs", home / "jobs"
    return [*sorted(logs.glob("*.log.1")), *sorted(logs.glob("*.log")), *sorted(jobs.glob("*/log.txt"))]


@dataclass
class Reader:
    """Reads one file, as far as it has been written. A line without a time has that of the line before it."""

    path: Path
    offset: int = 0
    _last: datetime = field(default=datetime.min.replace(tzinfo=UTC))
    _inode: int = 0

    def lines(self) -> Iterator[Line]:
        """Yield the lines that were written since the last time; half a line waits for its end."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            size, inode = (status := self.path.stat()).st_size, status.st_ino
            if inode != self._inode or size < self.offset:  # it was set aside, and a new one has begun
                self.offset, self._inode = 0, inode
            file.seek(self.offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self.offset += len(raw)
                text = raw.decode("utf-8", "replace").rstrip()
                if text:
                    yield self._line(text)

    def _line(self, text: str) -> Line:
        agent = self.path.parent.name if self.path.name == "log.txt" else self.path.name.split(".log")[0]
        facts = _facts(text)
        if facts is not None:
            self._last = _time(str(facts.get("timestamp", ""))) or self._last
            return Line(self._last, str(facts.get("agent", agent)), text, facts)
        found = STAMP.match(text)
        if found:
            self._last = _time(found[1] + (found[2] or "")) or self._last
        return Line(self._last, agent, text)


def read(home: Path, wanted: Callable[[Line], bool]) -> tuple[list[Line], dict[Path, Reader]]:
    """Return all wanted lines of a home in order of time, and the readers that know where they stopped."""
    readers = {path: Reader(path) for path in files(home)}
    merged = heapq.merge(*(reader.lines() for reader in readers.values()), key=lambda line: line.at)
    return [line for line in merged if wanted(line)], readers


def more(home: Path, readers: dict[Path, Reader], wanted: Callable[[Line], bool]) -> list[Line]:
    """Return what was written since, also in files that are new, in order of time."""
    for path in files(home):
        if path not in readers and not path.name.endswith(".1"):
            readers[path] = Reader(path)
    found = [line for reader in readers.values() for line in reader.lines() if wanted(line)]
    return sorted(found, key=lambda line: line.at)


def _facts(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)  # without an offset: local time, as Mosquitto writes it
    except ValueError:
        return None
