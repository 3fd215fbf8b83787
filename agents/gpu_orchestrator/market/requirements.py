"""What a job needs of a machine, and what there is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market.history import History
from configs import Provider
from configs.providers import Rented
from protocol.job import Plan
from protocol.machine import Listing


@dataclass(frozen=True)
class Requirements:
    """What a job needs of a machine, and what its owner allows.

    Attributes:
        gpus: what the tier is meant for; empty: this lab's own machines, unless `providers` names others.
        limit_micros: the most that may be reserved; None: no limit beside the budget's periods.
        limit_is: whose limit it is, for people.
        deadline_s: seconds from now on in which nine in ten such jobs must be done.
        providers: only these; None: all.
        untrusted: whether strangers' machines may get the data.
        spot: whether a machine may be taken that its provider may take away: only where checkpoints leave the machine.
        economy: money is short: of rented machines only spot, or one that costs at most the median of its GPU.
        tier: its name, for people.
        would_stage: nothing is staged for a mere question, but the job's data would be.
    """

    job: str
    plan: Plan
    gpus: tuple[str, ...] = ()
    limit_micros: int | None = None
    limit_is: str = "the request's budget_usd"
    deadline_s: float | None = None
    providers: frozenset[str] | None = None
    untrusted: bool = False
    spot: bool = False
    economy: bool = False
    tier: str = ""
    would_stage: bool = False


@dataclass(frozen=True)
class Supply:
    """What there is: this lab's machines that are online, listings that the book has judged, and what a GPU usually costs."""

    at: datetime
    machines: Sequence[Machine]
    local: Provider
    listings: Sequence[Listing] = ()
    rented: Rented = field(default_factory=Rented)
    history: History = field(default_factory=History)
    usual: Mapping[str, float] = field(default_factory=dict)


def limit(budget_usd: float | None, cap_usd: float | None) -> tuple[int | None, str]:
    """Return the most that may be reserved, in micro-dollars, and whose limit that is: the tier's cap counts only where the
    request names no budget."""
    usd_, whose = (budget_usd, Requirements.limit_is) if budget_usd is not None else (cap_usd, "the tier's cap")
    return (None if usd_ is None else math.floor(Fraction(str(usd_)) * 1_000_000)), whose
