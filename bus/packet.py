"""PUBLISH packets of MQTT 5: their properties written, and the whole packet read.

Paho does both for every kind of packet from tables that it builds anew for each one; half of a busy agent's time went
there. Tested against paho's own reading and writing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

PAYLOAD_FORMAT, EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION = 0x01, 0x02, 0x03, 0x08, 0x09
SUBSCRIPTION, TOPIC_ALIAS, USER = 0x0B, 0x23, 0x26
"""Identifiers of the properties that a PUBLISH packet may have (MQTT 5, 2.2.2.2)."""
LENGTH, SECONDS = struct.Struct("!H"), struct.Struct("!BI")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came in; `mid` 0 needs no acknowledgement. `expiry`: seconds that it has left, counted by the broker."""

    topic: str
    payload: bytes
    properties: Sequence[tuple[str, str]]
    response_topic: str | None
    correlation: bytes | None
    retain: bool
    duplicate: bool
    qos: int
    mid: int
    expiry: int | None = None


class PublishProperties:
    """Properties of a PUBLISH packet in the form that paho asks for."""

    __slots__ = ("_packed",)

    def __init__(
        self, *, user: Sequence[tuple[str, str]] = (), response_topic: str | None = None,
        correlation: bytes | None = None, expiry: int | None = None, content_type: str | None = None,
    ) -> None:  # fmt: skip
        parts: list[bytes] = []
        if expiry is not None:
            parts.append(SECONDS.pack(EXPIRY, expiry))
        if content_type is not None:
            parts += (b"\x03", _text(content_type))
        if response_topic is not None:
            parts += (b"\x08", _text(response_topic))
        if correlation is not None:
            parts += (b"\x09", LENGTH.pack(len(correlation)), correlation)
        for name, value in user:
            parts += (b"\x26", _text(name), _text(value))
        packed = b"".join(parts)
        self._packed = _variable(len(packed)) + packed

    def pack(self) -> bytes:
        """Return the properties with their length before them."""
        return self._packed


def read_publish(header: int, packet: bytes | bytearray) -> Incoming:
    """Read a PUBLISH packet.

    Args:
        header: the packet's first byte.
        packet: what follows the remaining length.

    Raises:
        ValueError: it is malformed.
    """
    try:
        return _read(header, bytes(packet))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not a PUBLISH packet: {error}") from error


def _read(header: int, packet: bytes) -> Incoming:
    qos = header >> 1 & 3
    topic, at = _read_text(packet, 0)
    mid = 0
    if qos:
        (mid,) = LENGTH.unpack_from(packet, at)
        at += 2
    length, at = _read_variable(packet, at)
    end = at + length
    if end > len(packet):
        raise ValueError("the properties are longer than the packet")
    user: list[tuple[str, str]] = []
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry: int | None = None
    while at < end:
        kind = packet[at]
        at += 1
        if kind == USER:
            name, at = _read_text(packet, at)
            value, at = _read_text(packet, at)
            user.append((name, value))
        elif kind == RESPONSE_TOPIC:
            response_topic, at = _read_text(packet, at)
        elif kind == CORRELATION:
            correlation, at = _read_bytes(packet, at)
        elif kind == EXPIRY:
            (expiry,) = struct.unpack_from("!I", packet, at)
            at += 4
        elif kind == CONTENT_TYPE:
            _, at = _read_bytes(packet, at)
        elif kind == SUBSCRIPTION:
            _, at = _read_variable(packet, at)
        elif kind in (PAYLOAD_FORMAT, TOPIC_ALIAS):
            at += 1 if kind == PAYLOAD_FORMAT else 2
        else:
            raise ValueError(f"a PUBLISH packet has no property {kind:#x}")
    if at != end:
        raise ValueError("the properties do not end where they say")
    return Incoming(
        topic, packet[end:], tuple(user), response_topic, correlation, bool(header & 1), bool(header & 8), qos, mid, expiry
    )


def _text(value: str) -> bytes:
    encoded = value.encode()
    return LENGTH.pack(len(encoded)) + encoded


def _variable(number: int) -> bytes:
    encoded = bytearray()
    while True:
        number, digit = number >> 7, number & 0x7F
        encoded.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def _read_bytes(packet: bytes, at: int) -> tuple[bytes, int]:
    (length,) = LENGTH.unpack_from(packet, at)
    end = at + 2 + length
    if end > len(packet):
        raise ValueError("a field is longer than the packet")
    return packet[at + 2 : end], end


def _read_text(packet: bytes, at: int) -> tuple[str, int]:
    encoded, end = _read_bytes(packet, at)
    return encoded.decode(), end


def _read_variable(packet: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for _ in range(4):
        digit = packet[at]
        at += 1
        number |= (digit & 0x7F) << shift
        if digit < 0x80:
            return number, at
        shift += 7
    raise ValueError("a length of more than four bytes")
