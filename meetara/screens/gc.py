"""`meetara gc`: show what nothing needs any more, ask, and have the factory's program remove it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from configs import Settings
from meetara import show
from meetara.door import FAILED, OK, emit, tell
from meetara.home import running
from meetara.lab import Lab
from protocol import Code, LabError, State
from protocol.errors import ErrorBody

ENDED = frozenset({State.FAILED, State.CANCELLED, State.REFUSED})
SHOWN = 20
"""Lines of the table; the sums cover all."""


async def gc(flags: dict[str, Any], *, models: bool, yes: bool, as_json: bool, console: Console) -> int:
    """Find, show, ask, remove. Without `yes` and without a terminal nothing is removed.

    Raises:
        LabError: INTERNAL, the factory's program failed; CONFIGURATION, a file in configs/ is wrong.
    """
    home = Settings.read(**flags).home
    known = {"ended": await ended(home)}
    arguments = ["--models"] if models else []
    found = await program(home, arguments, known)
    sure = bool(found["items"]) and (yes or (not as_json and sys.stdin.isatty() and _agreed(found, console)))
    if sure:
        found = await program(home, [*arguments, "--remove"], {**known, "items": found["items"]})
    if as_json:
        emit({**found, "removed": sure})
    elif not found["items"]:
        console.print(f"Nothing in {home} is there in vain. {rooms(found)}", markup=False)
    elif sure:
        console.print(f"{show.size(found['freed_bytes'])} freed. {rooms(found)}", markup=False)
    elif not sys.stdin.isatty():
        console.print(table(found))
        console.print("Nothing was removed; `meetara gc --yes` does it without asking.", markup=False)
    for failure in found["failed"]:
        tell(f"error: {failure['path']} was not removed: {failure['reason']}")
    return FAILED if found["failed"] else OK


async def ended(home: Path) -> list[str]:
    """Return the jobs that ended without a model; none while the lab is down, for only it knows which go on."""
    up = running(home)
    if up is None:
        return []
    async with Lab(home=home, name="gc") as lab:
        return [job.job for job in await lab.jobs() if job.state in ENDED]


async def program(home: Path, arguments: list[str], asked: dict[str, Any]) -> dict[str, Any]:
    """Run agents.gguf_factory.gc on a home and return what it says.

    Raises:
        LabError: as `gc`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agents.gguf_factory.gc", *arguments, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "MEETARA_HOME": str(home)},
    )  # fmt: skip
    out, words = await process.communicate(json.dumps(asked).encode())
    try:
        found: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError as error:
        last = words.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise LabError(Code.INTERNAL, f"looking through {home} failed: {' '.join(last)}") from error
    if "error" in found:
        raise LabError.from_body(ErrorBody.model_validate(found["error"]))
    return found


def table(found: dict[str, Any]) -> Table:
    """What would be removed, in order."""
    total = sum(item["bytes"] for item in found["items"])
    grid = Table(
        "what", Column("bytes", justify="right"), Column("where", overflow="fold"), "why",
        title=f"{show.size(total)} that nothing needs", title_justify="left",
    )  # fmt: skip
    for item in found["items"][:SHOWN]:
        grid.add_row(item["what"], show.size(item["bytes"]), os.path.relpath(item["path"], found["home"]), item["why"])
    if len(found["items"]) > SHOWN:
        grid.add_row(f"and {len(found['items']) - SHOWN} more", "", "", "")
    return grid


def rooms(found: dict[str, Any]) -> str:
    """Say how full the rooms are."""
    told = [
        f"{name} {show.size(room['bytes'])}" + (f" of {show.size(room['limit_bytes'])}" if room["limit_bytes"] is not None else "")
        for name, room in found["rooms"].items()
    ]  # fmt: skip
    return "Now there are: " + ", ".join(told) + "."


def _agreed(found: dict[str, Any], console: Console) -> bool:
    console.print(table(found))
    finished = sum(item["what"] == "model" for item in found["items"])
    question = f"Remove all of it, {finished} finished models among it? [y/N] " if finished else "Remove all of it? [y/N] "
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
