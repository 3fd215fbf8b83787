"""Time that is passed in: virtual, or the machine's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]


class VirtualClock:
    """A clock that stands until it is told to go on. Who watches is told of each step, in order."""

    def __init__(self, start: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self._now = start
        self._watchers: list[Callable[[], object]] = []

    def __call__(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += timedelta(seconds=seconds)
        for watcher in self._watchers:
            watcher()

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call `watcher` after each step."""
        self._watchers.append(watcher)


def real_time() -> datetime:
    """Return the machine's time."""
    return datetime.now(UTC)
