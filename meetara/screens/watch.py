"""`meetara watch`: one job until it ends, or the whole lab until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bus.tasks import end, within
from meetara.board import Board
from meetara.door import FAILED, OK, WRONG, emit
from meetara.job import Job
from meetara.lab import Lab
from meetara.news import Link, News
from meetara.screens import live, result
from meetara.screens.board import Picture
from protocol import JobSnapshot, LabError, Progress, State
from protocol.machine import Card, Presence, ProviderStatus
from protocol.money import BudgetAlert, BudgetReport

TAGS: dict[type, str] = {
    JobSnapshot: "state", Progress: "progress", Card: "card", Presence: "presence", ProviderStatus: "provider",
    BudgetAlert: "alert", BudgetReport: "budget",
}  # fmt: skip
"""The one key of a line of `--json`."""
AGEING_SECONDS = 1.0
"""Without news the picture is drawn anew so often: it shows a clock and ages."""


async def watch(where: dict[str, Any], job: str | None, *, as_json: bool, console: Console) -> int:
    """Show one job until it has ended, or the lab until Ctrl-C."""
    async with Lab(**where, name="watch") as lab:
        if job is not None:
            return await _one(await lab.job(job), as_json=as_json, console=console)
        if as_json:
            await _lines(lab)
        elif console.is_terminal:
            await _picture(lab, console)
        else:
            await _words(lab, console)
    return OK


def ending(final: JobSnapshot) -> int:
    """Return the exit code that goes with a final state."""
    return {State.DONE: OK, State.REFUSED: WRONG}.get(final.state, FAILED)


def tagged(item: News) -> dict[str, Any]:
    """Return an item as the line of `--json` that tells it."""
    return {"connected": item.up} if isinstance(item, Link) else {TAGS[type(item)]: item}


async def _one(one: Job, *, as_json: bool, console: Console) -> int:
    if not as_json:
        final = await live.follow(one, console)
        shown = final.state is State.DONE or final.gates
        why = f"{final.job} is {final.state.value}: {final.reason or 'no reason was given'}"
        console.print(result.screen(final) if shown else Text(why))
        return ending(final)
    last: JobSnapshot | None = None
    async for update in one.updates():
        emit(tagged(update))
        last = update if isinstance(update, JobSnapshot) else last
    assert last is not None
    return ending(last)


async def _lines(lab: Lab) -> None:
    async with aclosing(lab.news()) as news:
        async for item in news:
            emit(tagged(item))


async def _words(lab: Lab, console: Console) -> None:
    """Plain lines for a pipe: each change of a job's state or stage, and each tenth of a stage."""
    shown: dict[str, tuple[live.View, live.Lines]] = {}
    async with aclosing(lab.updates()) as updates:
        async for update in updates:
            view, lines = shown.setdefault(update.job, (live.View(update.job), live.Lines(console)))
            view.take(update)
            lines.show(view)


async def _picture(lab: Lab, console: Console) -> None:
    board = Board()
    fresh = asyncio.Event()

    def picture() -> Picture:
        return Picture(board, f"{lab.lab} at {lab.address}", datetime.now(UTC))

    async def hear() -> None:
        async with aclosing(lab.news()) as news:
            async for item in news:
                board.take(item, datetime.now(UTC))
                fresh.set()

    async def draw(live_picture: Live) -> None:
        # the loop's own task draws, not rich's thread: the board must not change while it is drawn
        while True:
            live_picture.update(picture(), refresh=True)
            await within(fresh.wait(), AGEING_SECONDS)
            fresh.clear()
            await asyncio.sleep(1 / live.REFRESH)

    with suppress(LabError):  # the conductor is away: the retained states come by themselves
        for snapshot in await lab.jobs(timeout=AGEING_SECONDS):
            board.take(snapshot, datetime.now(UTC))
    live_picture = Live(picture(), console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with live_picture, _resizing(console, fresh):
        tasks = [asyncio.create_task(hear()), asyncio.create_task(draw(live_picture))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end(tasks)


@contextmanager
def _resizing(console: Console, fresh: asyncio.Event) -> Iterator[None]:
    """Wipe the screen when the terminal changes its size: it has wrapped the old picture, which rich cannot take back."""

    def resized() -> None:
        console.clear()
        fresh.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
