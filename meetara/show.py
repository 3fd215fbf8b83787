"""How values are shown. What was not measured is said so, never zero."""

from __future__ import annotations

from typing import Any

MISSING = "not measured"
STATE_COLOURS = {
    "done": "green", "failed": "red", "refused": "red", "cancelled": "yellow", "interrupted": "yellow",
}  # fmt: skip


def number(value: Any, form: str = ",.4g", unit: str = "") -> str:
    """Return a number with its unit, or MISSING."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING if value is None else str(value)
    return f"{value:{form}}{' ' + unit if unit else ''}"


def count(value: Any) -> str:
    """Return an integer with thousands separators, or MISSING."""
    return number(value, ",.0f")


def size(value: float | None) -> str:
    """Return bytes in decimal units: 8,123,456 bytes is 8.12 MB."""
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Return seconds as 4.2 s, 3 min 20 s, or 2 h 5 min."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def dollars(value: float | None) -> str:
    """Return an amount in US dollars; small ones keep their cents' fractions."""
    if value is None:
        return MISSING
    return f"${value:,.2f}" if value == 0 or value >= 0.01 else f"${value:.6f}"


def micros(value: int | None) -> str:
    """Return micro-dollars as dollars."""
    return dollars(None if value is None else value / 1_000_000)


def state(name: str) -> str:
    """Return a state in its colour."""
    colour = STATE_COLOURS.get(name)
    return f"[{colour}]{name}[/{colour}]" if colour else name
