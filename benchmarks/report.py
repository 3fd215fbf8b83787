"""docs/results/benchmarks.md and its pictures, made from the results that are there."""

from __future__ import annotations

from pathlib import Path

from benchmarks.picture import draw
from benchmarks.result import PROJECT, RESULTS, Result, Series

NAMES = ("calls", "transitions", "first_step", "same_again", "offers", "adapters", "cluster", "training")
LONG = ("small_jobs", "export")
"""Measured only when they are named: minutes each."""
PAGE = PROJECT / "docs" / "results" / "benchmarks.md"
HEAD = """\
# Benchmarks

Written by `make bench` from the JSON files in [benchmarks/](benchmarks); edits are lost. Each value is the median over the rounds, beside
it the least and the greatest. A picture has a dot for each round and a line at the median; what is grey is a peer.
"""


def write_report(page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Write the page and a picture for each group of series; returns the page's path."""
    parts = [HEAD]
    for name in (*NAMES, *LONG):
        result = Result.load(name, results)
        if result is not None:
            parts.append(section(result, results))
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def section(result: Result, folder: Path) -> str:
    """Return a benchmark's part of the page; its pictures are written into `folder`."""
    machine = result.machine
    packages = ", ".join(f"{name} {number}" for name, number in machine.packages.items())
    lines = [
        f"## {result.title}", "", result.method, "", "| | median | | from | to | goal | |", "|---|--:|---|--:|--:|--:|---|",
        *(row(series) for series in result.series), "",
    ]  # fmt: skip
    for old in folder.glob(f"{result.name}-*.svg"):
        old.unlink()
    groups = list(dict.fromkeys(series.group for series in result.series if series.group))
    for number, group in enumerate(groups, 1):
        shown = [series for series in result.series if series.group == group]
        if len(shown) > 1:
            path = folder / f"{result.name}-{number}.svg"
            draw(shown, group, path)
            lines += [f"![{group}]({folder.name}/{path.name})", ""]
    lines += [
        f"{result.measured_at:%Y-%m-%d %H:%M} UTC, {result.rounds} rounds in {result.seconds:.0f} s, commit {machine.commit}. "
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gb} GB, {machine.system}, Python {machine.python}, "
        f"Mosquitto {machine.mosquitto}, {packages}. Load of the machine at the beginning: {machine.load}.",
        "",
    ]
    return "\n".join(lines)


def row(series: Series) -> str:
    """Return a line of the table."""
    low, high = series.spread
    goal = "" if series.goal is None else f"{'≥' if series.goal.kind == 'at least' else '≤'} {series.goal.value:g}"
    met = {True: "met", False: "**missed**", None: ""}[series.met]
    return f"| {series.name} | {number(series.median)} | {series.unit} | {number(low)} | {number(high)} | {goal} | {met} |"


def number(value: float) -> str:
    """Return a value with three digits that count, and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
