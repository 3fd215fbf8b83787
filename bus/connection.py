"""aiomqtt's client made fit for an agent: acknowledgement by hand, messages in batches, many publications under way.

This is the only file that touches the private parts of aiomqtt 2.5 and paho 2. What it changes, and what that mends:

- paho's manual acks are on, because aiomqtt has no public ack. With automatic ones 724 of 1,000 messages were lost when
  their consumer was killed.
- The socket does not wait to fill a segment (TCP_NODELAY). Paho leaves that to the system, whose 40 ms between a small
  packet and the next made a call take 70 ms.
- Whatever has arrived is read at once instead of byte by byte, so that messages come in batches and share a commit; what
  is written in one turn of the loop leaves in one piece.
- PUBLISH packets are read and their properties written by `bus.packet`, and a PUBACK costs no objects.
- A publication is a future, not a task with a timeout: the next may follow before the broker has acknowledged the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS, DisconnectFlags, MQTTErrorCode
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bus.packet import Incoming, PublishProperties, read_publish

TAKEN_OVER = 0x8E
"""MQTT 5's reason code "session taken over": another connection came with this one's client id."""
FAILURE = 0x80
"""From here on a reason code says that something failed."""
READ_BYTES = 64 * 1024
"""Bytes read at once: some hundred messages, more than a session has under way."""


class Connection(aiomqtt.Client):
    """A client. Use as a context manager; `receive`, `send` and `ack` replace `messages` and `publish`.

    `taken_over` tells after the connection's end whether another one came with the same client id.

    Args:
        in_flight: publications that may wait for the broker's acknowledgement; further ones wait here.
        options: those of `aiomqtt.Client`.
    """

    def __init__(self, *arguments: Any, in_flight: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._client.manual_ack_set(True)
        self._client.max_inflight_messages_set(in_flight)
        self._puback_with_reason = self._client._handle_pubackcomp
        self._client._handle_pubackcomp = self._handle_puback  # type: ignore[method-assign]
        self._client._handle_publish = self._handle_publish  # type: ignore[method-assign]
        self._thread = threading.get_ident()
        self._arrived: deque[Incoming] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._socket: _BufferedSocket | None = None
        self._unconfirmed: dict[int, tuple[asyncio.Future[None], Callable[[str], Exception]]] = {}
        self.taken_over = False

    async def __aenter__(self) -> Connection:
        """Connect.

        Raises:
            aiomqtt.MqttError: the broker is not there, or refused.
        """
        await super().__aenter__()
        self._disconnected.add_done_callback(self._lost)
        return self

    async def receive(self, limit: int) -> list[Incoming]:
        """Wait for messages and return those that are here, at most `limit`, in the order of their arrival.

        Raises:
            aiomqtt.MqttError: the connection is gone, and all that had arrived was returned.
        """
        while not self._arrived:
            if self._disconnected.done():
                raise aiomqtt.MqttError("Disconnected during message iteration") from self._disconnected.exception()
            self._arrival = self._loop.create_future()
            await self._arrival
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    def send(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: PublishProperties,
        refused: Callable[[str], Exception],
    ) -> asyncio.Future[None]:  # fmt: skip
        """Publish; the future is done when the broker has acknowledged, with QoS 0 at once.

        Its exception is an `aiomqtt.MqttError` when the connection is gone, and what `refused` makes of the broker's reason
        when the broker did not take the message (which aiomqtt would count as sent).
        """
        confirmed: asyncio.Future[None] = self._loop.create_future()
        info = self._client.publish(topic, payload, qos, retain, properties)  # type: ignore[arg-type]
        if info.rc != MQTT_ERR_SUCCESS:
            _fail(confirmed, aiomqtt.MqttCodeError(info.rc, "Could not publish message"))
        elif qos == 0:
            confirmed.set_result(None)
        else:
            self._unconfirmed[info.mid] = confirmed, refused
        return confirmed

    def ack(self, mid: int, qos: int) -> None:
        """Acknowledge a message."""
        self._client.ack(mid, qos)

    def _handle_publish(self) -> MQTTErrorCode:
        packet = self._client._in_packet
        try:
            self._arrived.append(read_publish(packet["command"], packet["packet"]))
        except ValueError as error:
            raise MalformedPacket(str(error)) from error
        self._wake()
        return MQTT_ERR_SUCCESS

    def _handle_puback(self, cmd: Any) -> MQTTErrorCode:
        packet = self._client._in_packet["packet"]
        if cmd != "PUBACK" or len(packet) < 2 or (len(packet) > 2 and packet[2] >= FAILURE):
            return self._puback_with_reason(cmd)
        mid = packet[0] << 8 | packet[1]
        message = self._client._out_messages.pop(mid, None)
        if message is not None:
            message.info._set_as_published()
            self._client._inflight_messages -= 1
            self._confirm(mid, None)
            if len(self._client._out_messages) > self._client._inflight_messages:
                return self._client._update_inflight()
        return MQTT_ERR_SUCCESS

    def _on_publish(
        self, client: PahoClient, userdata: object, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        self._confirm(mid, str(reason_code) if reason_code.is_failure else None)

    def _confirm(self, mid: int, reason: str | None) -> None:
        confirmed, refused = self._unconfirmed.pop(mid, (None, None))
        if confirmed is None or refused is None or confirmed.done():
            return  # at QoS 0 nobody waits; who waited may have given up
        if reason is not None:
            _fail(confirmed, refused(reason))
        else:
            confirmed.set_result(None)

    def _on_disconnect(
        self, client: PahoClient, userdata: object, flags: DisconnectFlags, reason: ReasonCode,
        properties: Properties | None = None,
    ) -> None:  # fmt: skip
        self.taken_over = reason.value == TAKEN_OVER
        super()._on_disconnect(client, userdata, flags, reason, properties)

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _lost(self, _: asyncio.Future[None]) -> None:
        self._wake()
        for confirmed, _refused in self._unconfirmed.values():
            if not confirmed.done():
                _fail(confirmed, aiomqtt.MqttError("Disconnected before the broker acknowledged"))
        self._unconfirmed.clear()

    def _on_socket_open(self, client: PahoClient, userdata: object, sock: Any) -> None:
        super()._on_socket_open(client, userdata, sock)
        self._socket = _BufferedSocket(sock)
        client._sock = self._socket  # type: ignore[assignment]

    def _on_socket_close(self, client: PahoClient, userdata: object, sock: Any) -> None:
        if sock.fileno() > -1:
            self._loop.remove_writer(sock.fileno())
        super()._on_socket_close(client, userdata, sock)

    def _on_socket_register_write(self, client: PahoClient, userdata: object, sock: Any) -> None:
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._write, client, userdata, sock)
        else:  # while connecting, in a thread of aiomqtt's
            super()._on_socket_register_write(client, userdata, sock)

    def _write(self, client: PahoClient, userdata: object, sock: Any) -> None:
        buffered = self._socket
        assert buffered is not None
        try:
            with buffered.together():
                client.loop_write()
        except Exception as error:  # noqa: BLE001 - as aiomqtt: whatever it is, the connection is of no more use
            if not self._disconnected.done():
                self._disconnected.set_exception(error)
            return
        if not self._flush(buffered) and client.socket() is not None:  # the system's buffer is full
            self._loop.add_writer(sock.fileno(), self._write_rest, buffered)

    def _write_rest(self, buffered: _BufferedSocket) -> None:
        if self._flush(buffered):
            self._loop.remove_writer(buffered.fileno())

    def _flush(self, buffered: _BufferedSocket) -> bool:
        try:
            return buffered.flush()
        except OSError:  # the other side is gone: paho closes the socket, which takes it off the loop, and tells aiomqtt
            self._client._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
            return False


def _fail(confirmed: asyncio.Future[None], error: Exception) -> None:
    confirmed.set_exception(error)
    confirmed.exception()  # seen: whoever sent it may be gone, and asyncio would log that as an oversight


class _BufferedSocket:
    """A socket that reads ahead and writes together. aiomqtt reads on while `pending` says that there is something."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._read = memoryview(b"")
        self._written = bytearray()
        self._waits = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def recv(self, size: int) -> bytes:
        if not self._read:
            self._read = memoryview(self._sock.recv(READ_BYTES))
        part, self._read = self._read[:size], self._read[size:]
        return bytes(part)

    def pending(self) -> int:
        hidden = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        return len(self._read) + hidden

    def send(self, data: bytes) -> int:
        """Take all of it: what the system does not take now goes with the next `flush`."""
        self._written += data
        if not self._waits:
            self.flush()
        return len(data)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Hold back what is sent until the next `flush`."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def flush(self) -> bool:
        """Write what is held back; False when the system does not take all of it now."""
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while self._written:
                del self._written[: self._sock.send(self._written)]
        return not self._written

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the last words, where somebody still hears them
            self.flush()
        self._sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
