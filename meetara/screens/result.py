"""The result of a job: one table, the gates, and sample answers beside the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meetara import show
from protocol import JobSnapshot
from protocol.job import PRODUCTS, Artefact, Gate


def product(snapshot: JobSnapshot) -> Artefact | None:
    """Return the finished file: a whole model, or an adapter; None when there is none."""
    return next((artefact for artefact in snapshot.artefacts if artefact.kind in PRODUCTS), None)


def place(artefact: Artefact | None) -> str | None:
    """Return where a file is: a path for a local one, else its URI."""
    return artefact.uri.removeprefix("file://") if artefact else None


def file_path(snapshot: JobSnapshot) -> str | None:
    """Return where the product is: a path for a local file, else its URI; None when there is none."""
    return place(product(snapshot))


def missing(snapshot: JobSnapshot) -> list[str]:
    """Return the URIs of local artefacts that are gone. Where the store itself is not on this machine nothing is known."""
    gone = []
    for artefact in snapshot.artefacts:
        uri = urlsplit(artefact.uri)
        path = Path(unquote(uri.path))
        if uri.scheme == "file" and path.parents[1].is_dir() and not path.is_file():
            gone.append(artefact.uri)
    return gone


def rows(snapshot: JobSnapshot) -> list[tuple[str, str]]:
    """Return the lines of the result table as (what, value)."""
    results = snapshot.results
    file = product(snapshot)
    base = next((artefact for artefact in snapshot.artefacts if artefact.kind == "base"), None)

    def gate(name: str) -> float | None:
        return snapshot.gates[name].value if name in snapshot.gates else None

    made = [("made by", f"the job {snapshot.cached_from}, from the same data and parameters; nothing was trained now")]
    return [
        *(made if snapshot.cached_from else []),
        ("file", place(file) or results.get("kept") or "none"),
        ("sha256", file.sha256 if file else "none"),
        ("bytes", show.count(file.bytes if file else results.get("bytes"))),
        *([("on the base", place(base) or ""), ("base's sha256", base.sha256)] if base else []),
        ("bits per weight", show.number(results.get("bits_per_weight"), ".2f")),
        ("quality", show.number(snapshot.quality_percent, ".1f", "%")),
        ("load", show.number(gate("load_ms"), ".1f", "ms")),
        ("private memory", show.number(gate("private_mb"), ".1f", "MB")),
        ("generation", show.number(results.get("generation_tokens_per_s"), ",.0f", "tokens/s")),
        ("training", show.number(results.get("tokens_per_s"), ",.0f", "tokens/s")),
        ("time", show.duration(results.get("seconds_total", results.get("seconds")))),
        ("cost", show.dollars(snapshot.cost_usd)),
    ]


def verdict(gate: Gate) -> str:
    """Say how a gate ended: passed, missed, warned, off, or not measured."""
    if gate.level == "off":
        return "off"
    if gate.ok is None:
        return show.MISSING
    if gate.ok:
        return "passed"
    return "missed" if gate.level == "fail" else "warning"


def table(snapshot: JobSnapshot) -> Table:
    """The numbers of a finished job."""
    grid = Table(title=f"{snapshot.job}: {snapshot.state.value}", show_header=False, title_justify="left")
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows(snapshot):
        grid.add_row(name, Text(value))
    return grid


def gates(snapshot: JobSnapshot) -> Table:
    """The gates with value, threshold and verdict."""
    grid = Table("gate", "value", "threshold", "verdict", "", title="gates", title_justify="left")
    colours = {"passed": "green", "missed": "red", "warning": "yellow"}
    for name, gate in snapshot.gates.items():
        word = verdict(gate)
        grid.add_row(
            name, show.number(gate.value), "" if gate.threshold is None else show.number(gate.threshold),
            Text(word, style=colours.get(word, "")), Text(gate.detail),
        )  # fmt: skip
    return grid


def samples(snapshot: JobSnapshot, most: int = 2) -> list[RenderableType]:
    """Answers to held-out questions, the tuned model's beside the base's."""
    found: Any = snapshot.results.get("answers")
    shown: list[RenderableType] = []
    for sample in found[:most] if isinstance(found, list) else []:
        if not isinstance(sample, dict):
            continue
        grid = Table("base", "tuned", title=str(sample.get("question", "")), title_justify="left", expand=True)
        grid.add_row(Text(str(sample.get("base", show.MISSING))), Text(str(sample.get("tuned", show.MISSING))))
        shown.append(grid)
    return shown


def screen(snapshot: JobSnapshot) -> Group:
    """Everything about a job that has ended."""
    parts: list[RenderableType] = [table(snapshot)]
    if snapshot.gates:
        parts.append(gates(snapshot))
    parts += samples(snapshot)
    return Group(*parts)
