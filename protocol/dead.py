"""Dead letters: what could not be handled, kept with its reason."""

from __future__ import annotations

import base64
from datetime import datetime

from pydantic import BaseModel


class DeadLetter(BaseModel):
    """A message that was given up. `original` is the body as text, or base64 where it is not UTF-8."""

    topic: str
    original: str
    base64: bool = False
    reason: str
    attempts: int
    at: datetime

    @classmethod
    def of(cls, topic: str, payload: bytes, reason: str, attempts: int, at: datetime) -> DeadLetter:
        """Wrap a payload, at most its first 64 KiB."""
        payload = payload[: 64 * 1024]
        try:
            return cls(topic=topic, original=payload.decode(), reason=reason, attempts=attempts, at=at)
        except UnicodeDecodeError:
            text = base64.b64encode(payload).decode()
            return cls(topic=topic, original=text, base64=True, reason=reason, attempts=attempts, at=at)
