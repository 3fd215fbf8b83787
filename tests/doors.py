"""A lab's broker with a door of TLS before it, as workers reach it from elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.gguf_factory import worker as module
from agents.gguf_factory.worker import Worker
from bus import certs, workers
from bus.broker import Broker, free_port
from bus.door import Door
from bus.mosquitto import find_mosquitto
from bus.session import Session
from protocol.address import Endpoint
from protocol.machine import Card, Presence

AGENTS = {"conductor-1": "conductor", "gpu_orchestrator-1": "gpu_orchestrator"}


class Ground:
    """A broker, a door, and the orchestrator's login as `control`."""

    def __init__(self, broker: Broker, door: Door, folder: Path) -> None:
        self.broker, self.door, self.folder = broker, door, folder
        self.control = broker.address("gpu_orchestrator-1")

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.door.port}"

    def token(self, rental: str) -> workers.Token:
        return workers.make(rental, provider="vast", ca=self.folder / "certs" / "ca.pem")

    def worker(
        self, token: workers.Token, tell: Callable[[dict[str, Any]], None] = lambda _: None, **given: Any
    ) -> Worker:
        whole = {"broker": self.url, "home": self.folder / token.worker, "ca": None, "slots": 1, "wait": 60.0, "idle": 600.0}
        return module.worker_of(argparse.Namespace(**{**whole, **given}), token, tell)

    @contextlib.asynccontextmanager
    async def watching(self, worker: str) -> AsyncIterator[Session]:
        """Listen to a worker's card and presence as the orchestrator does."""
        async with Session.connect(self.control, f"watch-{worker}", durable=False) as session:
            for kind in ("card", "presence"):
                await session.subscribe(f"meetara/v1/lab/agent/gguf_factory/{worker}/{kind}")
            yield session


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Ground]:
    """Run a broker and a door in a folder."""
    certs.make(folder / "certs", hosts=[], now=datetime.now(UTC))
    broker = Broker(folder, 0, agents=AGENTS, program=find_mosquitto())
    await broker.start()
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "certs" / "broker.pem", folder / "certs" / "broker.key")
        door = Door(Endpoint("127.0.0.1", free_port(), tls=True), broker.address(), tls=context)
        await door.open()
        try:
            yield Ground(broker, door, folder)
        finally:
            await door.close()
    finally:
        await broker.stop()


async def heard(session: Session) -> dict[str, Any]:
    """Return the first card and presence that come."""
    found: dict[str, Any] = {}
    async with asyncio.timeout(30):
        while len(found) < 2:
            for incoming in await session.receive():
                session.ack(incoming)
                kind = incoming.topic.rpartition("/")[2]
                found[kind] = (Card if kind == "card" else Presence).model_validate_json(incoming.payload)
    return found
