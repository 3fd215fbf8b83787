"""The command line. Each command is one screen in `meetara.screens`; their options are in `meetara.commands`."""

from __future__ import annotations

import typer

from meetara.commands import budget, data, gguf, job, keys, lab, machine, models, request, talk, user
from meetara.door import Door

app = typer.Typer(
    cls=Door, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Train small language models: one request becomes a quantised model that is proven good.",
)  # fmt: skip
for commands in (lab, request, job, talk, gguf):
    app.add_typer(commands.app)
for name, group in (
    ("budget", budget), ("models", models), ("machine", machine), ("user", user), ("keys", keys), ("data", data),
):  # fmt: skip
    app.add_typer(group.app, name=name)


if __name__ == "__main__":
    app()
