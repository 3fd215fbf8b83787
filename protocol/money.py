"""Money in words. All amounts are integer micro-dollars (1 USD = 1,000,000)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from protocol.job import Strict


class ReserveRequest(Strict):
    job: str
    amount_micros: int = Field(ge=0)
    provider: str
    domain: str
    priority: int = 1


class Reservation(Strict):
    reservation: str
    job: str
    amount_micros: int


class SettleRequest(Strict):
    """The job is over: turn the reservation into what it really cost, and free the rest."""

    reservation: str
    job: str
    amount_micros: int = Field(ge=0)


class ReleaseRequest(Strict):
    """Nothing was spent: free the whole reservation."""

    reservation: str
    job: str


class PeriodReport(Strict):
    period: Literal["day", "week", "month"]
    since: datetime
    cap_micros: int
    spent_micros: int
    reserved_micros: int
    percent: float = Field(description="share of spent + reserved in the cap, in percent; 100 where the cap is 0")


class BudgetReport(Strict):
    """The state of the ledger; `jobs` maps a job to what it has spent."""

    periods: list[PeriodReport]
    jobs: dict[str, int]
    providers: dict[str, int]
    domains: dict[str, int]
    open_reservations: list[Reservation]
    frozen: bool
    alert_percents: list[int] = Field(default_factory=list, description="shares of a cap at which an alert is published")
    freeze_percent: int | None = Field(default=None, description="from this share of a cap on no paid work starts")


class BudgetAlert(Strict):
    """A threshold was crossed by spent + reserved; once per period and threshold.

    With a `note` it tells something else, and `threshold` is the highest one that is reached (0: none).
    """

    period: Literal["day", "week", "month"]
    since: datetime
    threshold: int
    spent_micros: int
    reserved_micros: int
    cap_micros: int
    at: datetime
    note: str = ""
