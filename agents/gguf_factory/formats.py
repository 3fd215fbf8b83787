"""The forms in which people keep questions and answers, and the one form the factory works with: chat messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Messages = list[dict[str, str]]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
"""Names seen in public data sets, and the role they mean."""

ACCEPTED = (
    "messages (role, content)", "conversations (from, value)", "instruction, input, output",
    "prompt, completion", "question, answer",
)  # fmt: skip


class RowError(Exception):
    """A row that cannot be used; `column` is the field to look at."""

    def __init__(self, reason: str, column: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.column = column


def messages(record: object) -> Messages:
    """Return a row's chat messages: an optional system turn, then questions and answers, an answer last.

    Raises:
        RowError: the row is of an unknown form, lacks text, or has no answer.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"is {_kind(record)}, not an object with named fields")
    for names, read in FORMS:
        if all(name in record for name in names):
            return _checked(read(record))
    found = ", ".join(str(name) for name in list(record)[:8]) or "none"
    raise RowError(f"has an unknown form; its fields are: {found}")


def _turns(name: str, role_name: str, text_name: str) -> Callable[[Mapping[str, Any]], Messages]:
    def read(record: Mapping[str, Any]) -> Messages:
        turns = record[name]
        if not isinstance(turns, list) or not turns:
            raise RowError(f"has no turns in {name} (found {_kind(turns)})", name)
        result: Messages = []
        for position, turn in enumerate(turns):
            where = f"{name}[{position}]"
            if not isinstance(turn, Mapping):
                raise RowError(f"{where} is {_kind(turn)}, not an object", where)
            role = turn.get(role_name)
            known = ROLES.get(role.lower()) if isinstance(role, str) else None
            if known is None:
                raise RowError(
                    f"{where}.{role_name} is {role!r}; known are system, user, assistant", f"{where}.{role_name}"
                )
            result.append({"role": known, "content": _text(turn.get(text_name), f"{where}.{text_name}")})
        return result

    return read


def _alpaca(record: Mapping[str, Any]) -> Messages:
    question = _text(record["instruction"], "instruction")
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise RowError(f"field input is {_kind(extra)}, not text", "input")
    if extra and extra.strip():
        question = f"{question}\n\n{_text(extra, 'input')}"
    return _pair(question, _text(record["output"], "output"))


def _two(question: str, answer: str) -> Callable[[Mapping[str, Any]], Messages]:
    return lambda record: _pair(_text(record[question], question), _text(record[answer], answer))


def _pair(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


FORMS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Messages]], ...] = (
    (("messages",), _turns("messages", "role", "content")),
    (("conversations",), _turns("conversations", "from", "value")),
    (("instruction", "output"), _alpaca),
    (("prompt", "completion"), _two("prompt", "completion")),
    (("question", "answer"), _two("question", "answer")),
)
"""First match wins; a row may have further fields, which are ignored."""


def _text(value: object, where: str) -> str:
    """Return stripped text with Unix line ends; a list of text parts (OpenAI's form) is joined."""
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise RowError(f"field {where} is {_kind(value)}, not text", where)
    text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise RowError(f"has no text in field {where}", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"field {where} holds half a character (a lone surrogate)", where) from error
    return text


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


def _kind(value: object) -> str:
    names = {type(None): "missing", bool: "a truth value", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object"}  # fmt: skip
    return names.get(type(value), type(value).__name__)
