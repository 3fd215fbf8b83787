"""Talk to finished models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meetara import complete
from meetara.commands.options import where
from meetara.door import Home, Host, Json, LabName, Port, console, run

app = typer.Typer()


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DOMAIN|FILE", help="A .gguf file (a model or an adapter), or a domain or job whose model lies in the home.",
            autocompletion=complete.models,
        ),
    ],
    ask: Annotated[
        str | None, typer.Option("--ask", help="Answer this one question and end.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told before the conversation.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=5, help="0: always the likeliest.")] = 0.7,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The model of an adapter's file; default: the home's.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The same seed draws the same answer.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Talk with a finished model; without a terminal each line of stdin is a question."""
    from meetara.screens import chat as screen

    conversation = screen.Conversation(system=system, max_tokens=max_tokens, temperature=temperature, seed=seed)
    talk = screen.chat({"home": home}, model, conversation, ask=ask, as_json=as_json, console=console(), base=base)
    raise typer.Exit(run(talk))


@app.command()
def say(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; - reads it from stdin.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a WAV file instead of playing.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="The voice, e.g. meditative; default: chosen.", show_default=False)
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain", help="The domain; default: found by the text.", show_default=False, autocompletion=complete.domains
        ),
    ] = None,
    emotion: Annotated[
        str | None, typer.Option("--emotion", help="The feeling; default: found by the text.", show_default=False)
    ] = None,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Say a text in the voice that fits its domain and feeling; plays it, or writes a WAV file."""
    from meetara.screens import say as screen

    saying = screen.Saying(text, domain, profile, emotion)
    place = where(home, host, port, lab)
    raise typer.Exit(run(screen.say(place, saying, out=out, as_json=as_json, console=console())))
