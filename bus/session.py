"""One MQTT 5 session on aiomqtt, with acknowledgement in the caller's hand.

This is the only file that touches aiomqtt's private parts (version 2.5 has no public ack): paho's manual acks are on,
and PUBACK goes out when the caller says so, which is after its transaction committed. With automatic acks 724 of
1,000 messages were lost when the consumer was killed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import DisconnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

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
TAKEN_OVER = 0x8E
"""MQTT 5's reason code "session taken over": another connection came with this one's client id."""
MAX_PACKET = 1024 * 1024
"""Bytes; four times the limit of a message, so that a too large one is answered instead of cutting the connection."""


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is and who one is there."""

    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
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


class _ManualAckClient(aiomqtt.Client):
    """aiomqtt's client, remembering which packets the broker marked as sent before (DUP), and who ended the session."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.redelivered: deque[bool] = deque()  # of the messages in the queue, in their order
        self.taken_over = False
        self._client.manual_ack_set(True)

    def _on_message(self, client: PahoClient, userdata: object, message: MQTTMessage) -> None:
        self.redelivered.append(bool(message.dup))
        super()._on_message(client, userdata, message)

    def _on_disconnect(
        self, client: PahoClient, userdata: object, flags: DisconnectFlags, reason: ReasonCode,
        properties: Properties | None = None,
    ) -> None:  # fmt: skip
        self.taken_over = reason.value == TAKEN_OVER
        super()._on_disconnect(client, userdata, flags, reason, properties)


class Session:
    """A connected session. Iterate over it for messages; call `ack` when a message is safe."""

    def __init__(self, client: _ManualAckClient) -> None:
        self._client = client

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
            LabError: CONFLICT when another connection came with this identifier (docs/decisions/0008-session-take-over.md).
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
        client = _ManualAckClient(
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
            timeout=10,
            logger=logging.getLogger("aiomqtt"),
        )
        try:
            async with client:
                yield cls(client)
        except aiomqtt.MqttError as error:
            if not client.taken_over:
                raise
            raise taken_over(address, identifier) from error

    async def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Subscribe; retained messages come first."""
        await self._client.subscribe(topic_filter, qos=qos)

    async def publish(
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
    ) -> None:
        """Publish; with QoS 1 returns when the broker has acknowledged. `expiry` in seconds."""
        packet = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if properties:
            packet.UserProperty = list(properties)
        if response_topic is not None:
            packet.ResponseTopic = response_topic
        if correlation is not None:
            packet.CorrelationData = correlation
        if expiry is not None:
            packet.MessageExpiryInterval = max(1, expiry)
        if content_type is not None:
            packet.ContentType = content_type
        await self._client.publish(topic, payload, qos=qos, retain=retain, properties=packet)

    async def __aiter__(self) -> AsyncIterator[Incoming]:
        async for message in self._client.messages:
            packet = message.properties
            duplicate = self._client.redelivered.popleft()
            payload = message.payload
            yield Incoming(
                topic=str(message.topic),
                payload=payload if isinstance(payload, bytes) else str(payload).encode(),
                properties=tuple(getattr(packet, "UserProperty", ())),
                response_topic=getattr(packet, "ResponseTopic", None),
                correlation=getattr(packet, "CorrelationData", None),
                retain=message.retain,
                duplicate=duplicate,
                qos=message.qos,
                mid=message.mid,
                expiry=getattr(packet, "MessageExpiryInterval", None),
            )

    def waiting(self) -> int:
        """How many received messages are ready to be taken without waiting."""
        return len(self._client.messages)

    def ack(self, incoming: Incoming) -> None:
        """Send PUBACK for a QoS 1 message."""
        if incoming.qos:
            self._client._client.ack(incoming.mid, incoming.qos)
