"""The bad network does what it says: cuts one direction, repeats, throttles, and otherwise changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from bus import BrokerAddress
from bus.session import Session
from tests.conftest import PlainBroker
from tests.faults.frames import Frames, may_be_repeated, repeated
from tests.faults.proxy import Direction, Proxy, Rule

PUBLISH_QOS1 = bytes([0x32, 7, 0, 1, ord("t"), 0, 5, 0, ord("x")])
PUBLISH_QOS0 = bytes([0x30, 5, 0, 1, ord("t"), 0, ord("x")])
PING = bytes([0xC0, 0])


def test_a_stream_is_cut_into_packets_wherever_it_is_broken() -> None:
    long = bytes([0x32, 0xC8, 0x01]) + bytes(200)
    stream = PUBLISH_QOS1 + PING + long + PUBLISH_QOS0
    for size in (1, 2, 3, 7, len(stream)):
        frames = Frames()
        found = [packet for start in range(0, len(stream), size) for packet in frames.feed(stream[start : start + size])]
        assert found == [PUBLISH_QOS1, PING, long, PUBLISH_QOS0]


def test_what_is_not_mqtt_is_told() -> None:
    with pytest.raises(ValueError, match="not MQTT"):
        Frames().feed(b"GET \xff\xff\xff\xff\xff / HTTP/1.1"[3:])


def test_only_publications_with_an_acknowledgement_are_repeated_and_marked() -> None:
    assert may_be_repeated(PUBLISH_QOS1) and not may_be_repeated(PUBLISH_QOS0) and not may_be_repeated(PING)
    again = repeated(PUBLISH_QOS1)
    assert again[0] == 0x3A and again[1:] == PUBLISH_QOS1[1:]


@asynccontextmanager
async def linked(broker: PlainBroker) -> AsyncIterator[tuple[Proxy, Session]]:
    """A session through a proxy, subscribed to what the test publishes."""
    async with (
        Proxy(broker.address.port, Random(1)) as proxy,
        Session.connect(BrokerAddress("127.0.0.1", proxy.listening), "far", durable=False) as session,
    ):
        await session.subscribe("t")
        yield proxy, session


async def take(session: Session, count: int) -> list[tuple[bytes, bool]]:
    found = []
    async with asyncio.timeout(20):
        async for incoming in session:
            session.ack(incoming)
            found.append((incoming.payload, incoming.duplicate))
            if len(found) == count:
                break
    return found


async def test_a_good_network_changes_nothing(broker: PlainBroker) -> None:
    async with linked(broker) as (_, session):
        for number in range(20):
            await session.publish("t", b"%d" % number)
        assert await take(session, 20) == [(b"%d" % number, False) for number in range(20)]


async def test_every_publication_is_repeated_each_way(broker: PlainBroker) -> None:
    async with linked(broker) as (proxy, session):
        proxy.rules[Direction.UP] = Rule(repeat=1.0)
        proxy.rules[Direction.DOWN] = Rule(repeat=1.0)
        await session.publish("t", b"x")
        assert await take(session, 4) == [(b"x", False), (b"x", True)] * 2, "the broker takes the repetition for new"
        assert (proxy.count["repeated agent to broker"], proxy.count["repeated broker to agent"]) == (1, 2)


async def test_a_cut_loses_one_direction_and_a_new_connection_is_whole_when_it_is_healed(broker: PlainBroker) -> None:
    async with Proxy(broker.address.port, Random(1)) as proxy:
        near = BrokerAddress("127.0.0.1", proxy.listening)
        async with Session.connect(broker.address, "near", durable=False) as heard:
            await heard.subscribe("t")
            reader, writer = await asyncio.open_connection(near.host, near.port)
            proxy.rules[Direction.DOWN] = Rule(cut=True)
            connect = bytes([0x10, 14, 0, 4]) + b"MQTT" + bytes([5, 2, 0, 60, 0, 0, 1]) + b"c"
            writer.write(connect + PUBLISH_QOS1)
            assert await take(heard, 1) == [(b"x", False)], "the way up is whole"
            assert proxy.count["lost broker to agent"] > 0 and not reader._buffer  # type: ignore[attr-defined]
            writer.close()
        proxy.heal()
        async with Session.connect(near, "far", durable=False) as session:
            await session.subscribe("t")
            await session.publish("t", b"whole")
            assert await take(session, 1) == [(b"whole", False)]


async def test_a_slow_line_delays_and_loses_nothing(broker: PlainBroker) -> None:
    async with linked(broker) as (proxy, session):
        proxy.rules[Direction.DOWN] = Rule(bytes_per_second=50_000, delay=0.01)
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(session.publish("t", bytes(1000)) for _ in range(10)))
        assert len(await take(session, 10)) == 10
        assert asyncio.get_running_loop().time() - start >= 0.2, "10 kB at 50 kB/s"


async def test_a_reset_ends_the_connection_for_both(broker: PlainBroker) -> None:
    with pytest.raises(Exception, match="Disconnected"):
        async with linked(broker) as (proxy, session):
            proxy.reset()
            await take(session, 1)
