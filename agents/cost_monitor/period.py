"""Budget periods: the UTC day, the ISO week (from Monday), the calendar month."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from configs.budget import Period

PERIODS: tuple[Period, ...] = ("day", "week", "month")


def start(period: Period, now: datetime) -> datetime:
    """Return when the period that holds `now` began, in UTC."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return midnight
    if period == "week":
        return midnight - timedelta(days=midnight.weekday())
    return midnight.replace(day=1)


def end(period: Period, now: datetime) -> datetime:
    """Return when the next period begins, in UTC."""
    begin = start(period, now)
    if period == "month":
        return (begin + timedelta(days=32)).replace(day=1)
    return begin + timedelta(days=1 if period == "day" else 7)
