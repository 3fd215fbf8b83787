"""The envelope: a JSON-RPC 2.0 body, CloudEvents attributes and traceparent as MQTT user properties.

A body without `jsonrpc` is taken as the params of the topic's method, so a person with nothing but mosquitto_pub
succeeds. Attributes that properties lack are read from `params._meta`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocol.errors import Code, ErrorBody, LabError
from protocol.ids import uuid7

MAX_BYTES = 256 * 1024  # a request is a reference to data, never the data; bounds what one message costs an agent
MAX_DEPTH = 32  # deeper JSON is an attack on the parser, no message of the lab nests deeper than 8


class MCPMessage(BaseModel):
    """One message between agents.

    `type` is the method of a call (`train.submit`), `data` its params. `recipient` None means whoever serves the
    method. `priority` 1 is normal, 2 high, 3 critical. `deadline` None means that the message does not expire.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(default_factory=uuid7, min_length=1, max_length=128)
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    sender: str = "anonymous"
    recipient: str | None = None
    type: str
    data: dict[str, Any] = Field(default_factory=dict)
    priority: int = Field(default=1, ge=1, le=3)
    deadline: datetime | None = None
    traceparent: str | None = None
    generated_id: bool = Field(default=False, exclude=True)

    @field_validator("timestamp", "deadline")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    def body(self) -> bytes:
        """Return the JSON-RPC request."""
        request = {"jsonrpc": "2.0", "id": self.id, "method": self.type, "params": self.data}
        return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()

    def properties(self) -> list[tuple[str, str]]:
        """Return the MQTT user properties."""
        pairs = [
            ("specversion", "1.0"),
            ("id", self.id),
            ("source", self.sender),
            ("type", self.type),
            ("time", self.timestamp.isoformat()),
            ("priority", str(self.priority)),
        ]
        if self.recipient:
            pairs.append(("recipient", self.recipient))
        if self.deadline:
            pairs.append(("deadline", self.deadline.isoformat()))
        if self.traceparent:
            pairs.append(("traceparent", self.traceparent))
        return pairs


class Reply(BaseModel):
    """The answer to a call: exactly one of `result` and `error`."""

    model_config = ConfigDict(extra="forbid")

    id: str
    result: dict[str, Any] | None = None
    error: ErrorBody | None = None

    def body(self) -> bytes:
        """Return the JSON-RPC response."""
        part: dict[str, Any] = (
            {"error": self.error.model_dump(mode="json")} if self.error else {"result": self.result or {}}
        )
        return json.dumps({"jsonrpc": "2.0", "id": self.id, **part}, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, payload: bytes) -> Reply:
        """Read a response.

        Raises:
            LabError: the payload is not a JSON-RPC response.
        """
        body = parse_json(payload)
        try:
            return cls(id=str(body["id"]), result=body.get("result"), error=body.get("error"))
        except (KeyError, ValidationError) as error:
            raise LabError(Code.INVALID_REQUEST, f"not a JSON-RPC response: {error}") from error


def parse_json(payload: bytes) -> dict[str, Any]:
    """Check size, UTF-8, depth and form of a payload, in this order, and return the object in it.

    What comes back can be written as JSON again: no NaN, no infinite number, no half of a surrogate pair.

    Raises:
        LabError: TOO_LARGE, or PARSE with what was wrong and where.
    """
    if len(payload) > MAX_BYTES:
        raise LabError(
            Code.TOO_LARGE,
            f"the message has {len(payload)} bytes, more than the limit of {MAX_BYTES}.",
            advice="Send a reference to the data (a path or URI), not the data.",
            bytes=len(payload),
            limit=MAX_BYTES,
        )
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LabError(
            Code.PARSE, f"the message is not UTF-8: {error.reason} at byte {error.start}.", advice="Encode it as UTF-8."
        ) from error
    if text.count("{") + text.count("[") > MAX_DEPTH and depth(text) > MAX_DEPTH:  # fewer cannot nest deeper
        raise LabError(Code.PARSE, f"the JSON nests deeper than {MAX_DEPTH} levels.", advice="Send a flatter object.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise LabError(
            Code.PARSE,
            f"the message is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            advice='Send an object such as {"domain": "sleep", "dataset": "file:///data/sleep.jsonl"}.',
        ) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise LabError(Code.PARSE, f"the message is not JSON: {error}.", advice="Send a shorter number.") from error
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise LabError(
            Code.PARSE, f"the message holds a value that no JSON text in UTF-8 can hold: {error}.",
            advice="Send finite numbers and whole characters.",
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        raise LabError(
            Code.INVALID_REQUEST,
            f"the message is a JSON {type(value).__name__}, not an object.",
            advice='Send an object such as {"domain": "sleep", "dataset": "file:///data/sleep.jsonl"}.',
        )
    return value


def depth(text: str) -> int:
    """Return how deep brackets nest in a JSON text, without parsing it (strings are skipped)."""
    level = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            level += 1
            deepest = max(deepest, level)
        elif character in "]}":
            level -= 1
    return deepest


def decode_call(method: str, payload: bytes, properties: Iterable[tuple[str, str]] = ()) -> MCPMessage:
    """Read a call that came in on `method`'s topic.

    Args:
        method: the method that the topic names.
        payload: the body: a JSON-RPC request, or the params alone.
        properties: MQTT user properties; the first of a name counts.

    Raises:
        LabError: what was wrong with the body; `data.id` holds the request's id where it could be read.
    """
    body = parse_json(payload)
    request_id = body.get("id")
    try:
        return _envelope(method, body, properties)
    except LabError as error:
        if isinstance(request_id, str | int) and not isinstance(request_id, bool):
            error.data.setdefault("id", str(request_id))
        raise


def _envelope(method: str, body: dict[str, Any], properties: Iterable[tuple[str, str]]) -> MCPMessage:
    attributes: dict[str, str] = {}
    for name, value in properties:
        attributes.setdefault(name, value)
    if "jsonrpc" in body:
        if body["jsonrpc"] != "2.0":
            raise LabError(Code.INVALID_REQUEST, f"jsonrpc is {body['jsonrpc']!r}.", advice='Send "2.0".', field="jsonrpc")
        if body.get("method", method) != method:
            raise LabError(
                Code.INVALID_REQUEST,
                f"the body's method {body['method']!r} is not the topic's {method!r}.",
                advice="Publish to the method's own topic.",
                field="method",
            )
        params, request_id = body.get("params", {}), body.get("id")
    else:
        request_id = body.pop("id", None)
        params = body
    if not isinstance(params, dict):
        raise LabError(Code.INVALID_PARAMS, "params is not an object.", advice="Name each parameter.", field="params")
    meta = params.pop("_meta", {})
    if isinstance(meta, dict):
        for name, value in meta.items():
            attributes.setdefault(name, str(value))
    if request_id is not None and (isinstance(request_id, bool) or not isinstance(request_id, str | int)):
        raise LabError(
            Code.INVALID_REQUEST, "id is neither text nor an integer.", advice="Send a text as id.", field="id"
        )
    identity = request_id if request_id is not None else attributes.get("id")
    fields: dict[str, Any] = {"type": method, "data": params, "generated_id": identity is None}
    if identity is not None:
        fields["id"] = str(identity)
    for name, attribute in (
        ("timestamp", "time"), ("sender", "source"), ("recipient", "recipient"), ("priority", "priority"),
        ("deadline", "deadline"), ("traceparent", "traceparent"),
    ):  # fmt: skip
        if attribute in attributes:
            fields[name] = attributes[attribute]
    try:
        return MCPMessage.model_validate(fields)
    except ValidationError as error:
        wrong = LabError.from_validation(error, "the envelope is wrong")
        if identity is not None:
            wrong.data["id"] = str(identity)
        raise wrong from error
