"""A client's connection to the simulated broker: the same words as bus.session.Session, over a network that delays and breaks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiomqtt

from bus.session import KEEPALIVE, RECEIVE_MAXIMUM, WILL_DELAY, Incoming, Will
from tests.simulation import broker as broker_

if TYPE_CHECKING:
    from tests.simulation.world import Node, World

TIMEOUT = 10.0
"""Seconds that aiomqtt waits for the broker's answer to CONNECT and SUBSCRIBE (its `timeout`, as bus.session sets it)."""
NOTICED = KEEPALIVE * 1.5
"""Seconds after which either end gives up on a connection from which it hears nothing."""


class Connection:
    """One connection, both of its ends. `up_cut` and `down_cut`: what is sent in that direction vanishes."""

    def __init__(self, world: World, node: Node, client: str) -> None:
        self.world = world
        self.node = node
        self.client = client
        self.session: broker_.Session | None = None
        self.open = True  # the client's end
        self.linked = True  # the broker's end
        self.up_cut = node.up_cut
        self.down_cut = node.down_cut
        self._arrived: deque[Incoming] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._promised: dict[int, asyncio.Future[None]] = {}
        self._packets = 0
        self._left = False
        self._up_at = 0.0
        self._down_at: dict[str, float] = {}

    # the network

    def up(self, action: Callable[[], None]) -> None:
        """Carry a packet to the broker, in order."""
        if self.up_cut:
            return
        self._up_at = max(self._up_at, self.world.now + self.world.latency(self.node))

        def arrive() -> None:
            if self.linked and self.world.broker.up and not self.up_cut:
                action()

        self.world.at(self._up_at, arrive)

    def down(self, lane: str, action: Callable[[], None]) -> None:
        """Carry a packet to the client, in order within a lane."""
        if self.down_cut:
            return
        when = self._down_at[lane] = max(self._down_at.get(lane, 0.0), self.world.now + self.world.latency(self.node))

        def arrive() -> None:
            if self.open and not self.down_cut:
                action()

        self.world.at(when, arrive)

    # the broker's end

    def deliver(self, incoming: Incoming) -> None:
        self.down(incoming.topic, lambda: self._arrive(incoming))

    def close(self) -> None:
        """The broker ends it: the client hears of it, or misses it after a while."""
        self.linked = False
        delay = NOTICED if self.down_cut else self.world.latency(self.node)
        self.world.at(self.world.now + delay, lambda: self.broken("the broker closed the connection"))

    # the client's end

    def _arrive(self, incoming: Incoming) -> None:
        self._arrived.append(incoming)
        self._alert()

    def _alert(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def broken(self, reason: str) -> None:
        """The client notices that the connection is over."""
        if not self.open:
            return
        self.open = False
        for promise in list(self._promised.values()):
            self._fail(promise, reason)
        self._promised.clear()
        self._alert()

    def gone(self, *, clean: bool) -> None:
        """The client's end is closed, by a farewell or because its process is dead."""
        if self._left:
            return
        self._left, self.open = True, False
        delay = NOTICED if self.up_cut else self.world.latency(self.node)

        def notice() -> None:
            self.linked = False
            self._leave(clean=clean and not self.up_cut)

        self.world.at(max(self._up_at, self.world.now + delay), notice)

    def cut(self, *, up: bool, down: bool) -> None:
        """Lose what is sent in a direction from now on, until one end notices."""
        self.up_cut, self.down_cut = self.up_cut or up, self.down_cut or down

        def notice() -> None:
            if self.linked:
                self.linked = False
                self._leave(clean=False)
            self.broken("keep alive timeout")

        self.world.at(self.world.now + NOTICED, notice)

    def _leave(self, *, clean: bool) -> None:
        self.world.broker.disconnect(self.client, self, clean=clean)
        self.world.at(self.world.now + WILL_DELAY + 0.01, self.world.broker.wills)

    def _promise(self, promise: asyncio.Future[None]) -> int:
        """Remember what the broker has to answer."""
        self._packets += 1
        self._promised[self._packets] = promise
        return self._packets

    def _keep(self, number: int) -> None:
        promise = self._promised.pop(number, None)
        if promise is not None and not promise.done():
            promise.set_result(None)

    def _fail(self, promise: asyncio.Future[None], reason: str) -> None:
        if not promise.done():
            promise.set_exception(aiomqtt.MqttError(reason))
            promise.exception()  # seen: nobody need wait for it

    async def ask(self, arrive: Callable[[], None]) -> None:
        """Have something done at the broker and wait for its answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        number = self._promise(answer)
        if not self.open:
            self._fail(answer, "not connected")
        timer = loop.call_later(TIMEOUT, self._fail, answer, "Operation timed out")

        def act() -> None:
            arrive()
            self.down("", lambda: self._keep(number))

        self.up(act)
        try:
            await answer
        finally:
            timer.cancel()
            self._promised.pop(number, None)

    # the words of bus.session.Session

    async def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        def arrive() -> None:
            assert self.session is not None
            self.world.broker.subscribe(self.session, topic_filter)

        await self.ask(arrive)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None,
        properties: Sequence[tuple[str, str]] = (), response_topic: str | None = None, correlation: bytes | None = None,
        **_: Any,
    ) -> asyncio.Future[None]:  # fmt: skip
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.open:
            self._fail(confirmed, "not connected")
            return confirmed
        broker = self.world.broker
        expires = None if expiry is None else broker.clock() + max(1, expiry)
        message = broker_.Message(topic, payload, qos, retain, expires, tuple(properties), response_topic, correlation)
        if qos == 0:
            self.up(lambda: broker.publish(message))
            confirmed.set_result(None)
            return confirmed
        number = self._promise(confirmed)
        confirmed.add_done_callback(lambda _: self.node.passing("published"))

        def arrive() -> None:
            broker.publish(message)
            self.down("", lambda: self._keep(number))

        self.up(arrive)
        return confirmed

    async def receive(self, limit: int = RECEIVE_MAXIMUM) -> list[Incoming]:
        while not self._arrived:
            if not self.open:
                raise aiomqtt.MqttError("Disconnected during message iteration")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def __aiter__(self) -> AsyncIterator[Incoming]:
        while True:
            for incoming in await self.receive(1):
                yield incoming

    def ack(self, incoming: Incoming) -> None:
        if incoming.qos and self.open:
            session = self.session
            assert session is not None
            self.up(lambda: self.world.broker.ack(session, incoming.mid))
            self.node.passing("acknowledged")


@asynccontextmanager
async def connect(
    world: World, node: Node, identifier: str, *, durable: bool, will: Will | None = None, **_: Any
) -> AsyncIterator[Connection]:
    """Connect as bus.session.Session.connect does.

    Raises:
        aiomqtt.MqttError: the broker is down, or does not answer.
    """
    connection = Connection(world, node, identifier)
    word = None if will is None else broker_.Message(will.topic, will.payload, 1, True)

    def arrive() -> None:
        connection.session = world.broker.connect(identifier, connection, durable=durable, will=word)

    if not world.broker.up:
        await asyncio.sleep(world.latency(node))
        raise aiomqtt.MqttError("[Errno 111] Connection refused")
    node.connection = connection
    try:
        await connection.ask(arrive)
    except BaseException:
        connection.gone(clean=False)
        raise
    clean = False
    try:
        yield connection
        clean = True
    except aiomqtt.MqttError:
        raise
    except (Exception, asyncio.CancelledError):
        clean = True  # aiomqtt says farewell whatever ended the block
        raise
    finally:
        connection.gone(clean=clean)
