"""Identifiers: time-ordered message ids and the rule that makes a job's id from a request's."""

from __future__ import annotations

import re
import secrets
import time
import uuid

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A job's id is a topic level and a folder name: no separators, no wildcards, at most 64 characters."""


def uuid7(milliseconds: int | None = None, random: int | None = None) -> str:
    """Return a UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    stamp = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    bits = secrets.randbits(74) if random is None else random
    value = (stamp & (2**48 - 1)) << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (2**62 - 1)
    return str(uuid.UUID(int=value))


def valid_job_id(text: str) -> bool:
    """Tell whether a request's id can serve as a job's id."""
    return JOB_ID.fullmatch(text) is not None and ".." not in text
