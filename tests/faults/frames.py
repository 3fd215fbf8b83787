"""MQTT packets in a byte stream: where they end, which are publications, and a publication marked as sent again."""

from __future__ import annotations

PUBLISH = 3
"""The packet type in the upper half of the first byte (MQTT 5, §2.1.2)."""
DUP = 0x08
"""The flag of a PUBLISH that was sent before (§3.3.1.1)."""
LONGEST_LENGTH = 4
"""Bytes that the length of a packet may take (§1.5.5)."""


class Frames:
    """Cuts a stream into packets; feed it bytes as they come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that are whole now.

        Raises:
            ValueError: the stream is not MQTT.
        """
        self._rest += data
        packets = []
        while (end := _end(self._rest)) is not None and end <= len(self._rest):
            packets.append(self._rest[:end])
            self._rest = self._rest[end:]
        return packets


def _end(data: bytes) -> int | None:
    """Return where the first packet ends, or None when its length is not there yet."""
    length = 0
    for place in range(LONGEST_LENGTH):
        if len(data) < place + 2:
            return None
        byte = data[place + 1]
        length |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return place + 2 + length
    raise ValueError("the length of a packet takes more than four bytes: this is not MQTT")


def may_be_repeated(packet: bytes) -> bool:
    """Tell whether a packet is a PUBLISH with QoS 1, which a sender may repeat until it is acknowledged."""
    return packet[0] >> 4 == PUBLISH and packet[0] >> 1 & 0x03 == 1


def repeated(packet: bytes) -> bytes:
    """Return a PUBLISH as its sender would send it again."""
    return bytes([packet[0] | DUP]) + packet[1:]
