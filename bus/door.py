"""The door for people: forwards their connections to a broker that takes none without a login, and only while it is open.

    python -m bus.door --listen 0.0.0.0:1883 --agents router-1,conductor-1

Who brings no login gets the door's own, which has a person's rights; a door without one turns him away. The door opens
when all agents are announced and subscribed, and closes, with every connection, when the broker goes: nothing that a
person publishes can go nowhere (docs/decisions/0003-user-gate.md).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import ssl
import struct
import sys
from collections.abc import Collection

import aiomqtt
import structlog

from bus.acl import DOOR
from bus.address import BrokerAddress
from bus.broker import await_agents
from bus.logs import configure
from bus.session import MAX_PACKET, Session
from bus.tasks import end
from protocol.address import Endpoint
from protocol.errors import Code, LabError, Retry
from protocol.ids import uuid7
from protocol.topics import Topics

HELLO_SECONDS = 10.0
"""A connection that has not said CONNECT by then is closed."""
MOST = 512
"""Connections at a time; each costs some 100 kB of buffers."""
CHUNK = 64 * 1024
PAUSE = 1.0
"""Seconds between attempts to reach the broker."""
USERNAME, PASSWORD = 0x80, 0x40
"""Flags of CONNECT (MQTT 5 §3.1.2.3)."""


class Connect:
    """A CONNECT packet, as far as a login is concerned (MQTT 3.1 to 5, §3.1).

    Args:
        body: everything after the fixed header.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        if len(body) < 8:
            raise ValueError("a CONNECT packet is longer")
        self._level = 2 + struct.unpack_from("!H", body)[0]
        if body[2 : self._level] not in (b"MQTT", b"MQIsdp") or self._level + 1 >= len(body):
            raise ValueError("not a CONNECT packet of MQTT")

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Connect:
        """Read the first packet of a connection.

        Raises:
            ValueError: it is no CONNECT packet, or a too large one.
            asyncio.IncompleteReadError: the connection ended.
        """
        if await reader.readexactly(1) != b"\x10":
            raise ValueError("the first packet is no CONNECT")
        length = shift = 0
        while True:
            [byte] = await reader.readexactly(1)
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 21:
                raise ValueError("the length is malformed")
        if length > MAX_PACKET:
            raise ValueError(f"the packet has {length} bytes")
        return cls(await reader.readexactly(length))

    @property
    def has_login(self) -> bool:
        """Whether it names a user."""
        return bool(self.body[self._level + 1] & USERNAME)

    def packet(self) -> bytes:
        """Return it with its fixed header."""
        length, rest = b"", len(self.body)
        while True:
            rest, low = divmod(rest, 128)
            length += bytes([low | (0x80 if rest else 0)])
            if not rest:
                return b"\x10" + length + self.body

    def with_login(self, username: str, password: str) -> Connect:
        """Return it with a login, which stands at the end of every CONNECT."""
        flags = self._level + 1
        fields = b"".join(struct.pack("!H", len(text)) + text for text in (username.encode(), password.encode()))
        changed = bytes([self.body[flags] | USERNAME | PASSWORD])
        return Connect(self.body[:flags] + changed + self.body[flags + 1 :] + fields)

    def refusal(self) -> bytes:
        """Return the CONNACK that says: not authorised."""
        return b"\x20\x03\x00\x87\x00" if self.body[self._level] == 5 else b"\x20\x02\x00\x05"


class Door:
    """A listener that can be opened and closed.

    Args:
        listen: where.
        broker: where the connections go; its login, if it has one, is given to who brings none.
        tls: the certificate to show; None: no TLS.
        guests: pass on who brings no login although the door has none to give: the broker decides.
    """

    def __init__(
        self, listen: Endpoint, broker: BrokerAddress, *, tls: ssl.SSLContext | None = None, guests: bool = False
    ) -> None:
        self.listen = listen
        self.broker = broker
        self.tls = tls
        self.guests = guests
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether people are let in."""
        return self._server is not None

    @property
    def port(self) -> int:
        """The port on which an open door listens."""
        if self._server is None:
            raise RuntimeError("the door is closed")
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Begin to let people in.

        Raises:
            LabError: BUSY or CONFIGURATION when one cannot listen there.
        """
        if self._server is not None:
            return
        port = self.listen.port_or()
        try:
            self._server = await asyncio.start_server(
                self._enter, self.listen.host, port, ssl=self.tls,
                ssl_handshake_timeout=HELLO_SECONDS if self.tls else None,
            )  # fmt: skip
        except OSError as error:
            raise LabError(
                Code.BUSY, f"nobody can listen on {self.listen.host}:{port}: {error.strerror or error}.",
                advice="Choose another address or port with --listen.", retry=Retry.LATER, field="listen",
            ) from error  # fmt: skip

    async def close(self) -> None:
        """Let nobody in any more, and cut every connection."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        await end(list(self._connections))

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) <= MOST:
                await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            pass  # either side went away, or it was no MQTT; whoever it was sees the connection end
        except asyncio.CancelledError:
            pass  # the door closes; nobody awaits this task but `close`
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            hello = await Connect.read(reader)
        if not hello.has_login and self.broker.username is not None and self.broker.password is not None:
            hello = hello.with_login(self.broker.username, self.broker.password)
        elif not hello.has_login and not self.guests:
            writer.write(hello.refusal())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        inside_reader, inside_writer = await asyncio.open_connection(
            self.broker.host, self.broker.port, ssl=self.broker.tls_context()
        )
        try:
            inside_writer.write(hello.packet())
            ways = {asyncio.create_task(_pipe(reader, inside_writer)), asyncio.create_task(_pipe(inside_reader, writer))}
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(ways)
        finally:
            inside_writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # the other side went away; so does this one
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


async def keep(door: Door, lab: str, agents: Collection[str]) -> None:
    """Open the door when all agents are there, close it when the broker goes, without end.

    Raises:
        LabError: the broker's certificate or rules, or the door's address, are wrong.
    """
    log = structlog.get_logger()
    while True:
        try:
            async with Session.connect(door.broker, f"meetara-door-{uuid7()}", durable=False) as session:
                log.info("waiting", agents=sorted(agents))
                await await_agents(session, Topics(lab), agents, subscribed=True)
                await door.open()
                log.info("open", listen=f"{door.listen.host}:{door.port}")
                async for incoming in session:  # until the connection breaks
                    session.ack(incoming)
        except aiomqtt.MqttError as error:
            log.warning("closed", reason=str(error))
        finally:
            await door.close()
        await asyncio.sleep(PAUSE)


def main(arguments: list[str] | None = None) -> int:
    """Keep a door until SIGTERM; exits with 2 when something has to be corrected first."""
    parser = argparse.ArgumentParser(prog="python -m bus.door", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:1883", help="HOST:PORT for people")
    parser.add_argument("--agents", required=True, help="ids of the agents that must be there, by commas")
    parser.add_argument("--lab", default=os.environ.get("MEETARA_LAB", "lab"))
    parser.add_argument(
        "--host", metavar="ADDRESS",
        help="the broker (MEETARA_BROKER); its login is MEETARA_BROKER_USER and MEETARA_BROKER_PASSWORD_FILE",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    configure(DOOR, "console" if os.environ.get("MEETARA_LOG") == "console" else "json")
    agents = [agent for agent in options.agents.split(",") if agent]

    async def serve() -> None:
        door = Door(Endpoint.parse(options.listen), BrokerAddress.read(os.environ, broker=options.host))
        work = asyncio.create_task(keep(door, options.lab, agents))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work

    try:
        asyncio.run(serve())
    except (LabError, ValueError) as error:
        print(f"door: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
