"""Times, amounts and machines as a quote's sentences have them."""

from __future__ import annotations

from agents.gpu_orchestrator.market.requirements import Requirements
from agents.gpu_orchestrator.market.sanity import usd
from protocol.machine import Offer


def late(seconds: float, wanted: Requirements) -> str:
    """Return the reason of a machine that is too slow."""
    return f"the job may take {hours(seconds)} there (P90), longer than the {hours(wanted.deadline_s or 0)} of deadline_hours"


def over(reservation: int, wanted: Requirements) -> str:
    """Return the reason of a machine that is too dear."""
    return f"the job must reserve {usd(reservation)} there, more than {usd(wanted.limit_micros or 0)}, {wanted.limit_is}"


def named(offer: Offer) -> str:
    """Return what a quote calls a machine."""
    return f"{offer.provider} {offer.machine}" if offer.paid else offer.machine


def cents(micros: int) -> str:
    """Return a predicted amount: more digits than cents would promise too much."""
    return f"${micros / 1e6:.2f}" if micros == 0 or micros >= 10_000 else "less than a cent"


def gib(size: int) -> str:
    """Return bytes in GiB."""
    return f"{size / 2**30:.2f}"


def hours(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
