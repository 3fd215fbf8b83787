"""Where a period stands, in integer micro-dollars, and how an amount is divided."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from configs.budget import Period
from protocol.money import dollars


@dataclass(frozen=True)
class Sums:
    """Where one period stands, in micro-dollars."""

    period: Period
    since: datetime
    until: datetime
    cap: int
    spent: int
    reserved: int

    @property
    def used(self) -> int:
        """Spent and reserved."""
        return self.spent + self.reserved

    @property
    def left(self) -> int:
        """What may still be reserved; negative where more was spent than the cap."""
        return self.cap - self.used

    def reached(self, percent: int, more: int = 0) -> bool:
        """Tell whether spent + reserved (and `more`) is at least this share of the cap, exactly."""
        return (self.used + more) * 100 >= self.cap * percent

    @property
    def percent(self) -> float:
        """Share of spent + reserved in the cap; 100 where the cap is 0."""
        return self.used / self.cap * 100 if self.cap else 100.0

    def forecast(self, now: datetime) -> int | None:
        """Return what will be spent by the end of the period if it goes on so: spent x length / what has passed.

        At least a 24th of the period counts as passed (an hour of a day, 30 of a month): the first job of a month is no rate.
        None while nothing was spent.
        """
        if self.spent <= 0:
            return None
        length = (self.until - self.since).total_seconds()
        passed = min(length, max((now - self.since).total_seconds(), length / 24))
        return round(self.spent * length / passed)

    def __str__(self) -> str:
        return (
            f"{dollars(self.spent)} spent + {dollars(self.reserved)} reserved of {dollars(self.cap)} per {self.period},"
            f" {dollars(max(self.left, 0))} left"
        )

    def facts(self) -> dict[str, Any]:
        """Return the sums for programs, as errors carry them."""
        return {
            "period": self.period, "since": self.since.isoformat(), "spent_micros": self.spent,
            "reserved_micros": self.reserved, "cap_micros": self.cap, "left_micros": self.left,
        }  # fmt: skip


def shares(amount: int, weights: list[int]) -> list[int]:
    """Divide an amount by weights, to the micro-dollar: the parts add up, and none is off its share by a whole one.

    Where all weights are 0 they count alike. No part is above its weight when the amount is not above their sum.
    """
    if not any(weights):
        weights = [1] * len(weights)
    whole, before, running = sum(weights), 0, 0
    found = []
    for weight in weights:
        running += weight
        upto = amount * running // whole
        found.append(upto - before)
        before = upto
    return found
