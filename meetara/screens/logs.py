"""`meetara logs`: what the processes of a home have written, merged by time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from configs import Settings
from meetara.door import OK, emit
from meetara.logbook import Line, Wanted, files, more, read
from protocol import Code, LabError

LOOK_SECONDS = 0.25
"""How often a followed log is looked at: four times a second is as quick as a person reads."""
COLOURS = {"debug": "dim", "info": "cyan", "warning": "yellow", "error": "red", "critical": "bold red"}
SHOWN_ELSEWHERE = {"timestamp", "agent", "level", "event", "trace", "message", "exception"}


async def logs(
    where: dict[str, Any], wanted: Wanted, *, last: int, follow: bool, as_json: bool, console: Console
) -> int:
    """Show the last lines, and with `follow` those that come, until Ctrl-C; `last` 0 means all."""
    home = Settings.read(**where).home
    if not files(home) and not follow:
        raise LabError(
            Code.NOT_FOUND, f"there are no logs in {home / 'logs'}.",
            advice="Name the lab's home with --home or MEETARA_HOME; `meetara up` writes them.", file=str(home / "logs"),
        )  # fmt: skip
    found, readers = read(home, wanted)
    _show(found[-last:] if last else found, as_json=as_json, console=console)
    while follow:
        await asyncio.sleep(LOOK_SECONDS)
        _show(more(home, readers, wanted), as_json=as_json, console=console)
    return OK


def _show(lines: Iterable[Line], *, as_json: bool, console: Console) -> None:
    for line in lines:
        if as_json:
            emit(line.facts or {"timestamp": line.at.isoformat(), "agent": line.agent, "event": line.text})
        else:
            console.print(picture(line), soft_wrap=True)


def picture(line: Line) -> Text:
    """Return a line for a person: local time, agent, what happened, its facts, and where an exception passed."""
    head = Text.assemble((line.at.astimezone().strftime("%H:%M:%S.%f")[:-3], "dim"), f" {line.agent:<18} ")
    if line.facts is None:
        return head.append_text(Text.from_ansi(line.text))
    level = str(line.facts.get("level", "info"))
    head.append(str(line.facts.get("event", "")), style=COLOURS.get(level, ""))
    for name, value in line.facts.items():
        if name not in SHOWN_ELSEWHERE and value is not None:
            head.append(f" {name}=", style="dim").append(str(value))
    error = line.facts.get("exception")
    while isinstance(error, dict):
        head.append(f"\n    {error.get('type')} {error.get('text', error.get('reason', ''))}".rstrip(), style="red")
        for frame in error.get("frames", ())[-3:]:
            place, _, function = str(frame).rpartition(" ")
            head.append(f"\n      {Path(place).name} {function}", style="dim")
        error = error.get("cause")
    return head
