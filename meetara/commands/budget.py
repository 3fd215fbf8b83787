"""Where the money stands, and the budgets: `meetara budget …`."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara.commands.options import where
from meetara.door import Home, Host, Json, LabName, Port, console, run

app = typer.Typer(invoke_without_command=True, help="What was spent, what is reserved, what is left; budgets are set here.")


@app.callback()
def show_budget(
    context: typer.Context,
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write every entry of the ledger; - is stdout.", show_default=False),
    ] = None,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what was spent, what is reserved and what is left; or set a budget."""
    from meetara.screens import budget as screen

    if context.invoked_subcommand is not None:
        return
    place = where(home, host, port, lab)
    if csv is not None:
        if as_json:
            raise typer.BadParameter("give --csv or --json")
        raise typer.Exit(run(screen.export(place, csv, console=console())))
    raise typer.Exit(run(screen.budget(place, as_json=as_json, console=console())))


@app.command("set", context_settings={"ignore_unknown_options": True})
def set_budget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="daily_usd, weekly_usd or monthly_usd.")],
    usd: Annotated[str, typer.Argument(metavar="USD", help="The new budget, in US dollars.")],
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Set a budget: lower at once, higher when it is signed or approved."""
    from meetara.screens.budget import change as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), name, usd, as_json=as_json, console=console())))


@app.command()
def unfreeze(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="Whose bill is explained.")],
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Rent again from a provider whose bill was far from its price; signed by the home's key."""
    from meetara.screens.budget import unfreeze as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), provider, as_json=as_json, console=console())))
