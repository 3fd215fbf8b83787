"""Keys that sign, and keys that the lab trusts: `meetara keys …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meetara.door import Home, Json, LabName

app = typer.Typer(no_args_is_help=True, help="Who may spend: keys that sign, and keys that the lab trusts.")

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")]


@app.command("make")
def make_key(
    name: Annotated[str, typer.Option("--name", help="What the lab calls it.")] = "owner", home: Home = None, as_json: Json = False
) -> None:
    """Make this home's key; its lab trusts it, and what is sent from this home is signed."""
    from meetara.screens.keys import make as screen

    raise typer.Exit(screen({"home": home}, name, as_json=as_json))


@app.command("add")
def add_key(
    name: KeyName,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The public key, as `meetara keys make` has shown it.")],
    home: Home = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Let the lab trust a key that was made elsewhere."""
    from meetara.screens.keys import add as screen

    raise typer.Exit(screen({"home": home}, name, key, as_json=as_json))


@app.command("remove")
def remove_key(name: KeyName, home: Home = None, as_json: Json = False) -> None:
    """Let the lab trust a key no more; what it has signed goes on."""
    from meetara.screens.keys import remove as screen

    raise typer.Exit(screen({"home": home}, name, as_json=as_json))


@app.command("list")
def list_keys(home: Home = None, as_json: Json = False) -> None:
    """List the keys that the lab trusts, and the home's own."""
    from meetara.screens.keys import list_keys as screen

    raise typer.Exit(screen({"home": home}, as_json=as_json))


@app.command("sign")
def sign_request(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A request as JSON.")],
    id: Annotated[str | None, typer.Option("--id", help="The job's id; default: the request's, or a new one.", show_default=False)] = None,
    home: Home = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Print a request with its signature, to be published with any MQTT client."""
    from meetara.screens.keys import sign as screen

    raise typer.Exit(screen({"home": home, "lab": lab}, file, id))
