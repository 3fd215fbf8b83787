"""A conversation with one GGUF in a process of its own: JSON lines in, JSON lines out.

    python -m agents.gguf_factory.talk FILE.gguf [--base BASE.gguf] [--home HOME]

FILE is a model, or an adapter; the base of an adapter is BASE, or what the home has of it. It answers {"ready": …} with what
the file is, then each line {"messages": [{"role", "content"}, …], "max_tokens", "temperature", "seed"} with any number of
{"text": …} and one {"end": …} or {"error": …}. A line {"adapter": FILE} loads another adapter into the living process, one
with null takes it away; the answer is {"adapter": …} with load_ms, or {"error": …}, and then all is as before. SIGINT ends
the answer, the end of stdin ends the process.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from agents.gguf_factory import adapter, lifeline, llama, shared_base
from agents.gguf_factory.generation import Sampling, stream
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.llama import BASE_SHA256, Model
from agents.gguf_factory.template import render
from agents.gguf_factory.work import private_stdout
from protocol import Code, LabError

CONTEXT_LIMIT = 4096
"""Tokens of context at most, though the file may allow more: its keys and values are memory of a small machine."""


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Question(BaseModel):
    """What is to be answered: the whole conversation, and how to draw the answer."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Turn] = Field(min_length=1)
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=5)
    seed: int = Field(default=0, ge=0, lt=2**32)


class Switch(BaseModel):
    """Answer with this adapter from now on; None: with the base alone."""

    model_config = ConfigDict(extra="forbid")

    adapter: Path | None


def switch(model: Model, file: Path | None) -> dict[str, Any]:
    """Load an adapter and use it, or take the one in use away; on an error the one in use stays.

    Returns:
        file, bytes, and load_ms: milliseconds until the model answers with it.

    Raises:
        LabError: as `Model.load_adapter`.
    """
    start = time.perf_counter()
    old = model.adapter
    model.use(None if file is None else model.load_adapter(file))
    load_ms = round((time.perf_counter() - start) * 1000, 3)
    if old is not None:
        model.drop(old)
    return {"file": None if file is None else str(file), "bytes": file and file.stat().st_size, "load_ms": load_ms}


def base_of(file: Path, home: Path | None) -> Path | None:
    """Return the base that an adapter's file is to be loaded on; None: the file is no adapter.

    Raises:
        LabError: NOT_FOUND, the home has none of it; as `read_header` does.
    """
    header = read_header(file)
    if not adapter.is_adapter(header):
        return None
    values = header.values
    content, quantisation = values.get(BASE_SHA256), values.get(adapter.BASE_QUANTISATION)
    found = shared_base.find(home, str(content), str(quantisation)) if home and content else None
    if found is None:
        name = values.get(adapter.BASE_NAME)
        raise LabError(
            Code.NOT_FOUND, f"{file} is an adapter, and its base {name or '(not named in the file)'} is not "
            f"{f'in {home}' if home else 'given'}.",
            advice="Name the base's .gguf file with --base, or use the home in which the adapter was trained.",
            file=str(file), base=name, base_sha256=content,
        )  # fmt: skip
    return found


def fit(model: Model, template: str, turns: Sequence[Turn], room: int) -> tuple[list[int], int]:
    """Render a conversation as ids; while it is longer than `room` tokens its oldest turns after the system's are left out.

    Returns:
        The ids, and how many turns were left out.

    Raises:
        LabError: INVALID_PARAMS, even the last turn alone is too long, or the template refuses the conversation.
    """
    head = [turn for turn in turns[:1] if turn.role == "system"]
    rest = list(turns[len(head) :])
    dropped = 0
    while True:
        try:
            text = render(template, model, [turn.model_dump() for turn in head + rest], prompt=True)
        except TemplateError as error:
            raise LabError(
                Code.INVALID_PARAMS, f"the model's chat template refuses the conversation: {error}.",
                advice="Leave out what it refuses, such as a system turn.", field="messages",
            ) from error  # fmt: skip
        ids = model.tokenize(text)
        if len(ids) <= room:
            return ids, dropped
        if len(rest) <= 1:
            raise LabError(
                Code.INVALID_PARAMS, f"the text has {len(ids)} tokens, more than the {room} that fit beside an answer.",
                advice="Write a shorter one.", field="messages",
            )  # fmt: skip
        cut = 2 if len(rest) > 2 else 1  # a question goes with its answer
        rest, dropped = rest[cut:], dropped + cut


def answer(model: Model, template: str, question: Question, out: TextIO, stop: list[bool]) -> None:
    """Draw one answer and write it piece by piece; a character of several tokens is written once it is whole."""
    stop.clear()
    start = time.perf_counter()
    room = model.n_ctx - min(question.max_tokens, model.n_ctx // 4)
    ids, dropped = fit(model, template, question.messages, room)
    read = time.perf_counter()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    drawn = stream(
        model, ids, sampling=Sampling(temperature=question.temperature), seed=question.seed, max_tokens=question.max_tokens,
        stop=lambda: bool(stop),
    )  # fmt: skip
    tokens = 0
    first: float | None = None
    while True:
        try:
            token = next(drawn)
        except StopIteration as over:
            ended = bool(over.value)
            break
        tokens += 1
        first = first or time.perf_counter()
        text = decoder.decode(model.piece(token))
        if text:
            write(out, {"text": text})
    rest = decoder.decode(b"", final=True)
    if rest:
        write(out, {"text": rest})
    seconds = time.perf_counter() - read
    how = "stop" if ended else "interrupted" if stop else "length"
    write(out, {"end": {
        "finish_reason": how, "prompt_tokens": len(ids), "tokens": tokens, "dropped_turns": dropped,
        "first_token_ms": None if first is None else round((first - start) * 1000, 1),
        "tokens_per_s": round(tokens / seconds, 1) if tokens and seconds > 0 else None,
    }})  # fmt: skip


def write(out: TextIO, line: dict[str, Any]) -> None:
    """Write one JSON line at once."""
    out.write(json.dumps(line, ensure_ascii=False) + "\n")
    out.flush()


def serve(file: Path, questions: TextIO, out: TextIO, *, base: Path | None = None, home: Path | None = None) -> int:
    """Load the file and answer until the questions end.

    Args:
        file: a model, or an adapter.
        questions, out: lines of JSON.
        base: the model that an adapter belongs to; None: looked for in `home`.
        home: MEETARA_HOME.
    """
    stop: list[bool] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    try:
        base = base or base_of(file, home)
        whole = base or file
        threads = llama.threads_for(whole, os.cpu_count() or 1) if whole.is_file() else 1
        with llama.load(whole, n_ctx=min(context_length(whole), CONTEXT_LIMIT), threads=threads) as model:
            lora = switch(model, file) if base else None
            template = model.conversation_template()
            ready = {"file": str(whole), "bytes": whole.stat().st_size, "context": model.n_ctx, "adapter": lora}
            write(out, {"ready": ready})
            for line in questions:
                try:
                    asked = LINE.validate_json(line)
                    if isinstance(asked, Switch):
                        write(out, {"adapter": switch(model, asked.adapter)})
                    else:
                        answer(model, template, asked, out, stop)
                except ValidationError as error:
                    wrong = LabError.from_validation(error, "the question is wrong")
                    write(out, {"error": wrong.body().model_dump(mode="json")})
                except LabError as error:
                    write(out, {"error": error.body().model_dump(mode="json")})
    except LabError as error:
        write(out, {"error": error.body().model_dump(mode="json")})
        return 1
    return 0


LINE: TypeAdapter[Question | Switch] = TypeAdapter(
    Annotated[
        Annotated[Question, Tag("question")] | Annotated[Switch, Tag("switch")],
        Discriminator(lambda value: "switch" if isinstance(value, dict) and "adapter" in value else "question"),
    ]
)
"""What a line may say."""


def context_length(file: Path) -> int:
    """Return how many tokens of context the file says that it was trained for.

    Raises:
        LabError: as `read_header` does.
    """
    values = read_header(file).values
    length = values.get(f"{values.get('general.architecture')}.context_length")
    return length if isinstance(length, int) and length > 0 else CONTEXT_LIMIT


def main(arguments: list[str]) -> int:
    out = private_stdout()
    lifeline.die_with_parent()
    parser = argparse.ArgumentParser(prog="talk", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--home", type=Path)
    asked = parser.parse_args(arguments)
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    return serve(asked.file, sys.stdin, out, base=asked.base, home=asked.home)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
