"""A circuit breaker for each (provider, GPU, region): what failed just now is not asked again at once. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from protocol.machine import Listing

Circuit = tuple[str, str, str]

FIRST = timedelta(seconds=30)
"""How long a circuit stays open after its first failure; it doubles with each further one in a row."""
LONGEST = timedelta(minutes=30)
"""Capacity comes back within such times; a provider that is down is seen again soon enough."""


@dataclass(frozen=True)
class _Trouble:
    failures: int
    until: datetime
    reason: str


class Breaker:
    """Which circuits are open. After its time one launch is let through (half open): it closes the circuit or reopens it."""

    def __init__(self) -> None:
        self._trouble: dict[Circuit, _Trouble] = {}

    def failed(self, circuit: Circuit, reason: str, now: datetime) -> None:
        """Note a failure. An empty GPU and region stand for all of the provider's.

        What fails while the circuit is open was asked for before: of fifty launches at once that find two machines, forty-eight
        tell the same.
        """
        before = self._trouble.get(circuit)
        if before is not None and now < before.until:
            return
        failures = before.failures + 1 if before else 1
        self._trouble[circuit] = _Trouble(failures, now + min(FIRST * 2 ** min(failures - 1, 10), LONGEST), reason)

    def worked(self, circuit: Circuit) -> None:
        """Note that a launch went well."""
        for known in (circuit, (circuit[0], "", "")):
            self._trouble.pop(known, None)

    def open(self, circuit: Circuit, now: datetime) -> str | None:
        """Return why a circuit is open; None: it may be tried."""
        for known in (circuit, (circuit[0], "", "")):
            trouble = self._trouble.get(known)
            if trouble is not None and now < trouble.until:
                return f"{trouble.reason} (tried again from {trouble.until:%H:%M:%S} UTC on)"
        return None

    def shift(self, by: timedelta) -> None:
        """Follow the wall clock, which was set."""
        self._trouble = {key: replace(trouble, until=trouble.until + by) for key, trouble in self._trouble.items()}

    def next(self, now: datetime) -> datetime | None:
        """Return when the first open circuit may be tried again."""
        return min((trouble.until for trouble in self._trouble.values() if trouble.until > now), default=None)


def circuit(listing: Listing) -> Circuit:
    """Return the circuit that a listing belongs to."""
    return listing.provider, listing.gpu, listing.region
