"""`meetara jobs`, `job` and `cancel`: the jobs of a lab."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab
from meetara.screens import result
from protocol import JobSnapshot


async def jobs(where: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """List all jobs."""
    async with Lab(**where, name="jobs") as lab:
        found = await lab.jobs()
    if as_json:
        emit({"jobs": found})
    elif found:
        grid = Table(Column("job", no_wrap=True), "domain", "tier", "state", "stage", "quality", "cost", "since")
        for job in found:
            grid.add_row(
                job.job, job.domain, job.tier, show.state(job.state.value), job.stage.value if job.stage else "",
                "" if job.quality_percent is None else f"{job.quality_percent:.1f} %",
                "" if job.cost_usd is None else show.dollars(job.cost_usd),
                job.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            )  # fmt: skip
        console.print(grid)
    else:
        console.print("No jobs yet. Start one with `meetara train`.", markup=False)
    return OK


async def job(where: dict[str, Any], id: str, *, as_json: bool, console: Console) -> int:
    """Show one job's snapshot and its events."""
    async with Lab(**where, name="job") as lab:
        one = await lab.job(id)
        snapshot, events = await asyncio.gather(one.snapshot(), one.events())
    gone = result.missing(snapshot)
    if as_json:
        emit({"job": snapshot, "events": events, **({"missing": gone} if gone else {})})
        return OK
    console.print(result.screen(snapshot))
    for uri in gone:
        advice = "Bring it back from a copy, or train again: the same data and parameters under another id."
        console.print(Text(f"{uri} is gone from the store. {advice}", style="red"))
    if snapshot.reason:
        console.print(_why(snapshot))
    grid = Table("seq", "time", "event", "", title="events", title_justify="left")
    for event in events:
        data = ", ".join(f"{name}={value}" for name, value in event.data.items() if value not in (None, "", [], {}))
        grid.add_row(
            str(event.seq), event.at.astimezone().strftime("%H:%M:%S"), event.type, Text(data, overflow="ellipsis"),
        )  # fmt: skip
    console.print(grid)
    return OK


async def cancel(where: dict[str, Any], id: str, *, as_json: bool, console: Console) -> int:
    """End a job; what it has finished is kept."""
    async with Lab(**where, name="cancel") as lab:
        snapshot = await (await lab.job(id)).cancel()
    if as_json:
        emit(snapshot)
    else:
        console.print(f"{snapshot.job}  {snapshot.state.value}", markup=False)
    return OK


def _why(snapshot: JobSnapshot) -> Text:
    return Text(f"{snapshot.job} is {snapshot.state.value}: {snapshot.reason or 'no reason was given'}")
