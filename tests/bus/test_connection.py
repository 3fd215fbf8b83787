"""Batches in, many publications under way, and what a lost connection does to both."""

from __future__ import annotations

import asyncio
import socket

import aiomqtt
import pytest

from bus.connection import _BufferedSocket
from bus.session import Session
from tests.conftest import PlainBroker


async def test_publications_keep_their_order_although_none_waits_for_the_one_before(broker: PlainBroker) -> None:
    async with (
        Session.connect(broker.address, "a", durable=False) as speaker,
        Session.connect(broker.address, "b", durable=False) as listener,
    ):
        await listener.subscribe("t")
        under_way = [speaker.publish("t", str(number).encode()) for number in range(200)]
        heard: list[bytes] = []
        while len(heard) < 200:
            batch = await listener.receive(7)
            assert len(batch) <= 7
            heard += [incoming.payload for incoming in batch]
            for incoming in batch:
                listener.ack(incoming)
        assert heard == [str(number).encode() for number in range(200)]
        await asyncio.gather(*under_way)


async def test_a_killed_broker_fails_what_was_not_acknowledged_and_what_is_waited_for_at_once(broker: PlainBroker) -> None:
    with pytest.raises(aiomqtt.MqttError):
        async with Session.connect(broker.address, "a", durable=False) as session:
            waiting = asyncio.create_task(session.receive())
            await asyncio.sleep(0)
            broker.kill()
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(5):
                    await session.publish("t", b"never acknowledged")
            async with asyncio.timeout(5):
                await waiting


async def test_a_connection_that_cannot_be_written_to_ends_and_leaves_nothing_on_the_loop(broker: PlainBroker) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(aiomqtt.MqttError):
        async with Session.connect(broker.address, "a", durable=False) as session:
            buffered = session._connection._socket
            assert buffered is not None
            number = buffered.fileno()
            buffered._sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(5):
                await session.publish("t", b"into the void")
    assert buffered.fileno() == -1 and not loop.remove_reader(number) and not loop.remove_writer(number)


async def test_small_packets_do_not_wait_for_the_acknowledgement_of_the_one_before(broker: PlainBroker) -> None:
    async with Session.connect(broker.address, "a", durable=False) as session:
        sock = session._connection._client.socket()
        assert sock is not None and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_what_one_iteration_leaves_another_finds(broker: PlainBroker) -> None:
    async with Session.connect(broker.address, "a", durable=False) as session:
        await session.subscribe("t")
        for payload in (b"1", b"2", b"3"):
            await session.publish("t", payload)
        assert [(await anext(aiter(session))).payload for _ in range(3)] == [b"1", b"2", b"3"]


def test_a_buffered_socket_reads_what_is_there_at_once_and_tells_what_is_left() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        buffered = _BufferedSocket(ours)
        theirs.sendall(b"abcdef")
        assert (buffered.recv(1), buffered.pending()) == (b"a", 5)
        assert (buffered.recv(9), buffered.pending()) == (b"bcdef", 0)
        with pytest.raises(BlockingIOError):
            buffered.recv(1)
        theirs.close()
        assert buffered.recv(1) == b""


def test_a_buffered_socket_writes_together_and_keeps_what_the_system_does_not_take() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        buffered = _BufferedSocket(ours)
        with buffered.together():
            assert buffered.send(b"a") == buffered.send(b"b") == 1
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(9)
        assert buffered.flush() and theirs.recv(9) == b"ab"
        large = bytes(range(256)) * 100_000
        buffered.send(large)
        assert not buffered.flush()
        theirs.setblocking(True)
        read = bytearray()
        while len(read) < len(large):
            read += theirs.recv(1 << 20)
            buffered.flush()
        assert bytes(read) == large


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs
