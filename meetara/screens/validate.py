"""`meetara validate`: the gates on any GGUF, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import GATES, Settings
from meetara import show, tool
from meetara.door import FAILED, OK, emit
from meetara.models import find
from meetara.screens.progress import shown
from meetara.screens.result import verdict
from protocol.job import Gate

COLOURS = {"passed": "green", "missed": "red", "warning": "yellow"}


async def validate(
    name: str, options: Mapping[str, str | None], *, home: Path | None, as_json: bool, console: Console
) -> int:
    """Have a file's gates measured and show them; FAILED when one of level `fail` was missed.

    Args:
        name: the file, or the domain or job of a finished model.
        options: values of the tool's options by name, such as "base"; None and "" are left out.
    """
    home = Settings.read(home=home).home
    file = find(name, home).absolute()
    arguments = [str(file)]
    for option, value in options.items():
        if value:
            arguments += [f"--{option}", value]
    with shown(console, as_json) as told:
        report = await tool.work("proof", arguments, home=home, told=told)
    if as_json:
        emit(report)
    else:
        show_report(report, console)
    return OK if report["ok"] else FAILED


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Show the gates, what to change, and sample answers."""
    name = Path(report["file"]).name
    console.print(Text.assemble((name, "bold"), f"  {show.size(report['bytes'])}, sha256 {report['sha256']}"))
    console.print(Text(f"gates of the tier {report['tier']}, base {report['base']}"))
    console.print(table(report["gates"]))
    for name, advice in report["advice"].items():
        console.print(Text(f"→ {name}: {advice}"))
    for answer in report["results"].get("answers") or ():
        console.print(Text(f"\n{answer['question']}", style="bold"))
        console.print(Text(f"base: {answer['base']}", style="dim"))
        console.print(Text(f"this file: {answer['tuned']}"))
    if left_out := report["results"].get("held_out_also_trained"):
        console.print(Text(f"{left_out} held-out rows stand in --train-data too and were left out", style="yellow"))
    missed = [name for name, gate in report["gates"].items() if gate["level"] == "fail" and gate["ok"] is False]
    if missed:
        console.print(Text(f"missed: {', '.join(missed)}", style="red"))
    else:
        console.print(Text("no gate that fails a job was missed", style="green"))


def table(gates: Mapping[str, Mapping[str, Any]]) -> Table:
    """The gates with value, threshold, verdict and what was measured."""
    grid = Table("gate", "value", "must be", "verdict", "measured on")
    for name, facts in gates.items():
        gate = Gate.model_validate(facts)
        word = verdict(gate)
        limit = f"{GATES[name]} {amount(gate.threshold)}"
        grid.add_row(name, amount(gate.value), limit, Text(word, style=COLOURS.get(word, "dim")), Text(gate.detail))
    return grid


def amount(value: float | None) -> str:
    """Return a value with four digits, or all of them where it counts bytes."""
    return show.count(value) if value is not None and abs(value) >= 10_000 else show.number(value)
