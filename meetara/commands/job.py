"""Follow jobs and decide about them."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara import complete
from meetara.commands.options import JobId, where
from meetara.door import Home, Host, Json, LabName, Port, console, run

app = typer.Typer()


@app.command()
def watch(
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="One job; default: all.", show_default=False, autocompletion=complete.jobs),
    ] = None,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Watch one job until it ends, or the whole lab; --json gives one line per change."""
    from meetara.screens.watch import watch as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def jobs(
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """List all jobs."""
    from meetara.screens.jobs import jobs as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), as_json=as_json, console=console())))


@app.command()
def job(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Show one job: its state, numbers, gates and events."""
    from meetara.screens.jobs import job as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def cancel(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """End a job; what it has finished is kept."""
    from meetara.screens.jobs import cancel as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def approve(
    job: Annotated[
        str,
        typer.Argument(metavar="JOB|budget", help="A job that waits, or the raised budgets.", autocompletion=complete.jobs),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Let a job spend what was quoted, or a budget be raised; signed by the home's key."""
    from meetara.screens.approve import approve as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, yes=yes, as_json=as_json, console=console())))


@app.command()
def refuse(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """End a job that waits for approval; nothing of it was started."""
    from meetara.screens.approve import refuse as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))
