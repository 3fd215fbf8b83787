"""Logs of an agent: structlog on stderr, as JSON or coloured lines, with agent, job and trace bound."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import structlog

from bus.redact import of_exception, redact
from protocol.errors import Code, LabError


class Forgiving:
    """A stream whose full disk is nobody's problem: a line that cannot be written must not stop what it tells of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose what is buffered."""
        with contextlib.suppress(OSError):
            self._stream.flush()


Form = Literal["json", "console"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def wanted(environment: Mapping[str, str] = os.environ) -> tuple[Form, int]:
    """Return the form (MEETARA_LOG) and the least level (MEETARA_LOG_LEVEL) that a process's logs shall have.

    Raises:
        LabError: CONFIGURATION, one of them is neither empty nor known.
    """
    form = environment.get("MEETARA_LOG") or "json"
    level = (environment.get("MEETARA_LOG_LEVEL") or "info").lower()
    for name, value, known in (("MEETARA_LOG", form, ("json", "console")), ("MEETARA_LOG_LEVEL", level, tuple(LEVELS))):
        if value not in known:
            raise LabError(
                Code.CONFIGURATION, f"{name} is {value!r}.", advice=f"It can be {', '.join(known)}.", field=name
            )
    return ("console" if form == "console" else "json"), LEVELS[level]


def configure(agent: str, form: Form = "json", level: int = logging.INFO) -> None:
    """Set up logging for this process, Python's own included. `form` console is for a person at a terminal."""
    stream = cast(TextIO, Forgiving(sys.stderr))
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if form == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    checked: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        of_exception,
        redact,
        *([_in_lines] if form == "console" else []),
    ]
    structlog.configure(
        processors=[*checked, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(agent=agent)
    # what libraries and asyncio say goes the same way; it may quote anything, so it is cleaned like a reason
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *checked],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    sys.excepthook = _last_words


def _last_words(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
        return
    structlog.get_logger().critical("the process ends", exc_info=(kind, error, where))


def _in_lines(logger: object, name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write an exception as lines for a person: the type, then the places, then the cause."""
    error = line.get("exception")
    if isinstance(error, dict):
        parts = []
        while error is not None:
            facts = [str(value) for fact, value in error.items() if fact not in ("frames", "cause")]
            parts.append(" ".join(facts) + "".join(f"\n  {frame}" for frame in error["frames"]))
            error = error.get("cause")
        line["exception"] = "\ncaused by ".join(parts)
    return line
