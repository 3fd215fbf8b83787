"""What may stand in a log. Everything is refused that is not known to be harmless.

A log is copied into bug reports and kept for months; what people say to a model, the rows that they train on, passwords
and addresses have no place in it. So a line holds an event's fixed words, facts whose names stand in FACTS, and the places of
errors instead of their sentences, which quote what was wrong. The sentence goes to the one who asked.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any

from protocol.errors import Code, LabError

HIDDEN = "‹redacted›"

IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.:+-]{0,127}")
"""Ids, names of fields, methods, machines: no spaces, so no sentences."""
TOPIC = re.compile(r"[\w$.:+#/-]{1,256}")
ANYTHING = re.compile(r".*", re.DOTALL)

FACTS: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys((
        "action", "agent", "agents", "answer_to", "by", "code", "domain", "error", "field", "instance", "job", "key", "level", "logger",
        "machine", "message", "method", "name", "part", "period", "program", "provider", "rental", "report", "role", "signer", "stage",
        "state", "tag", "tier", "timer", "trace",
    ), IDENTIFIER),
    "topic": TOPIC,
    **dict.fromkeys(("timestamp", "event", "broker", "listen", "file", "line", "reason", "note", "fault"), ANYTHING),
}  # fmt: skip
"""Name of a fact to the form that its text must have. Numbers, truth values and None may stand under any name.
`event` is written in the program; `file` is a place; `reason` comes from `of_error` or from the operating system."""

QUOTABLE = frozenset({
    Code.BUDGET, Code.FENCED, Code.EXPIRED, Code.BUSY, Code.NO_CAPACITY, Code.NO_SPACE, Code.UNREACHABLE,
    Code.CONFIGURATION, Code.TOO_LARGE,
})  # fmt: skip
"""Errors whose sentences speak of machines and money. Those of all others may quote what somebody has sent."""
HARMLESS = (OSError, sqlite3.Error, TimeoutError, MemoryError)
"""Exceptions whose texts come from the operating system or SQLite; other exceptions may quote anything (`KeyError`, pydantic)."""

PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@'\"]+@"), rf"\g<scheme>{HIDDEN}@"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), HIDDEN),
    (re.compile(
        r"(?i)(?P<name>[\w-]*(?:password|passwd|secret|token|api[_-]?key|authorization|signature|credential)[\w-]*[\"']?\s*[=:]\s*"
        r"[\"']?(?:bearer\s+)?)[^\s\"',;&}]+"
    ), rf"\g<name>{HIDDEN}"),
    (re.compile(r"\bmtw1\.[\w-]{8,}"), HIDDEN),
    (re.compile(r"(?i)\bbearer\s+[\w.~+/=-]{8,}"), f"Bearer {HIDDEN}"),
    (re.compile(r"(?P<name>input_value=).*?(?=, input_type=|$)", re.DOTALL), rf"\g<name>{HIDDEN}"),
)  # fmt: skip
"""Credentials in addresses, e-mail addresses, secrets by name, tokens of workers, bearer tokens, what pydantic quotes."""
QUOTED = re.compile(r"(?<!\w)(?P<q>['\"]).*?(?P=q)(?!\w)", re.DOTALL)


def clean(text: str, *, quotes: bool = True) -> str:
    """Return a sentence without credentials and e-mail addresses, and (`quotes`) without what stands in quotation marks."""
    for pattern, instead in PATTERNS:
        text = pattern.sub(instead, text)
    return QUOTED.sub(HIDDEN, text) if quotes else text


def redact(logger: object, name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: keep what may stand in a log, hide the rest. Its place is right before the renderer."""
    for fact, value in list(line.items()):
        if fact == "exception" and isinstance(value, dict):  # made by `of_exception` below
            continue
        if value is None or isinstance(value, bool | int | float):
            continue
        form = FACTS.get(fact)
        if isinstance(value, list) and form is IDENTIFIER:
            line[fact] = [_checked(item, form) for item in value]
        else:
            line[fact] = _checked(value, form)
    return line


def _checked(value: object, form: re.Pattern[str] | None) -> str:
    return clean(value) if isinstance(value, str) and form is not None and form.fullmatch(value) else HIDDEN


def of_error(error: LabError) -> dict[str, object]:
    """Return what a log may tell of an error: its code and place, and its sentence where that quotes nobody."""
    facts: dict[str, object] = {"code": error.code.name}
    for name in ("field", "file", "line"):
        value = error.data.get(name)
        if isinstance(value, int):
            facts[name] = value
        elif isinstance(value, str):
            facts[name] = clean(value) if FACTS[name].fullmatch(value) else HIDDEN
    if error.code in QUOTABLE:
        facts["reason"] = clean(error.message)
    return facts


def of_exception(logger: object, name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: turn `exc_info` into types and places. Neither texts nor local variables are kept."""
    info = line.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        line["exception"] = described(error, error.__traceback__)
    return line


def described(error: BaseException, where: TracebackType | None) -> dict[str, Any]:
    """Return an exception as its type, the places it passed, what caused it, and its text where that is harmless."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(where)]
    found: dict[str, Any] = {"type": type(error).__name__, "frames": frames}
    if isinstance(error, LabError):
        found |= of_error(error)
    elif isinstance(error, HARMLESS):
        found["text"] = clean(str(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and cause is not error:
        found["cause"] = described(cause, cause.__traceback__)
    return found
