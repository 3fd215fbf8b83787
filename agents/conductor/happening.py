"""What can happen to a job."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import LabError
from protocol.job import Finished, Plan, Report
from protocol.machine import LeaseDelay, LeaseGrant, LeaseLost, LeaseRecall, Offer, Quote
from protocol.money import Reservation


@dataclass(frozen=True)
class Routed:
    """The router handed over a new job."""


@dataclass(frozen=True)
class Refused:
    """Planning, quoting, reserving or running was refused."""

    error: LabError


@dataclass(frozen=True)
class CancelAsked:
    """A user wants the job to end."""


@dataclass(frozen=True)
class Stopped:
    """The factory confirmed a stop, or did not within STOP_LIMIT."""


@dataclass(frozen=True)
class Requoted:
    """What the offer takes now that a probe has run on its machine."""

    offer: Offer


@dataclass(frozen=True)
class Resume:
    """The pause after an interruption is over."""


@dataclass(frozen=True)
class Twin:
    """Another job that has not ended makes the very same model. `plan` comes with the first word of it."""

    job: str
    plan: Plan | None = None


@dataclass(frozen=True)
class TwinEnded:
    """The job that this one waited for has ended. `finished` is its model; None: it has none."""

    finished: Finished | None
    reason: str


@dataclass(frozen=True)
class Approved:
    """Somebody who may spend agrees to a price."""

    by: str
    amount_micros: int


@dataclass(frozen=True)
class ModeChanged:
    """The budget goes into another mode; `Decision.mode` is the new one."""


Happening = (
    Routed | Refused | CancelAsked | Stopped | Resume | Plan | Twin | TwinEnded | Quote | Reservation | LeaseGrant | Report
    | LeaseLost | LeaseRecall | LeaseDelay | Approved | ModeChanged | Requoted
)
"""Words of other agents stand for themselves."""
