"""An MQTT 5 broker as a state machine: durable sessions, QoS 1, shared subscriptions, retained messages, wills, take-over.

It keeps what MQTT promises and nothing more. Each packet of a connection arrives in order; what the broker sends is in order
per topic only, as several brokers in a cluster would do it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Literal, Protocol

from bus.session import RECEIVE_MAXIMUM, WILL_DELAY, Incoming

Memory = Literal["kept", "lost", "old"]
"""What a killed broker knows when it is back: everything, nothing, or what it last wrote to its file."""


@lru_cache(maxsize=4096)
def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic fits a filter (MQTT 5 §4.7); `$share` is taken off before."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    for number, level in enumerate(wanted):
        if level == "#":
            return True
        if number >= len(given) or level not in ("+", given[number]):
            return False
    return len(wanted) == len(given)


@dataclass(frozen=True)
class Message:
    """An application message. `expires_at` is a moment of the broker's clock."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    expires_at: float | None = None
    properties: tuple[tuple[str, str], ...] = ()
    response_topic: str | None = None
    correlation: bytes | None = None


class Link(Protocol):
    """The broker's end of one connection."""

    def deliver(self, incoming: Incoming) -> None:
        """Send a message down."""

    def close(self) -> None:
        """The broker ends the connection."""


@dataclass
class Session:
    """What the broker keeps of a client."""

    client: str
    durable: bool
    filters: list[str] = field(default_factory=list)
    queue: deque[Message] = field(default_factory=deque)
    inflight: dict[int, Message] = field(default_factory=dict)
    link: Link | None = None
    will: Message | None = None
    will_at: float | None = None
    last_mid: int = 0


class Broker:
    """The broker.

    Args:
        random: for everything that MQTT leaves to the broker.
        clock: the broker's own clock in seconds.
        log: called with each message that the broker has accepted.
    """

    def __init__(self, random: Random, clock: Callable[[], float], log: Callable[[Message], None]) -> None:
        self.random = random
        self.clock = clock
        self.log = log
        self.up = True
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, Message] = {}
        self.repeats = 0.0  # the share of deliveries that come twice
        self._file: tuple[dict[str, Session], dict[str, Message]] = ({}, {})

    # what clients do

    def connect(self, client: str, link: Link, *, durable: bool, will: Message | None) -> Session:
        """A client is there: its old connection ends, and what it has not acknowledged comes again."""
        session = self.sessions.get(client)
        if session is not None and session.link is not None:
            session.link.close()
        if session is None or not durable:
            session = self.sessions[client] = Session(client, durable)
        session.link, session.will, session.will_at, session.durable = link, will, None, durable
        for mid, message in session.inflight.items():
            self._deliver(session, mid, message, duplicate=True)
        self._pump(session)
        return session

    def disconnect(self, client: str, link: Link, *, clean: bool) -> None:
        """A connection is over."""
        session = self.sessions.get(client)
        if session is None or session.link is not link:
            return
        session.link = None
        if session.will is not None and not clean:
            session.will_at = self.clock() + WILL_DELAY
        if not session.durable:
            del self.sessions[client]

    def subscribe(self, session: Session, topic_filter: str) -> None:
        """Add a filter; what is retained comes at once."""
        if topic_filter not in session.filters:
            session.filters.append(topic_filter)
        if topic_filter.startswith("$share/"):
            return
        for topic, message in self.retained.items():
            if matches(topic_filter, topic):
                self._enqueue(session, message)

    def publish(self, message: Message) -> None:
        """Accept a message and hand it to whoever wants it."""
        self.log(message)
        if message.retain:
            if message.payload:
                self.retained[message.topic] = message
            else:
                self.retained.pop(message.topic, None)
        live = replace(message, retain=False) if message.retain else message
        groups: dict[str, list[Session]] = {}
        for session in self.sessions.values():
            for topic_filter in session.filters:
                if topic_filter.startswith("$share/"):
                    if matches(topic_filter.split("/", 2)[2], message.topic):
                        groups.setdefault(topic_filter, []).append(session)
                elif matches(topic_filter, message.topic):
                    self._enqueue(session, live)
                    break
        for members in groups.values():
            there = [member for member in members if member.link is not None]
            self._enqueue(self.random.choice(there or members), live)

    def ack(self, session: Session, mid: int) -> None:
        """A client has a message safe."""
        session.inflight.pop(mid, None)
        self._pump(session)

    # inside

    def _enqueue(self, session: Session, message: Message) -> None:
        if message.qos or session.link is not None:
            session.queue.append(message)
            self._pump(session)

    def _pump(self, session: Session) -> None:
        while session.link is not None and session.queue and len(session.inflight) < RECEIVE_MAXIMUM:
            message = session.queue.popleft()
            if message.expires_at is not None and message.expires_at < self.clock():
                continue
            mid = 0
            if message.qos:
                mid = session.last_mid = session.last_mid % 65_535 + 1
                session.inflight[mid] = message
            self._deliver(session, mid, message, duplicate=False)
            if mid and self.repeats and self.random.random() < self.repeats:
                self._deliver(session, mid, message, duplicate=True)

    def _deliver(self, session: Session, mid: int, message: Message, *, duplicate: bool) -> None:
        if session.link is not None:
            session.link.deliver(
                Incoming(
                    topic=message.topic, payload=message.payload, properties=message.properties,
                    response_topic=message.response_topic, correlation=message.correlation, retain=message.retain,
                    duplicate=duplicate, qos=message.qos, mid=mid, expiry=self._left(message),
                )
            )  # fmt: skip

    def _left(self, message: Message) -> int | None:
        """The seconds that are left to a message, as MQTT 5 §3.3.2.3.3 has it."""
        return None if message.expires_at is None else max(1, round(message.expires_at - self.clock()))

    # what the world does to it

    def wills(self) -> None:
        """Speak for the clients that have been away for too long."""
        for session in list(self.sessions.values()):
            if session.will is not None and session.will_at is not None and session.will_at <= self.clock():
                will, session.will, session.will_at = session.will, None, None
                self.publish(will)

    def save(self) -> None:
        """Write everything to the file, as Mosquitto does now and then."""
        self._file = (self._copy(), dict(self.retained))

    def _copy(self) -> dict[str, Session]:
        return {
            client: replace(
                session, filters=copy(session.filters), queue=copy(session.queue), inflight=copy(session.inflight),
                link=None, will=None, will_at=None,
            )
            for client, session in self.sessions.items() if session.durable
        }  # fmt: skip

    def kill(self, memory: Memory) -> None:
        """End without a word."""
        self.up = False
        links = [session.link for session in self.sessions.values() if session.link is not None]
        if memory == "old":
            self.sessions, self.retained = self._file
            self.save()
        elif memory == "lost":
            self.sessions, self.retained = {}, {}
        else:
            self.sessions = self._copy()
        for link in links:
            link.close()
