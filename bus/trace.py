"""The trace of a request (W3C Trace Context) through calls, answers, timers, background tasks and processes.

It lives in a context variable, so whatever a handler starts has it; logs show its id beside the job's.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import structlog

from protocol.ids import valid_job_id

VARIABLE = "TRACEPARENT"
"""The environment variable by which a process is told its trace, as OpenTelemetry's tools name it."""

_FORM = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def start() -> str:
    """Return a traceparent for a request that came without one."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def valid(traceparent: str | None) -> bool:
    """Whether a traceparent that somebody sent has the standard's form; anything else must not reach a log."""
    return traceparent is not None and _FORM.fullmatch(traceparent) is not None


def current() -> str | None:
    """Return the traceparent of what is being done."""
    return _current.get()


def inherited(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the traceparent that this process was started with."""
    told = environment.get(VARIABLE)
    return told if valid(told) else None


@contextmanager
def bound(traceparent: str | None, *, job: object = None, **facts: str) -> Iterator[None]:
    """Do something under a trace; its id, the job's (where it can be one) and other facts are in every line logged."""
    if traceparent is not None and valid(traceparent):
        facts["trace"] = traceparent.split("-")[1]
    if isinstance(job, str) and valid_job_id(job):
        facts["job"] = job
    token = _current.set(traceparent)
    try:
        with structlog.contextvars.bound_contextvars(**facts):
            yield
    finally:
        _current.reset(token)


def carried() -> dict[str, str]:
    """Return what a timer must remember to go on under the same trace: `bound(carried["traceparent"], job=…)`."""
    job = structlog.contextvars.get_contextvars().get("job")
    traceparent = _current.get()
    return {
        **({"traceparent": traceparent} if traceparent is not None else {}),
        **({"job": job} if isinstance(job, str) else {}),
    }  # fmt: skip
