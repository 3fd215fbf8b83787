"""`meetara route`: which domain a sentence belongs to, how sure that is, and what else it could be."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Column, Table

from meetara.door import OK, emit
from meetara.lab import Lab
from protocol.voice import TextRoute


async def route(where: dict[str, Any], text: str, *, as_json: bool, console: Console) -> int:
    """Ask the router and show its view; nothing is started."""
    async with Lab(**where, name="route") as lab:
        found = await lab.route(text)
    if as_json:
        emit(found)
        return OK
    if found.notice is not None:
        console.print(found.notice, style="bold red", markup=False)
    console.print(sentence(found), markup=False)
    grid = Table(Column("nearest", no_wrap=True), Column("confidence", justify="right"))
    for match in found.nearest:
        grid.add_row(match.domain, f"{match.confidence:.0%}")
    console.print(grid)
    return OK


def sentence(found: TextRoute) -> str:
    """Return what was found in a sentence, or the question that the router asks."""
    if found.primary_domain is None:
        return f"not sure. {found.question}"
    further = f", and {', '.join(found.multi_domains)}" if found.multi_domains else ""
    return (
        f"{found.primary_domain} ({found.domain_category}){further}: {found.domain_confidence:.0%} sure, "
        f"{found.routing_strategy.replace('_', ' ')}, voice {found.voice}"
    )
