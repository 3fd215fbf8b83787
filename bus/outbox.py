"""Calls going out: what becomes of their answers, and of those that get none in time.

Works inside a transaction of the agent; knows the store, not the network. `bus.sender` sends what is here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

import structlog

from bus.inbox import ATTEMPTS
from bus.session import Incoming
from bus.store import passing
from bus.transaction import Answer, Transaction
from protocol.dead import DeadLetter
from protocol.envelope import MCPMessage, Reply
from protocol.errors import Code, LabError
from protocol.methods import METHODS

ReplyHandler = Callable[[Answer, Transaction], None]


class Outbox:
    """The calls of one agent.

    Args:
        role: the agent's role.
        handlers: method to the handler of its answers; a method without one is answered into the void.
    """

    def __init__(self, role: str, handlers: dict[str, ReplyHandler]) -> None:
        self.role = role
        self.handlers = handlers
        self.log = structlog.get_logger()

    def take(self, incoming: Incoming, tx: Transaction) -> None:
        """Handle a reply that came in. One to a call that is not waited for does nothing: callees repeat themselves."""
        try:
            reply = Reply.parse(incoming.payload)
        except LabError as error:
            tx.publish("dead", DeadLetter.of("reply", incoming.payload, str(error), 1, tx.now), role=self.role)
            return
        row = tx.store.outgoing(reply.id)
        if row is not None:
            self.answer(row, reply, tx)

    def expire(self, row: sqlite3.Row, tx: Transaction) -> None:
        """Answer a call whose deadline has passed."""
        gone = LabError(Code.EXPIRED, f"{row['method']} was not answered before its deadline.")
        self.answer(row, Reply(id=row["id"], error=gone.body()), tx)

    def answer(self, row: sqlite3.Row, reply: Reply, tx: Transaction) -> None:
        """Hand a reply to its handler and forget the call; a handler that fails is tried again with the repeated reply."""
        method = row["method"]
        error = LabError.from_body(reply.error) if reply.error else None
        after = len(tx._after)
        message = MCPMessage.model_validate_json(row["message"])
        with tx.about(message.traceparent, job=row["key"], answer_to=method):
            try:
                with tx.store.savepoint():
                    result = None if error else METHODS[method].result.model_validate(reply.result)
                    handler = self.handlers.get(method)
                    if handler is not None:
                        handler(Answer(row["id"], method, row["key"], json.loads(row["context"]), result, error), tx)
                    tx.store.answered(row["id"])
            except Exception as failure:  # the boundary: a broken reply handler must not stop the other messages
                if passing(failure):
                    raise  # a full disk or a locked file is no fault of the reply: the whole transaction is done again
                del tx._after[after:]
                self.log.exception("reply handler crashed")
                if tx.store.reply_failed(row["id"]) >= ATTEMPTS:
                    reason = f"{type(failure).__name__}: {failure}"
                    letter = DeadLetter.of(method, reply.body(), reason, ATTEMPTS, tx.now)
                    tx.publish("dead", letter, role=self.role)
                    tx.store.answered(row["id"])
