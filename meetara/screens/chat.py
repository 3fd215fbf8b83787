"""`meetara chat`: talk with a finished model; the answer appears as it is drawn."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from configs import Settings
from meetara import show
from meetara.door import OK, emit
from meetara.models import find
from meetara.talk import Talk, talking
from protocol import LabError

HELP = (
    "/reset forgets the conversation, /adapter DOMAIN|FILE answers with another adapter of the same base, /adapter alone with\n"
    "the base; /quit (or Ctrl-D) ends it, Ctrl-C stops an answer."
)


@dataclass
class Conversation:
    """The turns so far, and how answers are drawn. `seed` None: another one for each answer."""

    system: str | None = None
    max_tokens: int = 512
    temperature: float = 0.7
    seed: int | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return what the model is to read."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns, {"role": "user", "content": question}]

    async def ask(self, talk: Talk, question: str) -> AsyncIterator[str | dict[str, Any]]:
        """Yield an answer's pieces and its end; an answer that came to any words becomes part of the conversation."""
        said: list[str] = []
        pieces = talk.answer(
            self.messages(question), max_tokens=self.max_tokens, temperature=self.temperature,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
        )  # fmt: skip
        async for piece in pieces:
            if isinstance(piece, str):
                said.append(piece)
            elif said:
                self.turns += [
                    {"role": "user", "content": question}, {"role": "assistant", "content": "".join(said)},
                ]  # fmt: skip
            yield piece


async def chat(
    where: dict[str, Any], name: str, conversation: Conversation, *, ask: str | None, as_json: bool, console: Console,
    base: Path | None = None,
) -> int:  # fmt: skip
    """Answer one question (`ask`), the lines of stdin, or a person at a terminal; `base` is the model of an adapter's file."""
    home = Settings.read(home=where.get("home")).home
    file = find(name, home).absolute()
    async with talking(file, base=base, home=home) as talk:
        if ask is not None:
            await once(talk, conversation, ask, as_json=as_json, console=console)
            return OK
        person = sys.stdin.isatty() and not as_json
        if person:
            greet(talk, console)
        for question in lines(person):
            words = question.strip()
            if person and words in ("/quit", "/bye", "/exit"):
                break
            if person and words == "/reset":
                conversation.turns.clear()
                console.print("forgotten", style="dim")
            elif person and words.split()[0:1] == ["/adapter"]:
                try:
                    wanted = words.partition(" ")[2].strip()
                    loaded = await talk.switch(find(wanted, home).absolute() if wanted else None)
                    console.print(switched(loaded), style="dim", markup=False)
                except LabError as error:
                    console.print(Text(f"error: {error}", style="red"))
            elif person and words.startswith("/"):
                console.print(HELP, style="dim", markup=False)
            elif words:
                try:
                    await once(talk, conversation, words, as_json=as_json, console=console)
                except LabError as error:
                    if not person:
                        raise
                    console.print(Text(f"error: {error}", style="red"))
    return OK


async def once(talk: Talk, conversation: Conversation, question: str, *, as_json: bool, console: Console) -> None:
    """Ask one question and show the answer while it comes."""
    said: list[str] = []
    end: dict[str, Any] = {}
    with _interruptible(talk):
        async for piece in conversation.ask(talk, question):
            if isinstance(piece, dict):
                end = piece
            else:
                said.append(piece)
                if not as_json:
                    console.out(piece, end="")
                    console.file.flush()
    if as_json:
        emit({"question": question, "answer": "".join(said), **end})
        return
    console.out("")
    if console.is_terminal:
        console.print(Text(told(end), style="dim"))


def told(end: dict[str, Any]) -> str:
    """Say how an answer ended and how fast it came."""
    speed = f"{end['tokens']} tokens, {show.number(end['tokens_per_s'], ',.0f', 'tokens/s')}"
    parts = {"stop": speed, "length": f"{speed}, cut at the limit", "interrupted": f"{speed}, stopped"}
    dropped = end.get("dropped_turns")
    return parts[end["finish_reason"]] + (f"; {dropped} old turns no longer fit" if dropped else "")


def switched(adapter: dict[str, Any]) -> str:
    """Say which adapter answers now, and how long its loading took."""
    name = "the base alone" if adapter["file"] is None else Path(adapter["file"]).name
    return f"{name}  {show.number(adapter['load_ms'], '.1f', 'ms')}"


def greet(talk: Talk, console: Console) -> None:
    """Say which file it is."""
    ready = talk.ready
    name = Path(ready["file"]).name
    console.print(Text.assemble((name, "bold"), f"  {show.size(ready['bytes'])}, {ready['context']} tokens of context"))
    if adapter := ready.get("adapter"):
        told = f"  {show.size(adapter['bytes'])}, loaded in {show.number(adapter['load_ms'], '.1f', 'ms')}"
        console.print(Text.assemble("with ", (Path(adapter["file"]).name, "bold"), told))
    console.print(HELP, style="dim", markup=False)


def lines(person: bool) -> Iterator[str]:
    """Yield lines of stdin, with a prompt and editing for a person; Ctrl-D, or Ctrl-C at the prompt, ends them.

    It blocks the event loop, which has nothing to do while a person thinks.
    """
    if person:
        import readline  # noqa: F401 - gives `input` editing and a history
    while True:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's own would not end `input`
        try:
            line = input("› " if person else "")
        except (EOFError, KeyboardInterrupt):
            if person:
                print()
            return
        finally:
            signal.signal(signal.SIGINT, before)
        yield line


@contextmanager
def _interruptible(talk: Talk) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, talk.interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
