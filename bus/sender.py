"""Sending what is due: replies, publications, and calls again and again until they are answered or too late.

Knows the store and something to publish with; what is sent comes from committed transactions only.
"""

from __future__ import annotations

import math
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from itertools import islice
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
BATCH = 64
"""Replies, publications and calls of each kind that are sent before the first is acknowledged. The session has half as many
under way with the broker, so it never runs dry, and a broken connection repeats no more than these."""
REPLY_KEPT = 3600
"""Seconds for which the broker keeps a reply for a caller that is away; after that the caller's repetition gets it."""


class Publisher(Protocol):
    """What sends: a `bus.session.Session`, or a stand-in for one."""

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
    ) -> Awaitable[None]:
        """Publish in the order of the calls; awaited, returns when the receiver has acknowledged."""


class Opening(Protocol):
    """Opens a transaction of the agent: at its clock, which follows the wall clock where that was set."""

    def __call__(self, *, durable: bool = True) -> AbstractContextManager[Transaction]: ...


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
        transaction: Opening, now: Callable[[], datetime],
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
        """Send what is due now, all of it before the first is acknowledged; what a broken connection interrupts stays due.

        Returns:
            Whether more may be due: the batch was full, or calls wait behind those that were sent.
        """
        now = self.now()
        replies = [(reply, self._send_reply(session, *reply)) for reply in islice(self.replies, BATCH)]
        publications = [(row["number"], self._send_publication(session, row)) for row in self.store.publications(BATCH)]
        calls = [(row, self._send_call(session, row)) for row in self._due_calls(now)]
        published: int | None = None
        sent: list[tuple[str, float]] = []
        try:
            for (topic, _, _), reply in replies:
                await self._confirm_reply(topic, reply)
                self.replies.popleft()
            for number, publication in publications:
                await publication
                published = number
            for row, call in calls:
                await call
                sent.append((row["id"], min(REPEAT[0] * 2 ** row["attempts"], REPEAT[1])))
        finally:
            if published is not None or sent:
                with self.transaction(durable=False) as tx:  # forgotten by a power cut, it is only sent once more
                    if published is not None:
                        self.store.published(published)
                    self.store.sent([(identity, tx.now + timedelta(seconds=pause)) for identity, pause in sent])
        return bool(calls or self.replies) or len(publications) == BATCH

    def _due_calls(self, now: datetime) -> list[sqlite3.Row]:
        due = self.store.due_calls(now, BATCH)
        late = [row for row in due if row["deadline"] is not None and row["deadline"] < now.timestamp()]
        if late:
            with self.transaction() as tx:
                for row in late:
                    self.outbox.expire(row, tx)
        return [row for row in due if row not in late]

    def _send_reply(
        self, session: Publisher, topic: str, payload: bytes, correlation: bytes | None
    ) -> Awaitable[None] | None:
        # The caller chooses the topic: it must not make this agent say something elsewhere, nor stop it.
        name = topic.removeprefix(self._reply_area)
        if name in ("", topic) or set(name) & set("/+#"):
            self.log.warning("reply dropped", topic=topic, reason="not a reply topic of this lab")
            return None
        return session.publish(topic, payload, correlation=correlation, expiry=REPLY_KEPT)

    async def _confirm_reply(self, topic: str, reply: Awaitable[None] | None) -> None:
        if reply is not None:
            try:
                await reply
            except Refused as error:
                self.log.warning("reply dropped", topic=topic, reason=str(error))

    def _send_publication(self, session: Publisher, row: sqlite3.Row) -> Awaitable[None]:
        return session.publish(row["topic"], row["payload"], retain=bool(row["retain"]), expiry=row["expiry"])

    def _send_call(self, session: Publisher, row: sqlite3.Row) -> Awaitable[None]:
        message = MCPMessage.model_validate_json(row["message"])
        role = METHODS[row["method"]].role
        topic = (
            self.topics.of("direct", role=role, agent=row["recipient"], method=row["method"])
            if row["recipient"]
            else self.topics.of("call", role=role, method=row["method"])
        )
        return session.publish(
            topic, message.body(), properties=message.properties(), correlation=message.id.encode(),
            response_topic=self._reply_topic,
            expiry=None if row["deadline"] is None else math.ceil(row["deadline"] - self.now().timestamp()),
        )  # fmt: skip
