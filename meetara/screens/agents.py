"""`meetara agents`: who is here, with which slots and which machine."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab


async def agents(where: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """Show all agents that have announced themselves."""
    async with Lab(**where, name="agents") as lab:
        found = await lab.agents()
    if as_json:
        listed = [
            {"agent": one.id, "role": one.role, "online": one.online, "presence": one.presence, "card": one.card}
            for one in found
        ]
        emit({"agents": listed})
        return OK
    if not found:
        console.print("No agents have announced themselves on this broker. Start them with `meetara up`.", markup=False)
        return OK
    grid = Table(Column("agent", no_wrap=True), "presence", "version", "slots", "cores", "memory", "disk free", "GPU")
    for one in found:
        card, device = one.card, one.card.device if one.card else None
        grid.add_row(
            escape(one.id if card is None or card.provider == "local" else f"{one.id} ({card.provider})"),
            "[green]online[/green]" if one.online else "[red]offline[/red]",
            card.version if card else "", str(card.slots) if card and card.slots else "",
            str(device.cores) if device else "", show.size(device.memory_bytes) if device else "",
            show.size(device.disk_free_bytes) if device else "",
            (f"{device.gpu} {show.size(device.gpu_memory_bytes)}" if device.gpu else "none") if device else "",
        )  # fmt: skip
    console.print(grid)
    return OK
