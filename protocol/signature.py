"""A signature in words: who vouches for a request that costs money, and exactly what was signed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Signature(BaseModel):
    """An Ed25519 signature (RFC 8032) of what `signed_text` returns, and the key that made it."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=44, max_length=44, description="the public key, in base64")
    value: str = Field(min_length=88, max_length=88, description="the signature, in base64")


def signed_text(lab: str, method: str, *parts: str | int) -> bytes:
    """Return what is signed for a call: lab, method and parts, one a line.

    The lab's name is in it so that a word said to one lab means nothing to another, the method's so that it means nothing
    else in the same one. What the parts are is said at each message: `TrainRequest`, `ApproveRequest`, `CapRequest`,
    `UnfreezeRequest`. No part holds a line break (ids, digests, numbers, times), so no two lists of parts give the same text.

    Raises:
        ValueError: a part holds a line break.
    """
    lines = [f"meetara/v1/{lab}", method, *map(str, parts)]
    if any("\n" in line for line in lines):
        raise ValueError("what is signed has one part a line")
    return "\n".join(lines).encode()


def submission(lab: str, job: str, digest: str) -> bytes:
    """Return what is signed for `train.submit`: the job's id and the request's `protocol.job.digest`."""
    return signed_text(lab, "train.submit", job, digest)
