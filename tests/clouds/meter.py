"""A meter that counts every second, exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction


@dataclass
class Meter:
    """What an instance has cost: pieces of time at a rate each. A second that has begun counts whole."""

    pieces: list[tuple[datetime, datetime, int]] = field(default_factory=list)
    since: datetime | None = None
    micros_per_hour: int = 0

    def set(self, now: datetime, micros_per_hour: int) -> None:
        """Count at another rate from now on; 0: nothing more."""
        if self.since is not None and now > self.since:
            self.pieces.append((self.since, now, self.micros_per_hour))
        self.since, self.micros_per_hour = now, micros_per_hour

    def total(self, now: datetime) -> int:
        """Return what it has cost until now, in micro-dollars, rounded up once."""
        current = [(self.since, now, self.micros_per_hour)] if self.since is not None and now > self.since else []
        exact = sum(
            (Fraction(math.ceil((end - begin).total_seconds()) * rate, 3600) for begin, end, rate in [*self.pieces, *current]),
            Fraction(),
        )
        return math.ceil(exact)
