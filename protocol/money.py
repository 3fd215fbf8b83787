"""Money in words. All amounts are integer micro-dollars (1 USD = 1,000,000)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from protocol.job import Strict
from protocol.signature import Signature

PeriodName = Literal["day", "week", "month"]
Mode = Literal["normal", "optimise", "frozen"]
"""How paid work goes on. optimise: only what is cheap, and priority 1 waits; frozen: nothing starts, what runs is stopped."""
CapName = Literal["daily_usd", "weekly_usd", "monthly_usd"]
Part = Field(default="", max_length=200, description="names one part of what a reservation pays; empty: its last")


class ReserveRequest(Strict):
    job: str
    amount_micros: int = Field(ge=0)
    provider: str
    domain: str
    priority: int = 1
    limit_micros: int | None = Field(default=None, ge=0, description="most that may ever be set aside for it; null: no such limit")


class Reservation(Strict):
    reservation: str
    job: str
    amount_micros: int = Field(description="what is set aside in all, what was paid of it in parts included")


class ExtendRequest(Strict):
    """A job takes longer: let its reservation be this much in all. Checked as a new one; less than it is changes nothing."""

    reservation: str
    job: str
    amount_micros: int = Field(ge=0, description="what is to be set aside in all")


class SettleRequest(Strict):
    """Turn a reservation into what was spent. Without a `part` that is its end, and the rest is free.

    A reservation that pays for several machines, or piece by piece, is settled in parts, each with a name of its own, and
    then ended by a last settlement or a release. The same part again changes nothing.
    """

    reservation: str
    job: str
    amount_micros: int = Field(ge=0, description="what this part cost, or what was spent beyond the parts")
    part: str = Part
    provider: str | None = Field(default=None, description="who is paid; default: the reservation's provider")
    rental: str = Field(default="", description="the rented instance that it was spent on; its bill is compared with it")
    bill_follows: bool = Field(
        default=False, description="keep the rest set aside after the end, until `budget.bill` has told what the rental cost"
    )


class ReleaseRequest(Strict):
    """Nothing (more) was spent: free the reservation, or what its parts have left of it."""

    reservation: str
    job: str


class BillRequest(Strict):
    """What a provider charges for an instance, so far or for good. Told again with a newer sum it replaces the older one."""

    provider: str
    rental: str
    jobs: dict[str, int] = Field(description="job to what the own meter says it used of the instance, micro-dollars")
    billed_micros: int | None = Field(
        ge=0, description="what the provider charges for the instance in all; null: it does not tell, the own meter stands"
    )
    since: datetime
    until: datetime


class BillReport(Strict):
    """What came of a bill. Correction: what was entered because of it, less than 0 for a refund."""

    rental: str
    own_micros: int
    billed_micros: int | None
    correction_micros: int
    drift_percent: float | None = Field(description="the bill above (or below) the own meter; null: one of them is not known or 0")
    frozen: str | None = Field(default=None, description="why nothing is rented from this provider any more")


class CapRequest(Strict):
    """Change a budget. Lower is at once; higher waits for a signature. What is signed: name, micro-dollars, `at` in ISO 8601."""

    name: CapName
    usd: float = Field(ge=0, lt=1e9)
    at: datetime | None = Field(default=None, description="when it was signed; must be after the last change of this budget")
    signature: Signature | None = None


class CapReply(Strict):
    name: CapName
    state: Literal["set", "waits", "same"] = Field(description="waits: `meetara approve budget`")
    cap_micros: int = Field(description="the budget that holds now")
    wished_micros: int | None = Field(default=None, description="the budget that waits for approval")


class UnfreezeRequest(Strict):
    """Trust a provider again whose bill was far from its price. What is signed: provider, `at` in ISO 8601."""

    provider: str
    at: datetime = Field(description="must be after the freeze")
    signature: Signature


class EntriesQuery(Strict):
    after: int = Field(default=0, ge=0, description="entries with a greater number are returned")


class Entry(Strict):
    """One line of the ledger; none is ever changed."""

    number: int
    at: datetime
    kind: Literal["reserve", "extend", "part", "settle", "release", "correct"]
    reservation: str = Field(description="empty where an instance was billed that no job had")
    job: str
    provider: str
    domain: str
    rental: str
    amount_micros: int = Field(description="less than 0: a refund")
    counts_at: datetime = Field(description="a refund counts in the periods of what it refunds, all else when it was entered")
    note: str


class EntryPage(Strict):
    entries: list[Entry]
    more: bool = False


class PeriodReport(Strict):
    period: PeriodName
    since: datetime
    until: datetime
    cap_micros: int
    spent_micros: int
    reserved_micros: int
    percent: float = Field(description="share of spent + reserved in the cap, in percent; 100 where the cap is 0")
    forecast_micros: int | None = Field(
        default=None, description="spent x length of the period / what of it has passed; null: nothing was spent"
    )


class BudgetReport(Strict):
    """The state of the ledger; `jobs` maps a job to what it has spent."""

    periods: list[PeriodReport]
    jobs: dict[str, int]
    providers: dict[str, int]
    domains: dict[str, int]
    open_reservations: list[Reservation]
    frozen: bool
    mode: Mode = "normal"
    changes: list[str] = Field(default_factory=list, description="what is different in this mode")
    frozen_providers: dict[str, str] = Field(default_factory=dict, description="from whom nothing is rented, and why")
    wishes: dict[str, int] = Field(default_factory=dict, description="budgets that wait for approval, micro-dollars")
    days: dict[str, int] = Field(default_factory=dict, description="what was spent on each day of this month, as YYYY-MM-DD")
    alert_percents: list[int] = Field(default_factory=list, description="shares of a cap at which an alert is published")
    freeze_percent: int | None = Field(default=None, description="from this share of a cap on no paid work starts")


class BudgetMode(Strict):
    """The retained `cost/mode`: how paid work goes on from now on."""

    mode: Mode
    period: PeriodName | None = Field(default=None, description="whose budget is short; null in normal mode")
    until: datetime | None = Field(default=None, description="when that period ends")
    changes: list[str] = Field(default_factory=list, description="what is different in this mode")
    frozen_providers: dict[str, str] = Field(default_factory=dict, description="from whom nothing is rented, and why")
    at: datetime


class BudgetAlert(Strict):
    """A threshold was crossed by spent + reserved; once per period and threshold.

    With a `note` it tells something else, and `threshold` is the highest one that is reached (0: none).
    """

    period: PeriodName
    since: datetime
    threshold: int
    spent_micros: int
    reserved_micros: int
    cap_micros: int
    at: datetime
    note: str = ""
    changes: list[str] = Field(default_factory=list, description="what is different from this threshold on")
    provider: str | None = Field(default=None, description="whose bill it is about")
    rental: str | None = Field(default=None, description="the instance that the bill is for")
    own_micros: int | None = Field(default=None, description="what the own meter says")
    billed_micros: int | None = Field(default=None, description="what the provider charges")


class Freeze(Strict):
    """The stop file of the home: paid work is to end, whether or not the bus can be reached."""

    period: PeriodName | None = Field(description="whose budget is used up; null where the file is damaged")
    since: datetime | None = Field(description="when that period began")
    until: datetime | None = Field(description="when it ends")
    spent_micros: int
    reserved_micros: int
    cap_micros: int
    at: datetime | None
    note: str = ""


class StoppedRental(Strict):
    """An instance that a freeze has ended."""

    rental: str
    provider: str
    job: str = Field(description="the job that ran there; empty: none")
    verified_gone_at: datetime | None = Field(description="when the provider said that it is gone; null: not yet")
    cost_micros: int = Field(description="what it cost by the own meter")


class EmergencyReport(Strict):
    """The retained `cost/stopped`: what a freeze has stopped, published again until all of it is verified gone."""

    began_at: datetime
    stopped: list[StoppedRental]
    at: datetime


def dollars(micros: int) -> str:
    """Return an amount for people: cents, and more digits where cents would hide it."""
    sign, value = ("-" if micros < 0 else ""), abs(micros)
    if value % 10_000 == 0:
        return f"{sign}${value / 1_000_000:.2f}"
    return f"{sign}${value // 1_000_000}.{value % 1_000_000:06d}".rstrip("0")
