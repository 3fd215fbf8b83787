"""Finished runs: what they took against what was predicted. That corrects later predictions, and tells how often they held."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from protocol.machine import Offer

UNSURE = 2.5
"""P90 ÷ P50 while too few runs have finished: the guesses in `estimate` may each be wrong by a factor of two."""
LEAST_SPREAD = 1.3
"""P90 ÷ P50 at least: a few runs that happen to agree prove little."""
ENOUGH = 5
"""Finished runs from which on they count instead of UNSURE."""
KEPT = 500
"""Runs that are kept; older ones tell of other software."""

SCHEMA = """
CREATE TABLE runs (                  -- one for each job whose whole work was done under one lease
    job TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    gpu TEXT NOT NULL,
    prior_s REAL,                    -- predicted by arithmetic alone; NULL: the plan's own times counted (local)
    seconds_p90 REAL NOT NULL,       -- as it was quoted
    at REAL NOT NULL,                -- Unix time of the last change
    began REAL,                      -- Unix time; NULL: it was interrupted, and a part tells nothing about a whole run
    actual_s REAL                    -- NULL: it has not ended
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    provider: str
    gpu: str
    prior_s: float | None
    seconds_p90: float
    actual_s: float


@dataclass(frozen=True)
class Calibration:
    """What a prediction by arithmetic is multiplied with, and why. `runs` is how many finished runs it rests on."""

    median: float
    ninetieth: float
    runs: int
    told: str


class History:
    """Finished runs, by provider and GPU."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs = list(runs)
        self._known: dict[tuple[str, str], Calibration] = {}

    def calibration(self, provider: str, gpu: str) -> Calibration:
        """Return the factors for a provider's GPU: from its own runs, from all rented ones, or a wide guess."""
        key = (provider, gpu)
        if key not in self._known:
            self._known[key] = self._fitted(*key)
        return self._known[key]

    def _fitted(self, provider: str, gpu: str) -> Calibration:
        predicted = [run for run in self._runs if run.prior_s]
        own = [run for run in predicted if (run.provider, run.gpu) == (provider, gpu)]
        for runs, what in ((own, f"{provider} {gpu}"), (predicted, "all machines elsewhere")):
            if len(runs) >= ENOUGH:
                median, ninetieth = quantiles([run.actual_s / run.prior_s for run in runs if run.prior_s])
                return Calibration(median, ninetieth, len(runs), f"by {len(runs)} finished runs on {what}{_held(runs)}")
        told = f"by arithmetic alone: fewer than {ENOUGH} runs have finished, so P90 is {UNSURE:g} x P50"
        return Calibration(1.0, UNSURE, len(own), told + _held(own))

    def coverage(self, provider: str | None = None, gpu: str | None = None) -> tuple[int, int]:
        """Return how many runs stayed below their P90, and of how many."""
        runs = [run for run in self._runs if provider in (None, run.provider) and gpu in (None, run.gpu)]
        return _covered(runs)

    def told_local(self) -> str:
        """Return what the times of this lab's own machines rest on."""
        return "the factory's own plan" + _held([run for run in self._runs if run.provider == "local"])


def quantiles(ratios: list[float]) -> tuple[float, float]:
    """Return median and 90th percentile of actual ÷ predicted.

    The 90th is the one that a further run stays below with at least that probability, whatever the distribution: the
    ceil(0.9·(n + 1))-th smallest of n (Vovk and others, Algorithmic Learning in a Random World, 2005). Fewer than nine runs
    cannot give it: then it is LEAST_SPREAD times the largest.
    """
    ordered = sorted(ratios)
    count = len(ordered)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    rank = math.ceil(0.9 * (count + 1))
    ninetieth = ordered[rank - 1] if rank <= count else ordered[-1] * LEAST_SPREAD
    return median, max(ninetieth, median * LEAST_SPREAD)


def _covered(runs: Iterable[Run]) -> tuple[int, int]:
    runs = list(runs)
    return sum(run.actual_s <= run.seconds_p90 for run in runs), len(runs)


def _held(runs: list[Run]) -> str:
    held, count = _covered(runs)
    return f"; {held} of {count} finished runs stayed below their P90 ({held / count:.0%})" if count else ""


def begin(connection: sqlite3.Connection, job: str, offer: Offer, at: datetime) -> None:
    """Note that a job's work begins (on a rented machine: that it was launched); a second time it was interrupted before."""
    now = at.timestamp()
    connection.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, NULL)"
        " ON CONFLICT (job) DO UPDATE SET began = NULL, at = excluded.at WHERE actual_s IS NULL",
        (job, offer.provider, offer.gpu, offer.prior_s, offer.seconds_p90, now, now),
    )


def end(connection: sqlite3.Connection, job: str, at: datetime, *, done: bool) -> None:
    """Note that a job's work has ended; only what was done in one go counts."""
    now = at.timestamp()
    change = "actual_s = max(0.001, ?2 - began)" if done else "began = NULL"
    connection.execute(f"UPDATE runs SET at = ?2, {change} WHERE job = ?1 AND actual_s IS NULL", (job, now))
    connection.execute("DELETE FROM runs WHERE job IN (SELECT job FROM runs ORDER BY at DESC LIMIT -1 OFFSET ?)", (KEPT,))


def shift(connection: sqlite3.Connection, seconds: float) -> None:
    """Move the times of what runs with a clock that was set."""
    connection.execute("UPDATE runs SET at = at + ?1, began = began + ?1 WHERE actual_s IS NULL", (seconds,))


def read(connection: sqlite3.Connection) -> History:
    """Return the finished runs."""
    query = "SELECT provider, gpu, prior_s, seconds_p90, actual_s FROM runs WHERE actual_s IS NOT NULL"
    return History(Run(*row) for row in connection.execute(query))
