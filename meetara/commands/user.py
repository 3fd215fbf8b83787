"""Logins of people from elsewhere: `meetara user …`."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara.door import Home, Json

app = typer.Typer(no_args_is_help=True, help="Logins of people from elsewhere.")

UserName = Annotated[str, typer.Argument(metavar="NAME", help="The login.")]


@app.command("add")
def add_user(name: UserName, home: Home = None, as_json: Json = False) -> None:
    """Make a login and show its password, once."""
    from meetara.screens.access import add_user as screen

    raise typer.Exit(screen({"home": home}, name, as_json=as_json))


@app.command("remove")
def remove_user(name: UserName, home: Home = None, as_json: Json = False) -> None:
    """Forget a login and cut its connections."""
    from meetara.screens.access import remove_user as screen

    raise typer.Exit(screen({"home": home}, name, as_json=as_json))


@app.command("list")
def list_users(home: Home = None, as_json: Json = False) -> None:
    """List the logins."""
    from meetara.screens.access import list_users as screen

    raise typer.Exit(screen({"home": home}, as_json=as_json))
