"""Errors as the wire carries them: a JSON-RPC code, a sentence for people, and what the caller may do about it."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Code(IntEnum):
    """Error codes: JSON-RPC 2.0's own, then the lab's in the range that JSON-RPC leaves to servers."""

    PARSE = -32700
    INVALID_REQUEST = -32600
    UNKNOWN_METHOD = -32601
    INVALID_PARAMS = -32602
    INTERNAL = -32603
    TOO_LARGE = -32001
    CONFLICT = -32002
    NOT_FOUND = -32003
    UNKNOWN_DOMAIN = -32004
    BAD_DATA = -32005
    BUDGET = -32006
    FENCED = -32007
    EXPIRED = -32008
    BUSY = -32009
    NO_CAPACITY = -32010
    GATE_MISSED = -32011
    CANCELLED = -32012
    NO_SPACE = -32013
    TOOLCHAIN = -32014
    UNREACHABLE = -32015
    CONFIGURATION = -32016


class Retry(StrEnum):
    """What the caller may do: the same call again never helps, helps later, or helps on another worker."""

    NEVER = "never"
    LATER = "later"
    OTHER_WORKER = "other-worker"


class ErrorBody(BaseModel):
    """The `error` member of a JSON-RPC reply.

    `data` holds `retry`, and where known `field`, `file`, `line`, `advice`, `retry_after` (seconds) and sums.
    """

    model_config = ConfigDict(extra="forbid")

    code: int
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class LabError(Exception):
    """An error that a person or another agent gets to see.

    Args:
        code: the error's class.
        message: what was wrong and where, one sentence.
        advice: how to mend it, one sentence; shown after the message.
        retry: whether the same call can succeed later.
        data: further facts for programs (field, file, line, sums in micro-dollars ...).
    """

    def __init__(
        self, code: Code, message: str, *, advice: str = "", retry: Retry = Retry.NEVER, **data: Any
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice
        self.retry = retry
        self.data = data

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()

    def __reduce__(self) -> tuple[Callable[[ErrorBody], LabError], tuple[ErrorBody]]:
        """Travel between processes of a pool; exceptions with keywords do not by themselves."""
        return LabError.from_body, (self.body(),)

    def body(self) -> ErrorBody:
        """Return the error as the wire carries it; the message includes the advice."""
        data = {"retry": self.retry.value, **self.data}
        if self.advice:
            data["advice"] = self.advice
        return ErrorBody(code=int(self.code), message=str(self), data=data)

    @classmethod
    def from_body(cls, body: ErrorBody) -> LabError:
        """Rebuild the exception at the caller; unknown codes become INTERNAL."""
        data = dict(body.data)
        advice = str(data.pop("advice", ""))
        told = data.pop("retry", None)
        retry = next((known for known in Retry if known.value == told), Retry.NEVER)
        code = Code(body.code) if body.code in Code._value2member_map_ else Code.INTERNAL
        message = body.message.removesuffix(advice).strip() if advice else body.message
        error = cls(code, message, advice=advice, retry=retry)
        error.data = data  # not as keywords: a peer may name its facts as the parameters are named
        return error

    @classmethod
    def from_validation(cls, error: ValidationError, what: str) -> LabError:
        """Turn pydantic's findings into one error that names the first wrong field and lists all of them."""
        fields = {".".join(str(part) for part in item["loc"]) or "(body)": item["msg"] for item in error.errors()}
        listed = "; ".join(f"{name}: {reason}" for name, reason in fields.items())
        return cls(
            Code.INVALID_PARAMS, f"{what}: {listed}.", advice="Correct the named field.", field=next(iter(fields))
        )
