"""A passing client: calls and subscriptions for the command line and for programs, without a store.

A call is repeated under one id until its reply comes, so a lost packet or a restarted broker costs time, not the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
from pydantic import BaseModel

from bus.address import BrokerAddress
from bus.session import Incoming, Refused, Session
from bus.tasks import end, within
from protocol.envelope import MAX_BYTES, MCPMessage, Reply
from protocol.errors import Code, LabError, Retry
from protocol.ids import uuid7
from protocol.methods import METHODS
from protocol.topics import Topics

REPEAT = (2.0, 30.0)
"""Seconds until an unanswered call is sent again: first and longest; doubles in between, so that many callers who wait
for a busy lab do not add to its work. The agents answer a repetition from their store."""


class Client:
    """A connection to a lab. Use as `async with Client(address) as client`; it reconnects by itself.

    Args:
        address: the broker.
        lab: the lab's name.
        name: shows in the broker's log and as the messages' sender.
    """

    def __init__(self, address: BrokerAddress, lab: str = "lab", *, name: str = "client") -> None:
        self.address = address
        self.topics = Topics(lab)
        self.name = f"{name}-{secrets.token_hex(6)}"
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._queues: list[tuple[str, asyncio.Queue[Incoming]]] = []
        self._session: Session | None = None
        self._online = asyncio.Event()
        self._again = asyncio.Event()  # set at the next connect: what was sent before may be lost
        self._offline = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Client:
        """Connect.

        Raises:
            LabError: UNREACHABLE; CONFIGURATION when the broker's certificate or rules refuse.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(first))
        try:
            await first
        except BaseException:
            self._task.cancel()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await end([self._task])

    async def _run(self, first: asyncio.Future[None]) -> None:
        while True:
            try:
                async with Session.connect(self.address, self.name, durable=False) as session:
                    await session.subscribe(self.topics.of("reply", client=self.name))
                    for topic_filter, _ in self._queues:
                        await session.subscribe(topic_filter)
                    self._session = session
                    self._offline.clear()
                    self._online.set()
                    self._again.set()
                    self._again = asyncio.Event()
                    if not first.done():
                        first.set_result(None)
                    async for incoming in session:
                        self._dispatch(incoming)
                        session.ack(incoming)
            except aiomqtt.MqttError as error:
                if not first.done():
                    first.set_exception(
                        LabError(
                            Code.UNREACHABLE,
                            f"no broker answers at {self.address}: {error}.",
                            advice="Start the lab with `meetara up`, or name the broker with --host and --port.",
                            retry=Retry.LATER,
                        )
                    )
                    return
                await asyncio.sleep(0.2)
            except LabError as error:  # TLS or the access rules; once they were well, they may be mended
                if not first.done():
                    first.set_exception(error)
                    return
                await asyncio.sleep(0.2)
            finally:
                self._online.clear()
                self._offline.set()
                self._session = None

    async def until(self, *, online: bool) -> None:
        """Return when the connection is there, or when it is lost. It comes back by itself."""
        await (self._online if online else self._offline).wait()

    def _dispatch(self, incoming: Incoming) -> None:
        if incoming.topic == self.topics.of("reply", client=self.name):
            correlation = (incoming.correlation or b"").decode("utf-8", "replace")
            future = self._waiting.get(correlation)
            try:
                reply = Reply.parse(incoming.payload)
            except LabError as error:  # a reply that cannot be read is the answer to one call, not the connection's end
                if future is not None and not future.done():
                    future.set_exception(error)
                return
            future = self._waiting.get(reply.id) or future
            if future is not None and not future.done():
                future.set_result(reply)
            return
        for topic_filter, queue in self._queues:
            if aiomqtt.Topic(incoming.topic).matches(topic_filter):
                queue.put_nowait(incoming)

    async def _publish(self, topic: str, payload: bytes, **options: Any) -> None:
        await self._online.wait()
        session = self._session
        if session is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # the connection broke: the caller's repetition sends it again
                await session.publish(topic, payload, **options)

    async def call(
        self,
        method: str,
        params: BaseModel,
        *,
        timeout: float | None = None,
        id: str | None = None,
        to: str | None = None,
        priority: int = 1,
    ) -> Any:
        """Call a method and return its result as the method's model.

        Args:
            method: a name of protocol.methods.
            params: its parameters.
            timeout: seconds to wait; default: the method's.
            id: a stable id; the same id and body is the same call.
            to: an agent's id, to address that one.
            priority: 1 to 3.

        Raises:
            LabError: the error reply; TOO_LARGE before sending; EXPIRED when no reply came in time; CONFIGURATION when
                the broker's rules do not let this login call it.
        """
        description = METHODS[method]
        message = MCPMessage(
            id=id or uuid7(), sender=self.name, recipient=to, type=method, priority=priority,
            data=params.model_dump(mode="json"),
            traceparent=f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        )  # fmt: skip
        body = message.body()
        if len(body) > MAX_BYTES:
            raise LabError(
                Code.TOO_LARGE, f"the request has {len(body)} bytes, more than the limit of {MAX_BYTES}.",
                advice="Send a reference to the data (a path or URI), not the data.", bytes=len(body), limit=MAX_BYTES,
            )  # fmt: skip
        topic = (
            self.topics.of("direct", role=description.role, agent=to, method=method)
            if to
            else self.topics.of("call", role=description.role, method=method)
        )
        limit = timeout if timeout is not None else description.deadline_s
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[message.id] = future

        async def repeat() -> None:
            pause = REPEAT[0]
            while not future.done():
                try:
                    await self._publish(
                        topic, body, properties=message.properties(), correlation=message.id.encode(),
                        response_topic=self.topics.of("reply", client=self.name),
                    )  # fmt: skip
                except Refused as error:  # repeating does not help
                    if not future.done():
                        future.set_exception(error)
                again = self._again
                await within(again.wait(), pause)
                pause = REPEAT[0] if again.is_set() else min(2 * pause, REPEAT[1])

        sending = asyncio.create_task(repeat())
        try:
            async with asyncio.timeout(limit):
                reply = await future
        except TimeoutError as error:
            raise LabError(
                Code.EXPIRED, f"{description.role} did not answer {method} within {limit:g} s.",
                advice="See `meetara agents` for what is online; the same call with the same id can be repeated.",
                retry=Retry.LATER, id=message.id,
            ) from error  # fmt: skip
        finally:
            future.cancel()
            sending.cancel()
            del self._waiting[message.id]
        if reply.error is not None:
            raise LabError.from_body(reply.error)
        return description.result.model_validate(reply.result)

    @asynccontextmanager
    async def subscription(self, topic: str, **levels: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """Subscribe to a row of the topic table; yields an iterator of (topic, payload), retained messages first."""
        queue: asyncio.Queue[Incoming] = asyncio.Queue()
        entry = (self.topics.of(topic, **levels), queue)
        self._queues.append(entry)
        await self._online.wait()
        session = self._session
        if session is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # the reconnect subscribes to everything in the list
                await session.subscribe(entry[0])

        async def messages() -> AsyncIterator[tuple[str, bytes]]:
            while True:
                incoming = await queue.get()
                yield incoming.topic, incoming.payload

        try:
            yield messages()
        finally:
            self._queues.remove(entry)
