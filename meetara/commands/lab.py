"""Start, stop and look after a lab: the commands without a group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meetara import complete
from meetara.commands.options import where
from meetara.door import Home, Host, Json, LabName, Port, console, run

app = typer.Typer()


@app.command()
def up(
    home: Home = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Where the broker listens; 0: any free port.", show_default=False),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST[:PORT]", show_default=False,
            help="Take people from elsewhere there, over TLS and with a login (MEETARA_LISTEN).",
        ),
    ] = None,
    lab: LabName = None,
    factories: Annotated[int, typer.Option("--factories", min=1, max=64, help="How many factories to run.")] = 1,
    as_json: Json = False,
) -> None:
    """Start a lab and keep it alive until Ctrl-C; prints `ready` when requests are taken."""
    from meetara.screens.up import up as screen

    raise typer.Exit(run(screen({"home": home, "lab": lab, "listen": listen}, port=port, factories=factories, as_json=as_json)))


@app.command()
def down(
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask when jobs are running.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the lab of a home; running jobs are checkpointed and go on at the next `up`."""
    from meetara.screens.up import down as screen

    raise typer.Exit(screen({"home": home}, yes=yes, as_json=as_json))


@app.command()
def agents(
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Show which agents are here, with their slots and machines."""
    from meetara.screens.agents import agents as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), as_json=as_json, console=console())))


@app.command()
def logs(
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="[AGENT]", help="An agent's id or role, or broker; default: all.", show_default=False,
            autocompletion=complete.agents,
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", help="Only lines about this job.", show_default=False, autocompletion=complete.jobs),
    ] = None,
    trace: Annotated[str | None, typer.Option("--trace", help="Only lines of this trace.", show_default=False)] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many lines; 0: all.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what the lab's processes have written, merged by time."""
    from meetara.screens import logs as screen

    wanted = screen.Wanted(agent=agent, job=job, trace=trace)
    show = screen.logs({"home": home}, wanted, last=last, follow=follow, as_json=as_json, console=console())
    raise typer.Exit(run(show))


@app.command()
def doctor(
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Check whether this machine can run a lab; exit code 1 and advice where it cannot."""
    from meetara.screens.doctor import doctor as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), as_json=as_json, console=console())))


@app.command()
def demo(home: Home = None, as_json: Json = False) -> None:
    """Start a lab, train a model on the project's own data, show it, and take the lab down."""
    from meetara.screens.demo import demo as screen

    raise typer.Exit(run(screen(home, as_json=as_json, console=console())))


@app.command()
def certs(
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="A name or address of this machine; may be repeated.", show_default=False),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="ID", help="An agent that gets a certificate too; may be repeated.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make all anew, the authority too.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make the certificates for people from elsewhere; renew those that end soon."""
    from meetara.screens.access import certs as screen

    raise typer.Exit(screen({"home": home}, host or [], agent or [], force=force, as_json=as_json))


@app.command()
def worker(
    broker: Annotated[
        str, typer.Option("--broker", metavar="mqtts://HOST:PORT", envvar="MEETARA_BROKER", help="The lab.", show_default=False)
    ],
    token: Annotated[
        str | None,
        typer.Option("--token", help="As the lab gave it; better in MEETARA_TOKEN, which no list of processes shows.", show_default=False),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="The authority of the lab's certificate; default: the token's.", show_default=False),
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=64, help="Jobs at once; default: 1.", show_default=False)] = None,
    idle: Annotated[
        float | None,
        typer.Option("--idle", min=1, metavar="SECONDS", help="Without a job for so long it ends; default: 600.", show_default=False),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option("--wait", min=0, metavar="SECONDS", help="How long the lab may be silent at first; default: 60.", show_default=False),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Lend this machine to a lab: dial out, train what it leases to this token, end with the rental."""
    from meetara.screens.worker import worker as screen

    given = {"--ca": ca, "--slots": slots, "--idle": idle, "--wait": wait}
    options = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    raise typer.Exit(run(screen(broker, token, home=home, options=options, as_json=as_json, console=console())))


@app.command()
def gc(
    with_models: Annotated[
        bool, typer.Option("--models", help="Also offer finished models that no request would find, or that are too many.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove what no job or model needs; asks first, and without a terminal only lists."""
    from meetara.screens.gc import gc as screen

    raise typer.Exit(run(screen({"home": home}, models=with_models, yes=yes, as_json=as_json, console=console())))
