"""Dollars of vendors as integer micro-dollars, exactly, rounded up: what is reserved must never be too little."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Annotated

from pydantic import Field

MICROS_PER_USD = 1_000_000
HOURS_PER_MONTH = 720
"""Vendors price disks per month and meter them per hour; 30 days give the higher price per hour."""
LARGEST_USD = 1_000_000_000
"""Beyond it a number is no price but damage; and `1e999999999` must not become an integer."""

Usd = Annotated[Decimal, Field(ge=-LARGEST_USD, le=LARGEST_USD)]
"""Dollars in a vendor's answer."""


def micros(usd: Decimal, per: int = 1) -> int:
    """Return dollars in micro-dollars, rounded up.

    Args:
        usd: as they stand in the vendor's answer (JSON numbers are read as Decimal, never as float), within LARGEST_USD.
        per: parts into which the amount is divided, e.g. HOURS_PER_MONTH.
    """
    with localcontext() as context:
        context.prec = 60  # exact for all that vendors write; the default of 28 digits would round first
        return int((usd * MICROS_PER_USD / per).to_integral_value(ROUND_CEILING))


def usd(amount_micros: int) -> float:
    """Return micro-dollars as a JSON number of dollars; its shortest form has exactly their six decimal places."""
    return amount_micros / MICROS_PER_USD
