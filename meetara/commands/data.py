"""Data sets, before anything is trained on them: `meetara data …`."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara import complete
from meetara.commands.options import Base, Parameters
from meetara.door import Home, Json, console, run

app = typer.Typer(no_args_is_help=True, help="Data sets, before anything is trained on them.")


@app.command("check")
def check_data(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Rows: a path, a URI, or a hub's owner/name.", show_default=False,
            autocompletion=complete.data_sets,
        ),
    ],
    eval_data: Annotated[
        str | None,
        typer.Option(
            "--eval-data", help="Rows to evaluate on; default: a split.", show_default=False, autocompletion=complete.data_sets
        ),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option("--tier", help="Whose base and parameters count.", show_default=False, autocompletion=complete.tiers),
    ] = None,
    base: Base = None,
    param: Parameters = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 when there are warnings.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Count, measure and look for what is suspicious; exit code 2 when it cannot be trained on."""
    from meetara.screens import data as screen
    from meetara.screens.train import parameters

    options = {"eval_data": eval_data, "tier": tier, "base": base, "parameters": parameters(param or [])}
    shown = screen.check({"home": home}, file, options, strict=strict, as_json=as_json, console=console())
    raise typer.Exit(run(shown))
