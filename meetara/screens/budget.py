"""`meetara budget`: what was spent, what is reserved, what is left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Column, Table

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab


async def budget(where: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """Show the ledger by period and by job."""
    async with Lab(**where, name="budget") as lab:
        report = await lab.budget()
    if as_json:
        emit(report)
        return OK
    grid = Table("period", "since", "spent", "reserved", "cap", "used")
    for period in report.periods:
        grid.add_row(
            period.period, period.since.strftime("%Y-%m-%d"), show.micros(period.spent_micros),
            show.micros(period.reserved_micros), show.micros(period.cap_micros), f"{period.percent:.1f} %",
        )  # fmt: skip
    console.print(grid)
    if report.frozen:
        console.print("[red]Paid work is frozen: the budget is nearly used up.[/red]")
    reserved = {item.job: item.amount_micros for item in report.open_reservations}
    if report.jobs or reserved:
        grid = Table(Column("job", no_wrap=True), "spent", "reserved")
        for job in sorted(report.jobs.keys() | reserved.keys()):
            grid.add_row(job, show.micros(report.jobs.get(job, 0)), show.micros(reserved.get(job, 0)))
        console.print(grid)
    return OK
