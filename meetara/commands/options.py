"""Options that commands of several groups take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meetara import complete

JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id (see `meetara jobs`).", autocompletion=complete.jobs)
]  # fmt: skip
Base = Annotated[str | None, typer.Option("--base", help="Base model: a folder or hub name.", show_default=False)]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="Override a parameter; may be repeated.", show_default=False,
        autocompletion=complete.parameters,
    ),
]  # fmt: skip


def where(home: Path | None, host: str | None, port: int | None, lab: str | None) -> dict[str, Any]:
    """Return where a lab is, as the screens take it."""
    return {"home": home, "host": host, "port": port, "lab": lab}
