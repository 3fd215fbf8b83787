"""Machines that people lend to the lab: `meetara machine …`."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara.door import Home, Json

app = typer.Typer(no_args_is_help=True, help="Machines that people lend to this lab: an own PC, a notebook on Colab.")

MachineName = Annotated[str, typer.Argument(metavar="NAME", help="The machine, e.g. gamer-pc.")]


@app.command("add")
def add_machine(name: MachineName, home: Home = None, as_json: Json = False) -> None:
    """Let a machine in and show its token, once; it costs the lab nothing."""
    from meetara.screens.machines import add as screen

    raise typer.Exit(screen({"home": home}, name, as_json=as_json))


@app.command("remove")
def remove_machine(name: MachineName, home: Home = None, as_json: Json = False) -> None:
    """Let a machine in no more; a job that runs there goes on elsewhere."""
    from meetara.screens.machines import remove as screen

    raise typer.Exit(screen({"home": home}, name, as_json=as_json))


@app.command("list")
def list_machines(home: Home = None, as_json: Json = False) -> None:
    """List the machines; `meetara agents` tells which are there."""
    from meetara.screens.machines import listed as screen

    raise typer.Exit(screen({"home": home}, as_json=as_json))
