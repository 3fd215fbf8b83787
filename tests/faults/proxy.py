"""A bad network between an agent and its broker: a TCP proxy that cuts one direction, repeats, delays and throttles.

It carries bytes faithfully until a rule says otherwise. Rules may change while connections are open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from tests.faults.frames import Frames, may_be_repeated, repeated

REPEATED = 0.3
"""Share of publications that a bad network repeats in the scenarios."""
CHUNK = 4096
"""Bytes read at once: small, so that a throttled direction pushes back on its sender soon."""


class Direction(StrEnum):
    """Which way bytes go."""

    UP = "agent to broker"
    DOWN = "broker to agent"


@dataclass
class Rule:
    """What happens to one direction.

    Attributes:
        cut: bytes vanish, as behind a broken route; a connection that lost some stays broken when the rule ends.
        repeat: share of the QoS 1 publications that are sent twice, the second time marked as a repetition.
        delay: seconds that each packet waits.
        bytes_per_second: speed limit; None: none.
    """

    cut: bool = False
    repeat: float = 0.0
    delay: float = 0.0
    bytes_per_second: float | None = None


@dataclass
class Proxy:
    """Listens on a free port of loopback and passes everything on to `host`:`port`. Use as a context manager."""

    port: int
    random: Random
    host: str = "127.0.0.1"
    rules: dict[Direction, Rule] = field(default_factory=lambda: {way: Rule() for way in Direction})
    count: Counter[str] = field(default_factory=Counter)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def listening(self) -> int:
        """The port that agents connect to."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, self.host, 0, limit=CHUNK)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def set(self, **rule: float | bool | None) -> None:
        """Replace the rules of both directions."""
        for way in Direction:
            self.rules[way] = Rule(**rule)  # type: ignore[arg-type]

    def heal(self) -> None:
        """Be a good network again. Connections that lost bytes stay broken until one of their ends gives up."""
        self.set()

    def reset(self) -> None:
        """Break all connections, as a router that is switched off."""
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        try:
            other_reader, other_writer = await asyncio.open_connection(self.host, self.port, limit=CHUNK)
            ends.append(other_writer)
            self.count["connections"] += 1
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(Direction.UP, reader, other_writer))
                pumps.create_task(self._pump(Direction.DOWN, other_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass  # the broker is away, or one end has gone: both ends see a closed connection
        finally:
            for end in ends:
                end.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames, broken = Frames(), False
        while data := await reader.read(CHUNK):
            broken = broken or self.rules[way].cut
            if broken:
                self.count[f"lost {way}"] += len(data)
                continue
            for packet in frames.feed(data):
                await self._pass(way, packet, writer)
        if broken:
            await asyncio.Event().wait()  # the end of the connection is lost as well: the receiver has to find out
        raise ConnectionResetError("one end has closed the connection")

    async def _pass(self, way: Direction, packet: bytes, writer: asyncio.StreamWriter) -> None:
        rule = self.rules[way]
        copies = [packet]
        if rule.repeat and may_be_repeated(packet) and self.random.random() < rule.repeat:
            copies.append(repeated(packet))
            self.count[f"repeated {way}"] += 1
        if rule.delay:
            await asyncio.sleep(rule.delay)
        for copy in copies:
            if rule.bytes_per_second is None:
                writer.write(copy)
            else:
                for start in range(0, len(copy), CHUNK):
                    part = copy[start : start + CHUNK]
                    writer.write(part)
                    await asyncio.sleep(len(part) / rule.bytes_per_second)
        await writer.drain()
