"""What the first steps of a job really take on a machine: the probe by which a quote is made anew. Pure."""

from __future__ import annotations

from datetime import datetime

STEPS = 20
"""Steps of a probe (architecture §6); the first word of a training begins it, so warming up is not counted."""


class Pace:
    """Listens to a job's progress until it can tell, once, how long a step takes."""

    def __init__(self) -> None:
        self._began: tuple[int, datetime] | None = None
        self._told = False

    def heard(self, step: int, at: datetime) -> tuple[int, float] | None:
        """Take in that so many steps are done; returns (steps, seconds) of the probe when it is over, else None."""
        if self._told:
            return None
        if self._began is None or step < self._began[0]:
            self._began = (step, at)
            return None
        steps, seconds = step - self._began[0], (at - self._began[1]).total_seconds()
        if steps < STEPS or seconds <= 0:
            return None
        self._told = True
        return steps, seconds
