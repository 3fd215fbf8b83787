"""A conversation with one GGUF in a process of its own: JSON lines in, JSON lines out.

    python -m agents.gguf_factory.talk FILE.gguf

It answers {"ready": …} with what the file is, then each line {"messages": [{"role", "content"}, …], "max_tokens",
"temperature", "seed"} with any number of {"text": …} and one {"end": …} or {"error": …}. SIGINT ends the answer, the
end of stdin ends the process.
"""

from __future__ import annotations

import codecs
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.gguf_factory import lifeline, llama
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.llama import Model, Sampling
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
    drawn = model.stream(
        ids, sampling=Sampling(temperature=question.temperature), seed=question.seed, max_tokens=question.max_tokens,
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


def serve(file: Path, questions: TextIO, out: TextIO) -> int:
    """Load the file and answer until the questions end."""
    stop: list[bool] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    try:
        threads = llama.threads_for(file, os.cpu_count() or 1) if file.is_file() else 1
        with llama.load(file, n_ctx=min(context_length(file), CONTEXT_LIMIT), threads=threads) as model:
            template = model.chat_template
            if template is None:
                raise LabError(
                    Code.BAD_DATA, f"{file} has no chat template: it is not a chat model.",
                    advice="Name a model that was tuned on conversations.", file=str(file),
                )  # fmt: skip
            write(out, {"ready": {"file": str(file), "bytes": file.stat().st_size, "context": model.n_ctx}})
            for line in questions:
                try:
                    answer(model, template, Question.model_validate_json(line), out, stop)
                except ValidationError as error:
                    wrong = LabError.from_validation(error, "the question is wrong")
                    write(out, {"error": wrong.body().model_dump(mode="json")})
                except LabError as error:
                    write(out, {"error": error.body().model_dump(mode="json")})
    except LabError as error:
        write(out, {"error": error.body().model_dump(mode="json")})
        return 1
    return 0


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
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=out)
        return 2
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    return serve(Path(arguments[0]), sys.stdin, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
