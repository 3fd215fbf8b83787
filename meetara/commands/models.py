"""Finished models: `meetara models …`."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara import complete
from meetara.commands.options import JobId, where
from meetara.door import Home, Host, Json, LabName, Port, console, run

app = typer.Typer(no_args_is_help=True, help="Finished models on this machine, and their cards.")


@app.command("list")
def list_models(home: Home = None, as_json: Json = False) -> None:
    """List the finished models of a home, the newest first."""
    from meetara.screens.models import list_models as screen

    raise typer.Exit(screen({"home": home}, as_json=as_json, console=console()))


@app.command("fetch")
def fetch_model(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Bring the finished model of a job that was trained elsewhere into this home."""
    from meetara.screens.models import fetch_model as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json)))


@app.command("show")
def show_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A domain, a job, or a .gguf file of the store.", autocompletion=complete.models
        ),
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show a model's card; --json gives everything that is known of it."""
    from meetara.screens.models import show_model as screen

    raise typer.Exit(screen({"home": home}, model, as_json=as_json, console=console()))
