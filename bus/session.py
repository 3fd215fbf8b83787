"""One MQTT 5 session: PUBACK goes out when the caller says so, which is after its transaction committed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bus.address import BrokerAddress, tls_failure
from bus.connection import Connection
from bus.packet import Incoming as Incoming
from bus.packet import PublishProperties
from protocol.errors import Code, LabError

SESSION_EXPIRY = 7 * 86_400
"""Seconds for which the broker keeps an agent's subscriptions and queue while it is away: a machine that sleeps over
a long weekend loses nothing."""
RECEIVE_MAXIMUM = 32
"""Unacknowledged messages the broker may have under way to one agent: bounds its memory and its group commits."""
WILL_DELAY = 5
"""Seconds before a lost connection is told to others: a restart by the supervisor takes less."""
KEEPALIVE = 15
"""Seconds; a half-open connection is noticed after one and a half of it, within a lease's 30 s."""
ANSWER_SECONDS = 10
"""How long the broker may take for an acknowledgement before the connection counts as dead: a cut line is found out
sooner than by KEEPALIVE."""
MAX_PACKET = 1024 * 1024
"""Bytes; four times the limit of a message, so that a too large one is answered instead of cutting the connection."""


@dataclass(frozen=True)
class Will:
    """What the broker says for a client that vanished."""

    topic: str
    payload: bytes


def taken_over(address: BrokerAddress, identifier: str) -> LabError:
    """Return the error of an agent whose place another process has taken."""
    return LabError(
        Code.CONFLICT, f"another process has connected to {address} as {identifier} and has this agent's session now.",
        advice="Two agents must not share a name: stop one of them, or give it another --agent or another --lab.",
    )  # fmt: skip


def refuses_login(error: aiomqtt.MqttError) -> bool:
    """Whether a broker answered that it does not know this login or its password (MQTT 5 §3.2.2.2)."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return isinstance(code, ReasonCode) and code.value in (0x86, 0x87)  # a bare number is one of the client library's


class Refused(LabError):
    """The broker's access rules do not let this login publish or subscribe there."""

    def __init__(self, reason: str, login: str | None = None, action: str = "", topic: str = "") -> None:
        super().__init__(
            Code.CONFIGURATION, f"the broker does not let {login or 'a user'} {action} {topic}: {reason}.",
            advice="docs/bus.md tells who may publish and read what.", topic=topic,
        )  # fmt: skip
        self.reason = reason


class Session:
    """A connected session. Iterate over it for messages; call `ack` when a message is safe."""

    def __init__(self, connection: Connection, login: str | None = None) -> None:
        self._connection = connection
        self._login = login

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: BrokerAddress,
        identifier: str,
        *,
        durable: bool,
        will: Will | None = None,
        receive_maximum: int = RECEIVE_MAXIMUM,
    ) -> AsyncIterator[Session]:
        """Connect and yield the session.

        Args:
            address: the broker.
            identifier: MQTT client id; two connections with one id displace each other.
            durable: keep subscriptions and queued messages for SESSION_EXPIRY while away.
            will: published WILL_DELAY seconds after the connection was lost.
            receive_maximum: QoS 1 messages that may be unacknowledged.

        Raises:
            aiomqtt.MqttError: the broker is not there, refused, or went away.
            LabError: CONFLICT when another connection came with this identifier (docs/decisions/0008-session-take-over.md);
                CONFIGURATION when TLS was the reason.
        """
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = receive_maximum
        properties.MaximumPacketSize = MAX_PACKET
        if durable:
            properties.SessionExpiryInterval = SESSION_EXPIRY
        last_words = None
        if will:
            will_properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            will_properties.WillDelayInterval = WILL_DELAY
            last_words = aiomqtt.Will(will.topic, will.payload, qos=1, retain=True, properties=will_properties)
        connection = Connection(
            address.host,
            address.port,
            username=address.username,
            password=address.password,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=not durable,
            properties=properties,
            will=last_words,
            keepalive=KEEPALIVE,
            timeout=ANSWER_SECONDS,
            tls_context=address.tls_context(),
            logger=logging.getLogger("aiomqtt"),
            in_flight=RECEIVE_MAXIMUM,
        )
        try:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(connection)
                except aiomqtt.MqttError as error:
                    if (wrong := tls_failure(error, address)) is not None:
                        raise wrong from error
                    raise
                yield cls(connection, address.username)
        except aiomqtt.MqttError as error:
            if not connection.taken_over:
                raise
            raise taken_over(address, identifier) from error

    async def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Subscribe; retained messages come first.

        Raises:
            Refused: the broker's rules do not allow it.
        """
        for code in await self._connection.subscribe(topic_filter, qos=qos):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise Refused(str(code), self._login, "subscribe to", topic_filter)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry: int | None = None,
        properties: Sequence[tuple[str, str]] = (),
        response_topic: str | None = None,
        correlation: bytes | None = None,
        content_type: str | None = "application/json",
    ) -> Awaitable[None]:
        """Send a message at once, in the order of the calls; await it for the broker's acknowledgement (QoS 1).

        Args:
            topic: the topic.
            payload: the body.
            qos: 0 or 1.
            retain: the broker keeps it for later subscribers.
            expiry: seconds for which the broker keeps it for an absent subscriber.
            properties: MQTT user properties.
            response_topic: where a reply is awaited.
            correlation: echoed with the reply.
            content_type: the body's media type.

        Raises:
            aiomqtt.MqttError: the connection was lost before the acknowledgement.
            Refused: the broker's rules do not allow it (known with QoS 1 only).
        """
        packet = PublishProperties(
            user=properties, response_topic=response_topic, correlation=correlation,
            expiry=None if expiry is None else max(1, expiry), content_type=content_type,
        )  # fmt: skip
        return self._connection.send(topic, payload, qos, retain, packet, lambda why: self._refused(topic, why))

    def _refused(self, topic: str, reason: str) -> Refused:
        return Refused(reason, self._login, "publish to", topic)

    async def receive(self, limit: int = RECEIVE_MAXIMUM) -> list[Incoming]:
        """Wait for messages and return those that are here, at most `limit`, in the order of their arrival.

        Raises:
            aiomqtt.MqttError: the connection is gone.
        """
        return await self._connection.receive(limit)

    async def __aiter__(self) -> AsyncIterator[Incoming]:
        while True:
            for incoming in await self.receive(1):  # whoever iterates may stop, and another go on
                yield incoming

    def ack(self, incoming: Incoming) -> None:
        """Send PUBACK for a QoS 1 message."""
        if incoming.qos:
            self._connection.ack(incoming.mid, incoming.qos)
