"""What a job that costs money waits for before any is reserved: better times, and a word of who may spend. Pure."""

from __future__ import annotations

from decimal import Decimal

from agents.conductor.record import JobRecord
from protocol.machine import Offer
from protocol.money import BudgetMode, dollars

RISE_PERCENT = 10
"""A price that rose by more than this since it was approved is asked for again: less is the market between two looks."""


def economises(record: JobRecord, mode: BudgetMode | None) -> str | None:
    """Tell why a job that costs money waits for the budget; None: it does not.

    In frozen mode all such jobs wait, in optimise mode those of priority 1.
    """
    if mode is None or mode.mode == "normal" or (mode.mode == "optimise" and record.request.priority > 1):
        return None
    why = "is used up" if mode.mode == "frozen" else "is short, and the job has priority 1"
    until = f"{mode.until:%Y-%m-%d %H:%M} UTC" if mode.until is not None else "it is not"
    return f"waits for money: the {mode.period}'s budget {why}. It goes on at {until}, or when money is freed or the budget raised."


def approved(record: JobRecord, offer: Offer) -> bool:
    """Tell whether somebody who may spend agreed to this price. A signed request agrees to any that its own limits allow."""
    if record.approved_by is None:
        return False
    agreed = record.approved_micros
    return agreed is None or offer.reservation_micros * 100 <= agreed * (100 + RISE_PERCENT)


def limit(record: JobRecord) -> int | None:
    """Return the most that may ever be set aside for a job, in micro-dollars; None: nobody has said.

    That is what was approved, with the rise that is let pass, and what the request allows.
    """
    budget, agreed = record.request.budget_usd, record.approved_micros
    limits = [] if budget is None else [int(Decimal(str(budget)) * 1_000_000)]
    if agreed is not None:
        limits.append(agreed * (100 + RISE_PERCENT) // 100)
    return min(limits, default=None)


def question(record: JobRecord, offer: Offer) -> str:
    """Say what a job waits for, and how it goes on."""
    rent = f"{offer.gpu or 'a machine'}{' (spot)' if offer.spot else ''} of {offer.provider}"
    cost = f"{dollars(offer.cost_p50_micros)}, at most {dollars(offer.reservation_micros)} is reserved"
    rose = ""
    if record.approved_micros is not None:
        rose = f"The price rose by more than {RISE_PERCENT} % since {dollars(record.approved_micros)} was approved. "
    return (
        f"waits for approval: {rose}{rent} would cost about {cost}."
        f" `meetara approve {record.job}` lets it go on, `meetara refuse {record.job}` ends it."
    )
