"""Sending what is due: replies, publications, and calls again and again until they are answered or too late.

Knows the store and something to publish with; what is sent comes from committed transactions only.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from bus.outbox import Outbox
from bus.session import Refused
from bus.store import Store
from bus.transaction import Transaction
from protocol.envelope import MCPMessage
from protocol.methods import METHODS
from protocol.topics import Topics

REPEAT = (1.0, 30.0)
"""Seconds until an unanswered call is sent again: first and longest; doubles in between."""
BATCH = 32
"""Publications and calls taken at once for sending; the broker's own Receive Maximum towards us is larger."""
REPLY_KEPT = 3600
"""Seconds for which the broker keeps a reply for a caller that is away; after that the caller's repetition gets it."""


class Publisher(Protocol):
    """What sends: a `bus.session.Session`, or a stand-in for one."""

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
    ) -> None:
        """Publish; returns when the receiver has acknowledged."""


class Sender:
    """What one agent has to send.

    Args:
        client: the agent's name as a client; replies to its calls come to the topic `reply/{client}`.
        topics: the lab's topics.
        store: where publications and calls wait.
        outbox: gets the calls whose deadline has passed.
        transaction: opens a transaction of the agent.
        now: the agent's clock.
    """

    def __init__(
        self, client: str, topics: Topics, store: Store, outbox: Outbox,
        transaction: Callable[[], AbstractContextManager[Transaction]], now: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self.topics = topics
        self.store = store
        self.outbox = outbox
        self.transaction = transaction
        self.now = now
        self.replies: deque[tuple[str, bytes, bytes | None]] = deque()
        self.log = structlog.get_logger()
        self._reply_topic = topics.of("reply", client=client)
        self._reply_area = topics.of("reply", client="")

    async def send_due(self, session: Publisher) -> bool:
        """Send what is due now; what a broken connection interrupts stays due.

        Returns:
            Whether calls were sent: others may be due behind them.
        """
        await self._send_replies(session)
        await self._send_publications(session)
        now = self.now()
        due = self.store.due_calls(now, BATCH)
        late = [row for row in due if row["deadline"] is not None and row["deadline"] < now.timestamp()]
        for row in late:
            with self.transaction() as tx:
                self.outbox.expire(row, tx)
        live = [row for row in due if row not in late]
        await asyncio.gather(*(self._send_call(session, row) for row in live))
        if live:
            with self.store.transaction():
                for row in live:
                    pause = min(REPEAT[0] * 2 ** row["attempts"], REPEAT[1])
                    self.store.sent(row["id"], now + timedelta(seconds=pause))
        return bool(live)

    async def _send_replies(self, session: Publisher) -> None:
        while self.replies:
            topic, payload, correlation = self.replies[0]
            # The caller chooses the topic: it must not make this agent say something elsewhere, nor stop it.
            if topic.startswith(self._reply_area):
                try:
                    await session.publish(topic, payload, correlation=correlation, expiry=REPLY_KEPT)
                except Refused as error:
                    self.log.warning("reply dropped", topic=topic, reason=str(error))
            else:
                self.log.warning("reply dropped", topic=topic, reason="not a reply topic of this lab")
            self.replies.popleft()

    async def _send_publications(self, session: Publisher) -> None:
        while rows := self.store.publications(BATCH):
            for row in rows:
                await session.publish(row["topic"], row["payload"], retain=bool(row["retain"]), expiry=row["expiry"])
                with self.store.transaction():
                    self.store.published(row["number"])

    async def _send_call(self, session: Publisher, row: sqlite3.Row) -> None:
        message = MCPMessage.model_validate_json(row["message"])
        role = METHODS[row["method"]].role
        topic = (
            self.topics.of("direct", role=role, agent=row["recipient"], method=row["method"])
            if row["recipient"]
            else self.topics.of("call", role=role, method=row["method"])
        )
        await session.publish(
            topic, message.body(), properties=message.properties(), correlation=message.id.encode(),
            response_topic=self._reply_topic,
            expiry=None if row["deadline"] is None else math.ceil(row["deadline"] - self.now().timestamp()),
        )  # fmt: skip
