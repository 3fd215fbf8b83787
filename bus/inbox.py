"""Calls coming in: checked, taken in once, handled most urgent first, answered.

Works inside a transaction of the agent; knows the store, not the network.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import structlog
from pydantic import BaseModel, ValidationError

from bus import trace
from bus.redact import of_error
from bus.session import Incoming
from bus.store import passing
from bus.transaction import Deferred, Transaction
from protocol.dead import DeadLetter
from protocol.envelope import MCPMessage, Reply, decode_call
from protocol.errors import Code, LabError, Retry
from protocol.methods import METHODS

BATCH = 50
"""Calls handled in one transaction: groups of 50 reached 6,754 commits/s at synchronous=FULL, single ones 300."""
ATTEMPTS = 5
"""How often a call whose handler crashes is tried before it becomes a dead letter (architecture §3)."""
WAITING_LIMIT = 2000
"""Calls waiting in the inbox before new ones get `busy`: bounds memory and the time to answer."""
TWIN_WINDOW = timedelta(hours=1)
"""How far back a redelivered call without an id is looked for; a broker redelivers at once after a reconnect."""

Handler = Callable[[MCPMessage, Transaction], BaseModel | Deferred]


class Refuse(Protocol):
    """Tell the world of a refused call that has nowhere to send an error reply to; True if that was done."""

    def __call__(self, message: MCPMessage, error: LabError, tx: Transaction) -> bool: ...


@dataclass
class Outgoing:
    """Replies to send once the transaction is committed: (topic, payload, correlation)."""

    replies: list[tuple[str, bytes, bytes | None]] = field(default_factory=list)


class Inbox:
    """The calls of one agent.

    Args:
        role: the agent's role.
        handlers: method to handler.
        refuse: see Refuse.
        buries: whether what it cannot handle goes to the dead letters; else only the log tells.
    """

    def __init__(self, role: str, handlers: dict[str, Handler], refuse: Refuse, *, buries: bool = True) -> None:
        self.role = role
        self.handlers = handlers
        self.refuse = refuse
        self.buries = buries
        self.log = structlog.get_logger()
        self._checked: tuple[MCPMessage, BaseModel] | None = None

    def take(self, incoming: Incoming, method: str, tx: Transaction, out: Outgoing) -> None:
        """Store a call that came in, or answer it at once: repeated, conflicting, malformed, or too many waiting."""
        try:
            message = decode_call(method, incoming.payload, incoming.properties)
        except LabError as error:
            identity = str(error.data.get("id", "")) or (incoming.correlation or b"").decode("utf-8", "replace")
            known_id = str(error.data.get("id", ""))
            fresh = known_id and tx.store.find_call(known_id) is None  # another request's state must stay
            named = MCPMessage(id=known_id, type=method) if fresh else None
            self._answer_error(incoming, identity, error, tx, out, named)
            return
        if "timestamp" not in message.model_fields_set:
            message.timestamp = tx.now
        if incoming.expiry is not None:  # durations mean the same on every machine, its clock may be another one's
            message.deadline = tx.now + timedelta(seconds=incoming.expiry)
        if not trace.valid(message.traceparent):
            message.traceparent = trace.start()
        canonical = json.dumps([method, message.data], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        known = tx.store.find_call(message.id)
        if known is None and message.generated_id and incoming.duplicate:
            known = tx.store.find_twin(digest, tx.now - TWIN_WINDOW)
        if known is not None:
            self._take_again(known, message, digest, incoming, tx, out)
            return
        if tx.waiting is None:
            tx.waiting = tx.store.pending_count()
        if tx.waiting >= WAITING_LIMIT:
            busy = LabError(
                Code.BUSY, f"{self.role} has {WAITING_LIMIT} calls waiting.", advice="Send it again in 5 seconds.",
                retry=Retry.LATER, retry_after=5,
            )  # fmt: skip
            self._answer_error(incoming, message.id, busy, tx, out)
            return
        text = json.dumps({**message.model_dump(mode="json"), "generated_id": message.generated_id})
        response = (incoming.response_topic, incoming.correlation)
        tx.store.take_in(message.id, digest, text, message.priority, response, tx.now)
        tx.waiting += 1
        tx.taken[message.id] = message

    def _take_again(
        self, row: sqlite3.Row, message: MCPMessage, digest: str, incoming: Incoming, tx: Transaction, out: Outgoing
    ) -> None:
        if row["digest"] != digest and not _same(MCPMessage.model_validate_json(row["message"]), message):
            conflict = LabError(
                Code.CONFLICT, f"the id {message.id!r} was used before with another body.",
                advice="Send the same body again, or choose a new id.", field="id",
            )  # fmt: skip
            self._answer_error(incoming, message.id, conflict, tx, out)
            return
        if incoming.response_topic:
            tx.connection.execute(
                "UPDATE inbox SET response_topic = ?, correlation = ? WHERE id = ?",
                (incoming.response_topic, incoming.correlation, row["id"]),
            )
        if row["state"] == "done":
            self.collect([row["id"]], tx, out)

    def _answer_error(
        self, incoming: Incoming, identity: str, error: LabError, tx: Transaction, out: Outgoing,
        named: MCPMessage | None = None,
    ) -> None:  # fmt: skip
        self.log.warning("call refused", topic=incoming.topic, **of_error(error))
        if incoming.response_topic:
            payload = Reply(id=identity, error=error.body()).body()
            out.replies.append((incoming.response_topic, payload, incoming.correlation))
        elif named is None or not self.refuse(named, error, tx):
            self._bury(incoming.topic, incoming.payload, str(error), 1, tx)

    def _bury(self, topic: str, payload: bytes, reason: str, attempts: int, tx: Transaction) -> None:
        if not self.buries:
            self.log.error("a call is dropped", topic=topic)
            return
        tx.publish("dead", DeadLetter.of(topic, payload, reason, attempts, tx.now), role=self.role)

    def handle_pending(self, tx: Transaction) -> int:
        """Handle the waiting calls whose time has come, at most BATCH; returns how many there were."""
        rows = tx.store.pending(tx.now, BATCH)
        for row in rows:
            message = tx.taken.get(row["id"]) or MCPMessage.model_validate_json(row["message"])
            self._handle(message, row["response_topic"], tx)
        return len(rows)

    def _handle(self, message: MCPMessage, response_topic: str | None, tx: Transaction) -> None:
        after = len(tx._after)
        job = message.data.get("job")
        with tx.about(message.traceparent, job=job, message=message.id, method=message.type):
            try:
                with tx.store.savepoint():
                    outcome = self._dispatch(message, tx)
                    if isinstance(outcome, Deferred):
                        tx.connection.execute(
                            "UPDATE inbox SET state = 'open' WHERE id = ? AND state = 'pending'", (message.id,)
                        )
                    else:
                        tx.reply(message.id, outcome)
            except LabError as error:
                del tx._after[after:]
                self.log.warning("call refused", **of_error(error))
                if response_topic is None and not self.refuse(message, error, tx):
                    self._bury(message.type, message.body(), str(error), 1, tx)
                tx.reply(message.id, error)
            except Exception as error:  # the boundary: one broken handler must not stop the agent's other calls
                if passing(error):
                    raise  # a full disk or a locked file is no fault of the call: the whole transaction is done again
                del tx._after[after:]
                self.log.exception("handler crashed")
                attempts = tx.store.postpone_call(message.id, tx.now + timedelta(seconds=0.2))
                if attempts >= ATTEMPTS:
                    self._bury(message.type, message.body(), f"{type(error).__name__}: {error}", attempts, tx)
                    tx.reply(
                        message.id,
                        LabError(
                            Code.INTERNAL, f"{self.role} failed {attempts} times: {type(error).__name__}: {error}.",
                            advice=f"Its log says more; the message is on dead/{self.role}.",
                        ),
                    )  # fmt: skip

    def _dispatch(self, message: MCPMessage, tx: Transaction) -> BaseModel | Deferred:
        if message.deadline is not None and message.deadline < tx.now:
            raise LabError(Code.EXPIRED, f"the deadline {message.deadline.isoformat()} has passed.", retry=Retry.LATER)
        handler = self.handlers.get(message.type)
        if handler is None:
            served = ", ".join(sorted(self.handlers))
            raise LabError(
                Code.UNKNOWN_METHOD, f"{self.role} has no method {message.type!r}.", advice=f"It has: {served}."
            )
        self.params(message)
        return handler(message, tx)

    def params(self, message: MCPMessage) -> BaseModel:
        """Return a call's params as its method's model, checked once for the whole handling of the call.

        Raises:
            LabError: INVALID_PARAMS naming the fields.
        """
        if self._checked is None or self._checked[0] is not message:
            self._checked = message, parameters(message)
        return self._checked[1]

    def collect(self, identities: list[str], tx: Transaction, out: Outgoing) -> None:
        """Take the stored replies of answered calls for sending, and forget the repeatable ones with them."""
        for identity in identities:
            row = tx.store.find_call(identity)
            if row is None or row["reply"] is None or not row["response_topic"]:
                continue
            out.replies.append((row["response_topic"], row["reply"].encode(), row["correlation"]))
            method = METHODS.get(json.loads(row["message"])["type"])
            if method is not None and method.repeatable:
                tx.store.forget_call(identity)


def _same(known: MCPMessage, message: MCPMessage) -> bool:
    """Whether two bodies ask for the same: one may spell out what the other leaves to the defaults."""
    try:
        return known.type == message.type and parameters(known) == parameters(message)
    except (LabError, KeyError):  # one of them is wrong, or no method has its name: then only equal bytes are the same
        return False


def parameters(message: MCPMessage) -> BaseModel:
    """Return a call's params as the method's model.

    Raises:
        LabError: INVALID_PARAMS naming the fields.
    """
    try:
        return METHODS[message.type].params.model_validate(message.data)
    except ValidationError as error:
        raise LabError.from_validation(error, f"{message.type} has wrong parameters") from error
