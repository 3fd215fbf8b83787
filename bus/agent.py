"""The life of an agent: a store, a session, and the three tables of handlers.

A message is acknowledged after the transaction that handled or stored it. A call made here is sent until its reply is
in the store. Handlers are synchronous and run inside the transaction; what takes long answers later.

`take_in`, `send_due`, `fire_due` and `announce` are all that an agent does; `run` only decides when, by a broker's session
and the clock. They read no other clock than the wiring's, so something else may drive an agent in their place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import aiomqtt
import structlog
from pydantic import BaseModel

from bus import process, trace
from bus.health import BEAT, SignOfLife
from bus.inbox import Handler, Inbox, Outgoing
from bus.namesake import refuse_displacement
from bus.outbox import Outbox, ReplyHandler
from bus.process import Wiring
from bus.sender import Publisher, Sender
from bus.session import Incoming, Session, Will
from bus.store import Store, passing
from bus.tasks import end, within
from bus.transaction import ABOUT, Transaction
from protocol.envelope import MCPMessage
from protocol.errors import LabError
from protocol.machine import Card, Presence
from protocol.methods import METHODS, served_by
from protocol.topics import BY_NAME, Topics

RECONNECT = (0.1, 3.0)
"""Seconds between connection attempts: first and longest."""
FLUSH_LIMIT = 2.0
"""Seconds that a stopping agent spends on sending what is due."""
CLOCK_STEP = 2.0
"""Seconds by which the wall clock must leave the monotonic one to count as set (or the machine as asleep): a clock that is
only slewed drifts by milliseconds between two looks."""

TimerHandler = Callable[[str, dict[str, Any], Transaction], None]
Watcher = Callable[[str, bytes], None]


class BaseAgent:
    """An agent. Subclasses set `role`, fill the handler tables in `__init__`, and may override the hooks."""

    role: ClassVar[str]
    migrations: ClassVar[tuple[str, ...]] = ()
    synchronous: ClassVar[Literal["FULL", "NORMAL"]] = "NORMAL"
    shares_calls: ClassVar[bool] = True
    """Whether it takes calls that are for anyone of its role, and buries those that it cannot handle; else it hears only what
    is addressed to itself."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.agent = wiring.agent
        self.home = wiring.home
        self.now = wiring.now
        self.topics = Topics(wiring.lab)
        self.log = structlog.get_logger()
        self.message_handlers: dict[str, Handler] = {}
        self.reply_handlers: dict[str, ReplyHandler] = {}
        self.timer_handlers: dict[str, TimerHandler] = {}
        self.store = Store(
            wiring.home / "agents" / f"{wiring.agent}.db", synchronous=self.synchronous, migrations=self.migrations
        )
        self.instance = f"{self.store.identity:08x}"
        self._announced = False
        self._handling = True  # False in `run` until `started` has put in order what the last process left
        self._life = SignOfLife(wiring.home, wiring.agent)
        self._life.end()  # the last process's, killed a moment ago
        self._inbox = Inbox(self.role, self.message_handlers, self.refused, buries=self.shares_calls)
        self._outbox = Outbox(self.role, self.reply_handlers)
        self.client = wiring.broker.client(self.agent)
        self._sender = Sender(self.client, self.topics, self.store, self._outbox, self.transaction, self.now)
        self._watchers: list[tuple[str, Watcher]] = []
        self._send = asyncio.Event()
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._session: Session | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._open: Transaction | None = None
        self._elapsed: Callable[[], float] | None = None  # the monotonic clock
        self._apart = 0.0  # seconds between the two clocks

    # hooks

    def card(self) -> Card:
        """What this agent tells about itself."""
        methods = {name: method.digest for name, method in served_by(self.role).items()}
        return Card(agent=self.agent, role=self.role, version=version("meetara-lab"), methods=methods)

    def refused(self, message: MCPMessage, error: LabError, tx: Transaction) -> bool:
        """Tell of a refused call that has no response topic; False sends it to the dead letters."""
        return False

    async def started(self) -> None:
        """Called once, when the agent is connected and subscribed for the first time."""

    async def stopping(self) -> None:
        """Called on SIGTERM while the agent is still connected."""

    def broker_forgot(self) -> None:
        """Called when the agent is connected and the broker may have lost its memory, so always at the start: publish what
        it should retain."""

    def disconnected(self, error: aiomqtt.MqttError) -> None:
        """Called whenever there is no connection: it broke, or the broker is away, or refuses. A LabError ends the agent."""

    def clock_was_set(self, seconds: float, tx: Transaction) -> None:
        """Called when the wall clock was set by so many seconds: move the times in the agent's own tables with it."""

    # for handlers and background tasks

    def params(self, message: MCPMessage) -> Any:
        """Return a call's params as its method's model."""
        return self._inbox.params(message)

    def watch(self, topic_filter: str, callback: Watcher) -> None:
        """Listen to a topic filter of the lab (cards, presence). Call in `__init__`."""
        self._watchers.append((topic_filter, callback))

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        """Open a transaction; on leaving it is committed, its actions run, and what it sends is on its way.

        Args:
            durable: False for the sender's notes of what it has sent, see `Store.transaction`; they wake nobody.
        """
        if self._open is not None:
            raise RuntimeError("a transaction is open already; pass it on instead of opening another")
        tx = Transaction(self.store, self.topics, self.agent, self.now(), trace.current())
        out = Outgoing()
        step = self._clock_step(tx.now)
        self._open = tx
        try:
            with self.store.transaction(durable=durable):
                if step:
                    self._follow(step, tx)  # before anything is written at the new time: that must not be moved
                yield tx
                self._inbox.collect(tx._replies, tx, out)
        finally:
            self._open = None
        self._apart += step
        self._sender.replies.extend(out.replies)
        if durable or step:
            self._send.set()
            self._wake.set()
        for action in tx._after:
            action()

    def emit(self, topic: str, payload: BaseModel, **levels: str) -> None:
        """Publish at once and without a promise (progress); dropped while offline."""
        row = BY_NAME[topic]
        if self._session is not None:
            self._background(
                self._session.publish(
                    self.topics.of(topic, **levels), payload.model_dump_json().encode(),
                    qos=0, retain=row.retain, expiry=row.expiry,
                )
            )  # fmt: skip

    def announce(self, *, again: bool = False) -> None:
        """Publish card and presence (the card has changed).

        Args:
            again: the agent is on the bus again, and the broker may have forgotten what was sent: every call that is not
                answered becomes due.
        """
        levels = {"role": self.role, "agent": self.agent}
        with self.transaction() as tx:
            tx.publish("card", self.card(), **levels)
            here = Presence(agent=self.agent, role=self.role, online=True, instance=self.instance, at=tx.now)
            tx.publish("presence", here, **levels)
            if again:
                tx.store.send_all_again(tx.now)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task for the agent's life; if it fails the agent stops (and is restarted outside)."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:  # the boundary of a task: its failure is the agent's
                self.log.exception("background task failed")
                self._failure = error
                self._stop.set()

        return self._keep(asyncio.create_task(guarded()))

    def _background(self, work: Awaitable[None]) -> None:
        async def quiet() -> None:
            with contextlib.suppress(aiomqtt.MqttError):  # best effort by contract; the session's loop reconnects
                await work

        self._keep(asyncio.create_task(quiet()))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def send_message(self, message: MCPMessage) -> str:
        """Send a call durably; returns its id. The answer goes to `reply_handlers[message.type]`."""
        model = METHODS[message.type].params.model_validate(message.data)
        with self.transaction() as tx, tx.about(message.traceparent):
            return tx.call(
                message.type, model, to=message.recipient, id=message.id, priority=message.priority,
                deadline=message.deadline,
            )  # fmt: skip

    async def handle_message(self, message: MCPMessage) -> None:
        """Take in a call as if it had come from the bus, and handle what waits."""
        incoming = Incoming(
            topic=self.topics.of("call", role=self.role, method=message.type), payload=message.body(),
            properties=message.properties(), response_topic=None, correlation=None, retain=False, duplicate=False,
            qos=0, mid=0,
        )  # fmt: skip
        self.take_in([incoming])

    # the life of an agent

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            Exception: what a background task failed with.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._handling = False
        own = [self.spawn(self._clock()), self.spawn(self._live())]
        try:
            await self._stay_connected()
        finally:
            await end([*own, *self._tasks])
            self._life.end()
            self.store.close()
        if self._failure is not None:
            raise self._failure

    async def _stay_connected(self) -> None:
        pause = RECONNECT[0]
        first = True
        presence = self.topics.of("presence", role=self.role, agent=self.agent)
        offline = Presence(agent=self.agent, role=self.role, online=False).model_dump_json().encode()
        while not self._stop.is_set():
            try:
                known = not self._announced or await refuse_displacement(self.wiring, self.instance, presence)
                async with Session.connect(
                    self.wiring.broker, f"{self.wiring.lab}-{self.client}", durable=True, will=Will(presence, offline)
                ) as session, self._receiving(session) as receiving:
                    await self._subscribe(session)
                    self._session = session
                    pause = RECONNECT[0]
                    self.announce(again=True)
                    if not known:
                        self.log.warning("the broker has forgotten what it retained; telling it again")
                    if first or not known:  # what the broker lost before this process began, nobody could notice
                        self.broker_forgot()
                    if first:
                        await self.started()
                        first = False
                        self._handling = True
                        self._wake.set()
                    self._show_life()
                    self.log.info("online", broker=str(self.wiring.broker))
                    await self._serve(session, receiving)
                    await self.stopping()
                    await within(self._leave(session, presence, offline), FLUSH_LIMIT)
            except (aiomqtt.MqttError, sqlite3.OperationalError) as error:
                if isinstance(error, aiomqtt.MqttError):
                    self.log.warning("broker not reachable", broker=str(self.wiring.broker), reason=str(error))
                    self.disconnected(error)
                elif passing(error):
                    self.log.error("store not writable; connecting again", reason=str(error), file=str(self.store.path))
                else:
                    raise
                await within(self._stop.wait(), pause * (1 + random.random() / 4))
                pause = min(pause * 2, RECONNECT[1])
                if self._stop.is_set() and not first:
                    await self.stopping()
            finally:
                self._session = None

    async def _subscribe(self, session: Session) -> None:
        await session.subscribe(self.topics.of("reply", client=self.client))
        await session.subscribe(self.topics.of("direct", role=self.role, agent=self.agent, method="+"))
        for topic_filter, _ in self._watchers:
            await session.subscribe(topic_filter)
        if self.shares_calls:
            await session.subscribe(self.topics.shared(self.role))

    @asynccontextmanager
    async def _receiving(self, session: Session) -> AsyncIterator[asyncio.Task[None]]:
        """Receive and acknowledge from the first moment: what waits at the broker comes before its answer to a subscription.

        On a slow line that answer would else come too late each time, and nothing would ever be received.
        """
        task = asyncio.create_task(self._receive(session))
        try:
            yield task
        finally:
            await end([task])

    async def _serve(self, session: Session, receiving: asyncio.Task[None]) -> None:
        sending = asyncio.create_task(self._keep_sending(session))
        tasks = {receiving, asyncio.create_task(self._stopped()), sending}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await asyncio.wait({sending}, timeout=FLUSH_LIMIT)  # what is on its way would go out once more
        finally:
            await end(tasks)

    async def _stopped(self) -> None:
        await self._stop.wait()
        self._send.set()

    async def _receive(self, session: Session) -> None:
        while True:
            batch = await session.receive()
            await self.until_stored(lambda batch=batch: self.take_in(batch))  # type: ignore[misc]
            for incoming in batch:
                session.ack(incoming)

    async def until_stored(self, work: Callable[[], None]) -> None:
        """Repeat until SQLite lets it happen: a full disk or a locked file delays messages, it loses none."""
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if not passing(error):
                    raise
                self.log.error("store not writable; trying again", reason=str(error), file=str(self.store.path))
                await asyncio.sleep(1)

    def take_in(self, batch: Sequence[Incoming]) -> None:
        """Take messages in, and handle what waits, in one transaction; when this returns they may be acknowledged."""
        watched: list[tuple[Watcher, Incoming]] = []
        out = Outgoing()
        with self.transaction() as tx:
            for incoming in batch:
                found = [call for pattern, call in self._watchers if aiomqtt.Topic(incoming.topic).matches(pattern)]
                if found:
                    watched += [(call, incoming) for call in found]
                    continue
                match self.topics.levels(incoming.topic):
                    case ["reply", _]:
                        self._outbox.take(incoming, tx)
                    case ["call", _, method] | ["direct", _, _, method]:
                        self._inbox.take(incoming, method, tx, out)
                    case _:
                        self.log.warning("unexpected topic", topic=incoming.topic)
            if self._handling:
                self._inbox.handle_pending(tx)
        self._sender.replies.extend(out.replies)
        for call, incoming in watched:
            call(incoming.topic, incoming.payload)

    # sending

    async def send_due(self, session: Publisher) -> bool:
        """Send the replies, publications and calls that are due now; see `Sender.send_due`."""
        return await self._sender.send_due(session)

    async def _leave(self, session: Session, presence: str, offline: bytes) -> None:
        while await self.send_due(session):
            pass
        await session.publish(presence, offline, retain=True)

    async def _keep_sending(self, session: Session) -> None:
        while not self._stop.is_set():
            self._send.clear()
            if await self.send_due(session):
                self._send.set()
            self._announced = True
            await self._until(self._send, self.store.next_call())

    # time

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._show_life()

    def _show_life(self) -> None:
        if self._session is None or not self.store.writable():
            return
        try:
            self._life.show(self.now())
        except OSError as error:  # the sign grows old, which is what it is for
            self.log.error("home not writable", reason=str(error), file=str(self._life.path))

    async def _clock(self) -> None:
        self._elapsed = asyncio.get_running_loop().time
        self._apart = self.now().timestamp() - self._elapsed()
        await self.until_stored(self._wind_up)
        while True:
            self._wake.clear()
            await self.until_stored(self.fire_due)
            await self._until(self._wake, self.store.next_timer(postponed=self._handling))

    def _wind_up(self) -> None:
        with self.transaction() as tx:
            behind = tx.store.seconds_ahead(tx.now)
            if behind > CLOCK_STEP:  # the clock was set back while this agent was away
                self._follow(-behind, tx)
            tx.store.forget(tx.now)

    def _clock_step(self, now: datetime) -> float:
        """Seconds by which the wall clock was set since the last transaction; 0 if it was not."""
        if self._elapsed is None:
            return 0.0
        step = now.timestamp() - self._elapsed() - self._apart
        return step if abs(step) > CLOCK_STEP else 0.0

    def follow_clock(self, seconds: float) -> None:
        """Let everything that waits wait as long as before, although the wall clock was set by so many seconds."""
        with self.transaction() as tx:
            self._follow(seconds, tx)

    def _follow(self, seconds: float, tx: Transaction) -> None:
        """Without this a clock set back by an hour would stop all repetitions and renewals for an hour, and a machine that
        slept would find its leases expired although nobody could have renewed them."""
        self.log.warning("the clock was set", seconds=round(seconds, 1))
        tx.store.shift(seconds)
        self.clock_was_set(seconds, tx)

    async def _until(self, event: asyncio.Event, due: float | None) -> None:
        """Wait for an event, at most until a Unix time."""
        await within(event.wait(), None if due is None else max(0.02, due - self.now().timestamp()))

    def fire_due(self) -> None:
        """Run the timers and handle the postponed calls that are due now."""
        now = self.now()
        waiting = self._handling and self.store.pending(now, 1)
        if not waiting and not self._clock_step(now) and not self.store.due_timers(now):
            return
        with self.transaction() as tx:
            for row in tx.store.due_timers(tx.now):
                self._fire(row, tx)
            if self._handling:
                self._inbox.handle_pending(tx)

    def _fire(self, row: sqlite3.Row, tx: Transaction) -> None:
        after = len(tx._after)
        tx.cancel_timer(row["name"], row["key"])
        data = json.loads(row["data"])
        about = data.pop(ABOUT, {})
        with tx.about(about.get("traceparent"), job=about.get("job"), timer=row["name"]):
            try:
                with tx.store.savepoint():
                    self.timer_handlers[row["name"]](row["key"], data, tx)
            except Exception as error:  # the boundary: a broken timer must not stop the others; it is tried again in a second
                if passing(error):
                    raise
                del tx._after[after:]
                self.log.exception("timer handler crashed", key=row["key"])
                tx.timer(row["name"], row["key"], tx.now + timedelta(seconds=1), data)

    # the process

    @classmethod
    def main(cls, arguments: list[str] | None = None) -> None:
        """Run the agent as a process; exits with 2 when it refuses its configuration."""
        process.run(cls, arguments)
