"""The forms in which people keep questions and answers, and the one form the factory works with: chat messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
"""Names seen in public data sets, and the role they mean."""

TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython"})
TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id")
SYSTEM_FIELDS = ("system", "system_prompt")
"""Beside a row's turns or its question: what the model is told before (LLaMA-Factory, OpenOrca)."""

ACCEPTED = (
    "messages (role, content)", "conversations (from, value)", "instruction, input, output",
    "prompt, completion", "question, answer",
)  # fmt: skip


class RowError(Exception):
    """A row that cannot be used; `column` is the field to look at, `advice` how to mend this kind of row."""

    def __init__(self, reason: str, column: str | None = None, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.column = column
        self.advice = advice


@dataclass(frozen=True)
class Form:
    """A row with all of `fields` has this form; `optional` fields mean something too. Others are ignored."""

    name: str
    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Messages]
    optional: tuple[str, ...] = SYSTEM_FIELDS


def messages(record: object) -> tuple[str, Messages]:
    """Return the name of a row's form and its chat messages: maybe a system turn, then questions and answers in turn.

    Raises:
        RowError: the row is of an unknown form, lacks text, or has no answer.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"is {kind(record)}, not an object with named fields")
    form = known(record)
    if form is not None:
        return form.name, _checked(_with_system(form.read(record), record))
    for fields, what, advice in OTHERS:
        if all(name in record for name in fields):
            raise RowError(what, fields[0], advice)
    found = ", ".join(str(name) for name in list(record)[:8]) or "none"
    raise RowError(f"has an unknown form; its fields are: {found}")


def known(fields: Iterable[Any]) -> Form | None:
    """Return the form that these field names make, or None."""
    names = set(fields)
    return next((form for form in FORMS if names.issuperset(form.fields)), None)


def _turns(name: str) -> Callable[[Mapping[str, Any]], Messages]:
    def read(record: Mapping[str, Any]) -> Messages:
        return _talk(record[name], name)

    return read


def _talk(turns: Any, name: str) -> Messages:
    if isinstance(turns, str):  # a csv keeps a list as the text of its JSON
        try:
            turns = json.loads(turns)
        except ValueError as error:
            raise RowError(
                f"field {name} is text that is not JSON ({error})", name,
                "Write the turns as JSON in that cell, or keep the data set as jsonl.",
            ) from error  # fmt: skip
    if not isinstance(turns, list) or not turns:
        raise RowError(f"has no turns in {name} (found {kind(turns)})", name)
    return [turn for position, each in enumerate(turns) if (turn := _turn(each, f"{name}[{position}]")) is not None]


def _turn(turn: Any, where: str) -> dict[str, str] | None:
    """Return one turn; None for a system turn without text, which many exports write into every row."""
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind(turn)}, not an object", where)
    role_name = next((name for name in ("role", "from", "speaker") if turn.get(name) is not None), "role")
    text_name = next((name for name in ("content", "value", "text") if turn.get(name) is not None), "content")
    role = turn.get(role_name)
    tool = next((name for name in TOOL_FIELDS if turn.get(name)), None)
    if tool or (isinstance(role, str) and role.lower() in TOOL_ROLES):
        raise RowError(
            f"{where} belongs to a call of a tool ({tool or f'{role_name} {role}'}), which is not trained",
            f"{where}.{tool or role_name}", "Leave out conversations with calls of tools, or write them as plain text.",
        )  # fmt: skip
    known_role = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known_role is None:
        raise RowError(f"{where}.{role_name} is {role!r}; known are system, user, assistant", f"{where}.{role_name}")
    if turn.get("weight") == 0:
        raise RowError(
            f"{where}.weight is 0, but single answers cannot be left unlearned", f"{where}.weight",
            "Remove the weight, or the answer and what follows.",
        )  # fmt: skip
    value = turn.get(text_name)
    if known_role == "system" and isinstance(value, str) and not value.strip():
        return None
    return {"role": known_role, "content": _text(value, f"{where}.{text_name}")}


def _alpaca(extra: str, answer: str) -> Callable[[Mapping[str, Any]], Messages]:
    def read(record: Mapping[str, Any]) -> Messages:
        question = _text(record["instruction"], "instruction")
        more = record.get(extra)
        if more is not None and not isinstance(more, str):
            raise RowError(f"field {extra} is {kind(more)}, not text", extra)
        if more and more.strip():
            question = f"{question}\n\n{_text(more, extra)}"
        return [*_history(record), *_pair(question, _text(record[answer], answer))]

    return read


def _history(record: Mapping[str, Any]) -> Messages:
    """Return the earlier exchanges of LLaMA-Factory's form of alpaca: pairs of question and answer."""
    turns: Messages = []
    for position, pair in enumerate(record.get("history") or []):
        where = f"history[{position}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"{where} is not a pair of question and answer", where)
        turns += _pair(_text(pair[0], f"{where}[0]"), _text(pair[1], f"{where}[1]"))
    return turns


def _two(question: str, answer: str) -> Callable[[Mapping[str, Any]], Messages]:
    def read(record: Mapping[str, Any]) -> Messages:
        first, second = record[question], record[answer]
        if isinstance(first, list) and isinstance(second, list) and not _parts(first):  # TRL's conversational form
            return [*_talk(first, question), *_talk(second, answer)]
        return _pair(_text(first, question), _text(second, answer))

    return read


def _pair(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


FORMS: tuple[Form, ...] = (
    Form("chat messages", ("messages",), _turns("messages")),
    Form("sharegpt", ("conversations",), _turns("conversations")),
    Form("sharegpt", ("conversation",), _turns("conversation")),
    Form("alpaca", ("instruction", "output"), _alpaca("input", "output"), ("input", "history", *SYSTEM_FIELDS)),
    Form("alpaca", ("instruction", "response"), _alpaca("context", "response"), ("context", *SYSTEM_FIELDS)),  # Dolly
    Form("prompt and completion", ("prompt", "completion"), _two("prompt", "completion")),
    Form("prompt and completion", ("prompt", "response"), _two("prompt", "response")),
    Form("question and answer", ("question", "answer"), _two("question", "answer")),
    Form("question and answer", ("question", "response"), _two("question", "response")),  # OpenOrca
)
"""First match wins; a row may have further fields, which are ignored."""

OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("chosen", "rejected"), "is a preference pair (chosen, rejected), not a question with its answer",
     "Write the question and the chosen answer as prompt and completion."),
    (("text",), "has only running text (field text), without a question and an answer",
     "Make questions and answers of it: {\"question\": …, \"answer\": …}. A text that holds a rendered chat "
     "must be taken apart into messages (role, content)."),
    (("input", "output"), "has the fields input and output but no instruction",
     "Name them question and answer, or add the instruction."),
    (("input_ids",), "is tokenised already", "Give the text: each base has a tokenizer of its own."),
)  # fmt: skip
"""Forms that are known but cannot be trained on: their fields, what they are, and what to do."""


def _text(value: object, where: str) -> str:
    """Return stripped text with Unix line ends; a list of text parts (OpenAI's form) is joined."""
    if isinstance(value, list) and _parts(value):
        for position, part in enumerate(value):
            if part.get("type") not in ("text", "input_text", "output_text"):
                raise RowError(
                    f"{where}[{position}] is a part of type {part.get('type')}; only text is trained",
                    f"{where}[{position}]", "Leave out conversations with pictures, sound or files.",
                )  # fmt: skip
        value = "".join(str(part.get("text") or "") for part in value)
    if not isinstance(value, str):
        raise RowError(f"field {where} is {kind(value)}, not text", where)
    text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise RowError(f"has no text in field {where}", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"field {where} holds half a character (a lone surrogate)", where) from error
    return text


def _parts(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(part, Mapping) and "type" in part and "role" not in part for part in value)


def _with_system(turns: Messages, record: Mapping[str, Any]) -> Messages:
    told = next((record[name] for name in SYSTEM_FIELDS if isinstance(record.get(name), str)), "")
    if not told.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": _text(told, "system")}, *turns]


def _checked(turns: Messages) -> Messages:
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise RowError("has a system turn that is not the first")
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]  # a question after the last answer teaches nothing
    if not turns:
        raise RowError("has no assistant turn, so there is nothing to learn")
    talk = turns[1:] if turns[0]["role"] == "system" else turns
    for position, turn in enumerate(talk):
        if turn["role"] != ("user", "assistant")[position % 2]:
            raise RowError(f"turn {position + 1} is by {turn['role']}; user and assistant must alternate, user first")
    return turns


def kind(value: object) -> str:
    """Name a value's type for people."""
    names = {type(None): "missing", bool: "a truth value", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object", bytes: "bytes"}  # fmt: skip
    return names.get(type(value), type(value).__name__)
