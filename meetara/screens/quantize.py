"""`meetara quantize`: a model in another quantisation, or what each would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import Settings
from meetara import show, tool
from meetara.door import OK, emit
from meetara.models import stored
from meetara.screens.progress import shown
from protocol import Code, LabError


def locate(name: str, home: Path) -> Path:
    """Return the F16 file or the job's folder that a person means: a path, a job, or the job of a domain's newest model.

    Raises:
        LabError: NOT_FOUND.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    jobs = home / "jobs"
    if "/" not in name:
        for job in (name, *(model.job for model in stored(home, name))):
            if (jobs / job).is_dir():
                return jobs / job
    raise LabError(
        Code.NOT_FOUND, f"there is no file {name}, and no job or domain of this name with its files in {jobs}.",
        advice="Name an F16 GGUF, or a job whose folder was not cleared (see `meetara jobs`).", field="file",
    )  # fmt: skip


async def quantize(
    name: str, options: Mapping[str, str | None], *, flags: Sequence[str] = (), home: Path | None, as_json: bool,
    console: Console,
) -> int:  # fmt: skip
    """Have a model quantised, or compared over many types, and show what came of it."""
    home = Settings.read(home=home).home
    arguments = [str(locate(name, home)), *flags]
    for option, value in options.items():
        if value is not None:
            arguments += [f"--{option}", value]
    with shown(console, as_json) as told:
        report = await tool.work("compare", arguments, home=home, told=told)
    if as_json:
        emit(report)
    elif "rows" in report:
        console.print(table(report))
        console.print(Text(notes(report), style="dim"))
    else:
        bits = show.number(report["bits_per_weight"], ".2f", "bits per weight")
        console.print(Text(f"{report['file']}  {report['type']}, {show.size(report['bytes'])}, {bits}"))
    return OK


def table(report: Mapping[str, Any]) -> Table:
    """Size, closeness to F16 and quality of each type; the ones that nothing beats are marked."""
    grid = Table(title=Path(report["file"]).name, title_justify="left")
    for title in ("type", "size", "bits/weight", "KL to F16", "same top token", "perplexity", "quality", ""):
        grid.add_column(title, justify="left" if title in ("type", "") else "right")
    for row in report["rows"]:
        if row["error"]:
            grid.add_row(row["type"], *[""] * 6, Text(f"not made: {row['error']}", style="yellow"))
            continue
        quality = "" if row["quality_percent"] is None else f"{row['quality_percent']:.1f} %"
        grid.add_row(
            row["type"], show.size(row["bytes"]), f"{row['bits_per_weight']:.2f}", f"{row['kl']:.2e}",
            f"{row['top1_percent']:.1f} %", f"{row['perplexity']:.2f}", quality, "← nothing is smaller and as close" if row["pareto"] else "",
            style="bold" if row["pareto"] else "",
        )  # fmt: skip
    return grid


def notes(report: Mapping[str, Any]) -> str:
    """Say on what it was measured."""
    said = f"measured on {report['tokens']} held-out tokens; "
    matrix = report["imatrix_tokens"]
    said += f"importance matrix from {matrix} tokens" if matrix else "without an importance matrix"
    if report["base_perplexity"] is None:
        return said + "; no base was given, so quality is not told"
    return said + f"; the base's perplexity is {report['base_perplexity']:.2f}"
