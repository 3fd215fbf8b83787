"""PUBLISH packets are what paho makes and reads."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bus.packet import Incoming, PublishProperties, read_publish

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
FIELDS = st.fixed_dictionaries({
    "user": st.lists(st.tuples(TEXT, TEXT), max_size=9).map(tuple),
    "response_topic": st.none() | TEXT, "correlation": st.none() | st.binary(max_size=300),
    "expiry": st.none() | st.integers(1, 2**32 - 1), "content_type": st.none() | TEXT,
})  # fmt: skip


def paho(fields: dict[str, Any]) -> Properties:
    known = Properties(PacketTypes.PUBLISH)
    for name, value in (
        ("UserProperty", list(fields["user"]) or None), ("ResponseTopic", fields["response_topic"]),
        ("CorrelationData", fields["correlation"]), ("MessageExpiryInterval", fields["expiry"]),
        ("ContentType", fields["content_type"]),
    ):  # fmt: skip
        if value is not None:
            setattr(known, name, value)
    return known


def body(topic: str, mid: int | None, properties: bytes, payload: bytes) -> bytes:
    name = topic.encode()
    return len(name).to_bytes(2) + name + (b"" if mid is None else mid.to_bytes(2)) + properties + payload


@given(FIELDS)
def test_paho_reads_what_is_written(fields: dict[str, Any]) -> None:
    read = Properties(PacketTypes.PUBLISH)
    packed = PublishProperties(**fields).pack()
    _, length = read.unpack(packed)
    assert length == len(packed) and read.json() == paho(fields).json()


@given(FIELDS, TEXT, st.binary(max_size=300), st.none() | st.integers(1, 65535), st.booleans(), st.booleans())
def test_what_paho_writes_is_read(
    fields: dict[str, Any], topic: str, payload: bytes, mid: int | None, retain: bool, duplicate: bool
) -> None:
    header = 0x30 | (0 if mid is None else 2) | retain | duplicate << 3
    assert read_publish(header, body(topic, mid, paho(fields).pack(), payload)) == Incoming(
        topic, payload, fields["user"], fields["response_topic"], fields["correlation"], retain, duplicate,
        0 if mid is None else 1, mid or 0, fields["expiry"],
    )  # fmt: skip


def test_properties_that_nobody_needs_are_passed_over() -> None:
    known = Properties(PacketTypes.PUBLISH)
    known.PayloadFormatIndicator, known.TopicAlias, known.SubscriptionIdentifier = 1, 7, 300
    known.UserProperty = ("a", "b")
    assert read_publish(0x30, body("t", None, known.pack(), b"x")).properties == (("a", "b"),)


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_read_but_never_crashes(packet: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_publish(0x32, packet)


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_packet_that_is_cut_within_its_properties_is_refused(cut: int) -> None:
    properties = PublishProperties(user=(("name", "value"),), response_topic="reply").pack()
    whole = body("t", 5, properties, b"")
    if cut < len(whole):
        with pytest.raises(ValueError):
            read_publish(0x32, whole[:-cut])
