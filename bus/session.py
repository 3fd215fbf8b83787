"""One MQTT 5 session on aiomqtt, with acknowledgement in the caller's hand.

This is the only file that touches aiomqtt's private parts (version 2.5 has no public ack): paho's manual acks are on,
and PUBACK goes out when the caller says so, which is after its transaction committed. With automatic acks 724 of
1,000 messages were lost when the consumer was killed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import DisconnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bus.address import BrokerAddress, tls_failure
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
        self._refusals: dict[int, str] = {}
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

    def _on_publish(
        self, client: PahoClient, userdata: object, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            self._refusals[mid] = str(reason_code)
        super()._on_publish(client, userdata, mid, reason_code, properties)

    @contextmanager
    def _pending_call(self, mid: int, value: Any, pending_dict: dict[int, Any]) -> Iterator[None]:
        with super()._pending_call(mid, value, pending_dict):
            yield
        reason = self._refusals.pop(mid, None)
        if reason is not None:  # aiomqtt looks at no PUBACK's reason: a refused message would count as sent
            raise Refused(reason)


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

    def __init__(self, client: _ManualAckClient, login: str | None = None) -> None:
        self._client = client
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
            tls_context=address.tls_context(),
            logger=logging.getLogger("aiomqtt"),
        )
        try:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(client)
                except aiomqtt.MqttError as error:
                    if (wrong := tls_failure(error, address)) is not None:
                        raise wrong from error
                    raise
                yield cls(client, address.username)
        except aiomqtt.MqttError as error:
            if not client.taken_over:
                raise
            raise taken_over(address, identifier) from error

    async def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Subscribe; retained messages come first.

        Raises:
            Refused: the broker's rules do not allow it.
        """
        for code in await self._client.subscribe(topic_filter, qos=qos):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise Refused(str(code), self._login, "subscribe to", topic_filter)

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
        """Publish; with QoS 1 returns when the broker has acknowledged. `expiry` in seconds.

        Raises:
            Refused: the broker's rules do not allow it (known with QoS 1 only).
        """
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
        try:
            await self._client.publish(topic, payload, qos=qos, retain=retain, properties=packet)
        except Refused as error:
            raise Refused(error.reason, self._login, "publish to", topic) from None

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
