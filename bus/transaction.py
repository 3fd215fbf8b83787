"""What a handler may do: everything in it commits together with the message's receipt, or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from bus import trace
from bus.store import Event, Store
from protocol.envelope import MAX_BYTES, MCPMessage, Reply
from protocol.errors import Code, LabError
from protocol.ids import uuid7
from protocol.topics import BY_NAME, Topics

ABOUT = "_about"
"""Where a timer's data keep its trace and job."""


class Deferred:
    """What a handler returns when the answer comes later, by `Transaction.reply`."""


DEFERRED = Deferred()


@dataclass(frozen=True)
class Answer:
    """The answer to a durable call. `result` is None exactly when `error` is not."""

    call_id: str
    method: str
    key: str
    context: dict[str, Any]
    result: BaseModel | None
    error: LabError | None


@dataclass
class Transaction:
    """An open transaction of an agent's store.

    `now` is the agent's clock, read once, so that everything in one transaction has one time. `taken` are the calls that came
    in within it, `waiting` is how many are pending; the inbox keeps both, to read nothing twice.
    """

    store: Store
    topics: Topics
    sender: str
    now: datetime
    traceparent: str | None = None
    taken: dict[str, MCPMessage] = field(default_factory=dict)
    waiting: int | None = None
    _after: list[Callable[[], object]] = field(default_factory=list)
    _replies: list[str] = field(default_factory=list)

    @property
    def connection(self) -> sqlite3.Connection:
        """The database connection, for the agent's own tables."""
        return self.store.connection

    def call(
        self,
        method: str,
        params: BaseModel,
        *,
        to: str | None = None,
        key: str = "",
        context: dict[str, Any] | None = None,
        priority: int = 1,
        id: str | None = None,
        deadline: datetime | None = None,
    ) -> str:
        """Call a method durably: sent again and again until its reply is in the store, or the deadline passed.

        Args:
            method: a name of protocol.methods.
            params: its parameters.
            to: an agent's id, to address that one; default: whoever serves the method.
            key: the caller's own key (a job's id); `drop_calls` finds the call by it.
            context: JSON given back with the answer.
            priority: 1 to 3.
            id: a stable message id: the same id again is the same call.
            deadline: after it the call is answered with EXPIRED here.

        Returns:
            The message id.
        """
        message = MCPMessage(
            id=id or uuid7(int(self.now.timestamp() * 1000)), timestamp=self.now, sender=self.sender, recipient=to, type=method,
            data=params.model_dump(mode="json"), priority=priority, deadline=deadline,
            traceparent=self.traceparent,
        )  # fmt: skip
        self.store.send(message.id, method, to, message.model_dump_json(), key, context or {}, deadline, self.now)
        return message.id

    def drop_calls(self, key: str, method: str | None = None) -> None:
        """Forget own unanswered calls: their answers will be ignored."""
        self.store.drop_calls(key, method)

    def reply(self, message_id: str, result: BaseModel | LabError) -> None:
        """Answer a call that was deferred. Answering twice keeps the first answer."""
        row = self.store.find_call(message_id)
        if row is None or row["state"] == "done":
            return
        if isinstance(result, LabError):
            answer = Reply(id=message_id, error=result.body())
        else:
            answer = Reply(id=message_id, result=result.model_dump(mode="json"))
        body = answer.body()
        if len(body) > MAX_BYTES:  # nobody could read it, and the caller would wait for it until its deadline
            error = LabError(
                Code.TOO_LARGE, f"the answer has {len(body)} bytes, more than the limit of {MAX_BYTES}.",
                advice="Ask for less at a time.", bytes=len(body), limit=MAX_BYTES,
            )  # fmt: skip
            body = Reply(id=message_id, error=error.body()).body()
        self.store.mark(message_id, "done", body.decode())
        self._replies.append(message_id)

    def publish(self, topic: str, payload: BaseModel | None, **levels: str) -> None:
        """Publish on a row of the topic table, after the commit, in order. None clears a retained topic."""
        row = BY_NAME[topic]
        body = b"" if payload is None else payload.model_dump_json().encode()
        self.store.publish(self.topics.of(topic, **levels), body, row.retain, row.expiry)

    @contextmanager
    def about(self, traceparent: str | None, *, job: object = None, **facts: str) -> Iterator[None]:
        """Do something under a trace: calls made and timers set in it carry it on, and every log line in it shows it."""
        before, self.traceparent = self.traceparent, traceparent
        try:
            with trace.bound(traceparent, job=job, **facts):
                yield
        finally:
            self.traceparent = before

    def event(self, stream: str, type: str, data: dict[str, Any]) -> int:
        """Append a fact to a stream; returns its number."""
        return self.store.append(stream, type, data, self.now)

    def events(self, stream: str, since: int = 0) -> list[Event]:
        """Return the facts of a stream after number `since`."""
        return self.store.events(stream, since)

    def timer(self, name: str, key: str, due: datetime, data: dict[str, Any] | None = None) -> None:
        """Set a timer, handled by `timer_handlers[name]` under the present trace; survives restarts; replaces one of the same
        name and key."""
        self.store.set_timer(name, key, due, {**(data or {}), ABOUT: trace.carried()})

    def cancel_timer(self, name: str, key: str) -> None:
        """Remove a timer."""
        self.store.cancel_timer(name, key)

    def hasten_timers(self, name: str) -> None:
        """Let all timers of a name fire at once."""
        self.store.hasten_timers(name, self.now)

    def after_commit(self, action: Callable[[], object]) -> None:
        """Run an action (start a process, stop one) once everything is committed; not run on a roll-back.

        It runs under the trace of now, and so does every background task that it starts.
        """
        context = copy_context()
        self._after.append(lambda: context.run(action))

    def message(self, message_id: str) -> MCPMessage | None:
        """Return a call from the inbox, answered or not."""
        row = self.store.find_call(message_id)
        return None if row is None else MCPMessage.model_validate(json.loads(row["message"]))
