"""`meetara offers`: what machines are for sale, and why some of them are never chosen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab
from protocol.machine import Listing, ListingPage

MORE = (
    "Only this lab's own machines can be had. Others: set LAMBDA_API_KEY, RUNPOD_API_KEY or VAST_API_KEY, or"
    " GPUHUNT_CATALOG_DIR to see a catalogue (docs/money.md)."
)


async def offers(where: dict[str, Any], conditions: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """Ask what is for sale and show it, cheapest first."""
    async with Lab(**where, name="offers") as lab:
        page = await lab.offers(**conditions)
    if as_json:
        emit(page)
        return OK
    show_page(page, console, now=datetime.now(UTC), reasons=bool(conditions.get("all")))
    return OK


def show_page(page: ListingPage, console: Console, *, now: datetime, reasons: bool) -> None:
    """Show listings, one line for those that differ in their region alone, and what is missing from them."""
    grid = Table(
        "provider", "GPU", Column("memory", justify="right"), Column("per hour", justify="right"), "region", "kind", "seen",
        Column("machine", overflow="fold"),
    )  # fmt: skip
    if reasons:
        grid.add_column("why not", overflow="fold")
    for _, group in groupby(page.listings, key=_alike):
        items = list(group)
        why = [Text(items[0].rejected or "")] if reasons else []
        grid.add_row(*_row(items, now), *why, style="dim" if items[0].rejected else None)
    console.print(grid if page.listings else "nothing that is for sale matches.")
    if page.more:
        console.print(f"{page.more} more that cost more: narrow the question.", markup=False)
    if page.rejected and not reasons:
        console.print(f"{page.rejected} that match are never chosen; --all shows them and why.", markup=False)
    for provider, reason in sorted(page.stale.items()):
        console.print(f"{provider}: {reason}", style="yellow", markup=False)
    if all(item.provider == "local" or item.rejected for item in page.listings):
        console.print(MORE, markup=False)


def _alike(item: Listing) -> tuple[Any, ...]:
    return (
        item.provider, item.gpu, item.gpus, item.gpu_memory_bytes, item.price_micros_per_hour, item.spot, item.secure,
        item.source, item.rejected, item.seen_at, item.provider == "local" and item.id,
    )  # fmt: skip


def _row(items: Sequence[Listing], now: datetime) -> list[Text]:
    first = items[0]
    gpu = f"{first.gpus} x {first.gpu}" if first.gpus > 1 else first.gpu or f"none, {first.cores} cores"
    memory = first.gpu_memory_bytes or (0 if first.gpu else first.memory_bytes)
    kind = [word for word, is_so in (("spot", first.spot), ("a stranger's", not first.secure)) if is_so]
    dated = first.seen_at.timestamp() > 0
    cells = (
        first.provider, gpu, f"{memory / 2**30:.0f} GiB" if memory else "not known",
        "not known" if first.price_micros_per_hour is None else show.micros(first.price_micros_per_hour),
        first.region if len(items) == 1 else f"{len(items)} regions", ", ".join(kind),
        show.ago(max(0.0, (now - first.seen_at).total_seconds())) if dated else "never", first.id if len(items) == 1 else "",
    )  # fmt: skip
    return [Text(cell) for cell in cells]
