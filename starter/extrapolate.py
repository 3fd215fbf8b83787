"""Say from a run's curve what reading on would bring: a power law through its points at the full rate.

What a decay gains is measured once, at the run's end, and assumed to be the same at the end of a longer run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EARLY = 0.2  # share of the run whose points are left out: there the optimiser's momentum and the rate are still warming up
FLOORS = np.arange(0, 1.601, 0.05)  # bits per byte that no number of tokens removes; English text at this size has more than 0
LEAST_POINTS = 4  # a power law with a floor has three numbers


@dataclass(frozen=True)
class Law:
    """bits per byte = floor + scale * tokens ** -power, and its root mean square error on the points it was fitted to."""

    floor: float
    scale: float
    power: float
    error: float

    def bits(self, tokens: float) -> float:
        """Return held-out bits per byte after a number of tokens."""
        return float(self.floor + self.scale * tokens**-self.power)


def fit(points: Sequence[tuple[float, float]], floor: float) -> Law:
    """Return the law through points of (tokens, bits per byte) with a given floor: least squares of logarithms.

    Raises:
        ValueError: fewer than LEAST_POINTS points above the floor.
    """
    above = [(tokens, bits) for tokens, bits in points if bits > floor]
    if len(above) < LEAST_POINTS:
        raise ValueError(f"{len(above)} points above {floor} bits per byte; a curve needs {LEAST_POINTS}")
    tokens, bits = np.array(above).T
    slope, intercept = np.polyfit(np.log(tokens), np.log(bits - floor), 1)
    law = Law(floor, float(np.exp(intercept)), float(-slope), 0.0)
    return Law(floor, law.scale, law.power, float(np.sqrt(np.mean([(law.bits(t) - b) ** 2 for t, b in above]))))


def laws(curve: Sequence[dict[str, float]], decay_from: int | None, before: int) -> tuple[Law, Law]:
    """Return two laws of a run's points at the full rate: without a floor, and with the floor that fits best.

    Args:
        curve: the run's points: step, tokens, bits_per_byte.
        decay_from: the step at which the rate began to fall; None while it has not.
        before: tokens that its first weights had seen; they count.

    Raises:
        ValueError: too few points.
    """
    full = [point for point in curve if decay_from is None or point["step"] <= decay_from]
    first = EARLY * max((point["tokens"] for point in full), default=0.0)
    points = [(before + point["tokens"], point["bits_per_byte"]) for point in full if point["tokens"] > first]
    lowest = min((bits for _, bits in points), default=0.0)
    fitted = [fit(points, float(floor)) for floor in FLOORS if floor == 0 or floor < lowest]
    return fitted[0], min(fitted, key=lambda law: law.error)
