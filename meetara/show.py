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


def brief(value: float) -> str:
    """Return an amount in US dollars for a narrow column: cents, or two digits of what is less than one."""
    if value == 0 or value >= 0.01:
        return f"${value:,.2f}"
    return "<$0.0001" if value < 0.0001 else f"${value:.4f}"


def micros(value: int | None) -> str:
    """Return micro-dollars as dollars."""
    return dollars(None if value is None else value / 1_000_000)


def state(name: str) -> str:
    """Return a state in its colour."""
    colour = STATE_COLOURS.get(name)
    return f"[{colour}]{name}[/{colour}]" if colour else name


def ago(seconds: float) -> str:
    """Return how long ago something was, roughly: now, 40 s ago, 3 min ago, 2 h ago, 4 d ago."""
    for limit, unit, divisor in ((1, "", 1), (60, "s", 1), (3600, "min", 60), (86_400, "h", 3600)):
        if seconds < limit:
            return f"{int(seconds / divisor)} {unit} ago" if unit else "now"
    return f"{int(seconds / 86_400)} d ago"


def left(seconds: float) -> str:
    """Return a time that is left, short enough for a table: 42 s, 3:20 min, 2:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def shortened(name: str, width: int) -> str:
    """Return a name in at most `width` characters: its middle goes, since generated ids differ at their ends."""
    if len(name) <= width:
        return name
    head = (width - 1) // 3
    return f"{name[:head]}…{name[head - width + 1 :]}"
