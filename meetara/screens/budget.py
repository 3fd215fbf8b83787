"""`meetara budget`: what was spent, what is reserved, what is left, and what changes that."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab
from protocol import Code, LabError
from protocol.money import BudgetReport, CapName, EmergencyReport, Entry, PeriodReport

COLUMNS = (
    "number", "at", "counts_at", "kind", "job", "provider", "domain", "rental", "reservation", "amount_micros",
    "amount_usd", "note",
)  # fmt: skip
BLOCKS = " ▁▂▃▄▅▆▇█"
"""Heights of a day's bar; a day on which nothing was spent is empty."""


async def budget(where: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """Show the ledger by period, job, provider, domain and day."""
    async with Lab(**where, name="budget") as lab:
        report = await lab.budget()
        stopped = await lab.stopped() if report.mode == "frozen" and not as_json else None
    if as_json:
        emit(report)
        return OK
    console.print(_periods(report))
    for text in _remarks(report):
        console.print(text)
    if stopped is not None and stopped.stopped:
        console.print(_stopped(stopped))
    month = report.periods[-1]
    if report.days:
        console.print(chart(report.days, month))
    reserved = {item.job: item.amount_micros for item in report.open_reservations}
    if report.jobs or reserved:
        grid = Table(Column("job", no_wrap=True), "spent", "reserved", title="this month", title_justify="left")
        for job in sorted(report.jobs.keys() | reserved.keys()):
            grid.add_row(job or "(no job)", show.micros(report.jobs.get(job, 0)), show.micros(reserved.get(job, 0)))
        console.print(grid)
    for what, spent in (("provider", report.providers), ("domain", report.domains)):
        if spent:
            grid = Table(Column(what, no_wrap=True), "spent")
            for name, amount in sorted(spent.items(), key=lambda item: (-item[1], item[0])):
                grid.add_row(name or "(none)", show.micros(amount))
            console.print(grid)
    return OK


def _periods(report: BudgetReport) -> Table:
    grid = Table("period", "until (UTC)", "spent", "reserved", "cap", "used", "forecast")
    for period in report.periods:
        forecast = "" if period.forecast_micros is None else show.micros(period.forecast_micros)
        grid.add_row(
            period.period, period.until.strftime("%Y-%m-%d %H:%M"), show.micros(period.spent_micros),
            show.micros(period.reserved_micros), show.micros(period.cap_micros), f"{period.percent:.1f} %", forecast,
        )  # fmt: skip
    return grid


def _remarks(report: BudgetReport) -> Iterable[Text]:
    """What is different from usual, and what waits."""
    told = ", ".join(f"{percent} %" for percent in report.alert_percents)
    if report.mode == "normal" and told:
        yield Text(f"Told at {told} of a cap; paid work stops at {report.freeze_percent} %.", style="dim")
    if report.mode != "normal":
        word = "Paid work is frozen" if report.mode == "frozen" else "Money is short"
        yield Text(f"{word}: {'; '.join(report.changes)}.", style="red" if report.mode == "frozen" else "yellow")
    for provider, reason in report.frozen_providers.items():
        yield Text(f"Nothing is rented from {provider}: {reason}. (meetara budget unfreeze {provider})", style="red")
    for name, micros in report.wishes.items():
        yield Text(f"{name} = {show.micros(micros)} waits for approval. (meetara approve budget)", style="yellow")


def _stopped(report: EmergencyReport) -> Table:
    grid = Table("rental", "provider", "job", "cost", "gone at (UTC)", title="stopped by the freeze", title_justify="left")
    for item in report.stopped:
        gone = f"{item.verified_gone_at:%Y-%m-%d %H:%M:%S}" if item.verified_gone_at is not None else "not yet"
        grid.add_row(item.rental, item.provider, item.job or "(no job)", show.micros(item.cost_micros), gone)
    return grid


def chart(days: Mapping[str, int], month: PeriodReport) -> Text:
    """Draw what was spent on each day of the month so far: a bar a day, the tallest the dearest."""
    first = month.since.date()
    last = max(date.fromisoformat(day) for day in days)
    length = (last - first).days + 1
    amounts = [days.get((first + timedelta(days=number)).isoformat(), 0) for number in range(length)]
    most = max(amounts)
    bars = "".join(BLOCKS[_height(amount, most)] for amount in amounts)
    dearest = first + timedelta(days=amounts.index(most))
    return Text.assemble(
        "spent a day from ", first.isoformat(), "  ", (bars, "cyan"), "  ", last.isoformat(), f"; most on {dearest}: {show.micros(most)}"
    )  # fmt: skip


def _height(amount: int, most: int) -> int:
    """Return a bar's height in eighths, at least one where anything was spent."""
    return 0 if amount <= 0 or most <= 0 else max(1, round(amount * (len(BLOCKS) - 1) / most))


async def export(where: dict[str, Any], target: str, *, console: Console) -> int:
    """Write all entries of the ledger as CSV; `-` is stdout. A file is written in one piece, or not at all.

    Raises:
        LabError: INVALID_PARAMS, the file cannot be written.
    """
    async with Lab(**where, name="budget") as lab:
        entries = [entry async for entry in lab.entries()]
    text = table(entries)
    if target == "-":
        sys.stdout.write(text)
        return OK
    path = Path(target)
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        raise LabError(
            Code.INVALID_PARAMS, f"{path} cannot be written: {error.strerror}.", advice="Name another file.", field="csv"
        ) from error
    console.print(f"{len(entries)} entries in {path}", markup=False)
    return OK


def table(entries: Iterable[Entry]) -> str:
    """Return entries as CSV (RFC 4180), dollars to the micro."""
    found = io.StringIO()
    writer = csv.writer(found)
    writer.writerow(COLUMNS)
    for entry in entries:
        row = {**entry.model_dump(mode="json"), "amount_usd": exact(entry.amount_micros)}
        writer.writerow([row[name] for name in COLUMNS])
    return found.getvalue()


def exact(micros: int) -> str:
    """Return micro-dollars as dollars without rounding, for programs: -1.250000."""
    return f"{'-' if micros < 0 else ''}{abs(micros) // 1_000_000}.{abs(micros) % 1_000_000:06d}"


async def change(where: dict[str, Any], name: str, usd: str, *, as_json: bool, console: Console) -> int:
    """Set a budget: lower at once, higher when it is signed.

    Raises:
        LabError: INVALID_PARAMS, no such budget, or no number; BUDGET, it is below what is spent and reserved.
    """
    if name not in get_args(CapName):
        raise LabError(
            Code.INVALID_PARAMS, f"{name!r} is no budget.", advice=f"There are {', '.join(get_args(CapName))}.", field="name"
        )
    try:
        amount = float(usd)
    except ValueError as error:
        raise LabError(Code.INVALID_PARAMS, f"{usd!r} is no sum in dollars.", advice="Give a number, e.g. 80.", field="usd") from error
    async with Lab(**where, name="budget") as lab:
        reply = await lab.set_budget(cast(CapName, name), amount)
    if as_json:
        emit(reply)
    elif reply.state == "waits":
        assert reply.wished_micros is not None
        console.print(
            f"{name} stays {show.micros(reply.cap_micros)}: {show.micros(reply.wished_micros)} waits for who may spend"
            " (meetara approve budget).", markup=False,
        )  # fmt: skip
    else:
        console.print(f"{name} is {show.micros(reply.cap_micros)}.", markup=False)
    return OK


async def unfreeze(where: dict[str, Any], provider: str, *, as_json: bool, console: Console) -> int:
    """Rent from a provider again."""
    async with Lab(**where, name="budget") as lab:
        await lab.unfreeze(provider)
    if as_json:
        emit({"provider": provider, "frozen": False})
    else:
        console.print(f"{provider} is trusted again.", markup=False)
    return OK
