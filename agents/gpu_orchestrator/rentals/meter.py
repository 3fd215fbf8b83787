"""What a rental costs and who pays: one meter from the launch to the end, cut where one job hands over to another. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from agents.gpu_orchestrator.rentals.rental import Rental

MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1) // MICROSECOND


@dataclass(frozen=True)
class Payer:
    """A job that pays for a rental from a time on. `until` None: it still does; `micros` is known then."""

    rental: str
    job: str
    reservation: str
    since: datetime
    until: datetime | None = None
    micros: int | None = None
    number: int = 0


def reading(rental: Rental, at: datetime) -> int:
    """Return what the meter shows at a time, in micro-dollars, rounded up once for the whole rental."""
    if rental.metered_from is None:
        return 0
    end = at if rental.ended_at is None else min(at, rental.ended_at)
    return micros(rental.price_micros_per_hour, end - rental.metered_from)


def micros(price_micros_per_hour: int, time: timedelta) -> int:
    """Return what a time costs, rounded up to a micro-dollar; none for a time that runs backwards."""
    return -(-price_micros_per_hour * (max(time, timedelta(0)) // MICROSECOND) // HOUR)


def share(rental: Rental, payer: Payer, at: datetime) -> int:
    """Return what a payer owes for the time until `at`: the difference of two readings, so that all shares add up."""
    return max(0, reading(rental, at) - reading(rental, payer.since))


def lasts_until(rental: Rental, payer: Payer, left_micros: int) -> datetime:
    """Return when a payer's money is used up.

    Args:
        left_micros: what the reservation still holds at the time from which the payer pays.
    """
    if rental.price_micros_per_hour <= 0:
        return datetime.max.replace(tzinfo=payer.since.tzinfo)
    return payer.since + timedelta(microseconds=max(left_micros, 0) * HOUR // rental.price_micros_per_hour)
