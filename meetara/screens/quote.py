"""`meetara quote` and `meetara train --dry-run`: what a request would take and cost on each machine; nothing is started."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab
from meetara.screens.offers import MORE
from protocol.machine import Offer, Quote

NAMED = 4
"""Machines of which a line of reasons names each."""


async def quote(where: dict[str, Any], fields: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """Ask for a quote and show it."""
    async with Lab(**where, name="quote") as lab:
        found = await lab.quote(**fields)
    if as_json:
        emit(found)
    else:
        show_quote(found, console)
    return OK


def show_quote(found: Quote, console: Console) -> None:
    """Show the choice, what else would fit, why, and what was rejected."""
    plan = found.plan
    if plan is not None:
        console.print(
            f"{show.count(plan.rows)} rows, {show.count(plan.tokens)} tokens, {show.count(plan.steps)} steps,"
            f" a base of {show.count(plan.base_parameters)} weights", markup=False,
        )  # fmt: skip
    if found.finished_by is not None:
        console.print(
            f"The job {found.finished_by} made this model already: the request would train nothing and cost nothing"
            " (--fresh trains in any case).", style="green", markup=False,
        )  # fmt: skip
    grid = Table(
        "", "provider", Column("machine", overflow="fold"), "GPU", Column("per hour", justify="right"),
        Column("time P50", justify="right"), Column("P90", justify="right"), Column("cost P50", justify="right"),
        Column("P90", justify="right"), Column("to reserve", justify="right"), "kind",
    )  # fmt: skip
    for offer in (found.choice, *found.others):
        grid.add_row(*_row(offer, chosen=offer is found.choice), style="bold" if offer is found.choice else None)
    console.print(grid)
    console.print(f"chosen for {found.reason}", markup=False)
    if found.calibration:
        console.print(f"times: {found.calibration}", markup=False)
    by_reason: dict[str, list[str]] = defaultdict(list)
    offered = {name for offer in found.others for name in (offer.machine, f"{offer.provider} {offer.machine}")}
    for name, reason in found.rejected.items():
        if name not in offered:
            by_reason[reason].append(name)
    for reason, names in by_reason.items():
        if names == ["…"]:
            console.print(Text(f"not looked at more closely: {reason}", style="dim"))
            continue
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        console.print(Text(f"not {', '.join(names[:NAMED])}{more}: {reason}", style="dim"))
    if not any(offer.paid for offer in (found.choice, *found.others)):
        console.print(MORE, markup=False)


def _row(offer: Offer, *, chosen: bool) -> list[Text]:
    gpu = f"{offer.gpus} x {offer.gpu}" if offer.gpus > 1 else offer.gpu
    cells = (
        "→" if chosen else "", offer.provider, offer.machine, gpu, show.micros(offer.price_micros_per_hour),
        show.duration(offer.seconds_p50), show.duration(offer.seconds_p90), show.micros(offer.cost_p50_micros),
        show.micros(offer.cost_p90_micros), show.micros(offer.reservation_micros), "spot" if offer.spot else "",
    )  # fmt: skip
    return [Text(cell) for cell in cells]
