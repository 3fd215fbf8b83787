"""`meetara watch`, `jobs`, `job` and `cancel`: the jobs of a lab."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.door import FAILED, OK, WRONG, emit
from meetara.lab import Lab
from meetara.screens import live, result
from protocol import JobSnapshot, Progress, State
from protocol.job import FINAL

KEPT = 20
"""Jobs in the live table; more do not fit a screen. Those that run come first, then the newest."""


def overview(jobs: dict[str, JobSnapshot], progress: dict[str, Progress]) -> Table:
    """One line per job."""
    grid = Table(Column("job", no_wrap=True), "domain", "state", "stage", "step", "loss", "tokens/s", "ETA", "cost", "quality")
    ordered = sorted(jobs.values(), key=lambda job: (job.state not in FINAL, job.at), reverse=True)
    for job in ordered[:KEPT]:
        now = progress.get(job.job)
        if now is not None and (job.state in FINAL or now.attempt < job.attempt):
            now = None
        step = "" if now is None or now.step is None else f"{now.step}/{now.steps}" if now.steps else str(now.step)
        cost = now.cost_usd if now is not None and now.cost_usd is not None else job.cost_usd
        grid.add_row(
            job.job, job.domain, show.state(job.state.value), job.stage.value if job.stage else "", step,
            "" if now is None or now.loss is None else f"{now.loss:.3f}",
            "" if now is None or now.tokens_per_s is None else f"{now.tokens_per_s:,.0f}",
            "" if now is None or now.eta_s is None else show.duration(now.eta_s),
            "" if cost is None else show.dollars(cost),
            "" if job.quality_percent is None else f"{job.quality_percent:.1f} %",
        )  # fmt: skip
    return grid


async def watch(where: dict[str, Any], job: str | None, *, as_json: bool, console: Console) -> int:
    """Show one job until it has ended, or all jobs until Ctrl-C."""
    async with Lab(**where, name="watch") as lab:
        if job is not None:
            one = await lab.job(job)
            if as_json:
                final: JobSnapshot | None = None
                async for update in one.updates():
                    emit(_tagged(update))
                    final = update if isinstance(update, JobSnapshot) else final
                assert final is not None
                return ending(final)
            final = await live.follow(one, console)
            console.print(result.screen(final) if final.state is State.DONE or final.gates else _why(final))
            return ending(final)
        jobs = {snapshot.job: snapshot for snapshot in await lab.jobs()}
        progress: dict[str, Progress] = {}
        lines: dict[str, tuple[live.View, live.Lines]] = {}
        table = Live(overview(jobs, progress), console=console, refresh_per_second=live.REFRESH)
        if not as_json and console.is_terminal:
            table.start()
        try:
            async with aclosing(lab.updates()) as updates:
                async for update in updates:
                    if isinstance(update, JobSnapshot):
                        jobs[update.job] = update
                    else:
                        progress[update.job] = update
                    if as_json:
                        emit(_tagged(update))
                    elif console.is_terminal:
                        table.update(overview(jobs, progress))
                    else:
                        view, line = lines.setdefault(update.job, (live.View(update.job), live.Lines(console)))
                        view.take(update)
                        line.show(view)
        finally:
            table.stop()
    return OK


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


def ending(final: JobSnapshot) -> int:
    """Return the exit code that goes with a final state."""
    return {State.DONE: OK, State.REFUSED: WRONG}.get(final.state, FAILED)


def _why(snapshot: JobSnapshot) -> Text:
    return Text(f"{snapshot.job} is {snapshot.state.value}: {snapshot.reason or 'no reason was given'}")


def _tagged(update: JobSnapshot | Progress) -> dict[str, Any]:
    return {"state" if isinstance(update, JobSnapshot) else "progress": update}
