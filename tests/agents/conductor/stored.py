"""A job at a conductor with a real store; what it would say to the bus is read from there."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agents.conductor.agent import ConductorAgent
from agents.conductor.record import Fact, JobRecord, evolve
from bus import BrokerAddress, Wiring
from bus.session import Incoming
from protocol.envelope import MCPMessage, Reply
from protocol.errors import LabError
from protocol.job import JobQuery, JobSnapshot, Report
from protocol.machine import LeaseLost
from protocol.methods import METHODS
from tests.agents.conductor.jobs import (
    NOON,
    REQUEST,
    ROUTE,
    ROUTED,
)  # fmt: skip

PREFIX = "meetara/v1/lab"


def drive(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration):
        work.send(None)


class StoredJob:
    """The job j1 at a conductor; what it would say to the bus is read from its store."""

    def __init__(self, home: Path) -> None:
        self.now = NOON
        self.agent = ConductorAgent(Wiring("conductor-1", home, BrokerAddress("127.0.0.1", 1), now=self.clock))
        self.agent.store.connection.execute("PRAGMA synchronous = OFF")  # no power cuts here
        self.record = JobRecord(
            job="j1", digest=ROUTED.digest, request=REQUEST, route=ROUTE, submitted_at=NOON, updated_at=NOON
        )
        self.calls = 0

    def clock(self) -> datetime:
        return self.now

    def rows(self, table: str, where: str = "1") -> list[dict[str, Any]]:
        found = self.agent.store.connection.execute(f"SELECT * FROM {table} WHERE {where} ORDER BY rowid")
        return [dict(row) for row in found]

    def ask(self, method: str, params: BaseModel, id: str | None = None) -> dict[str, Any] | None:
        """Send a call and return the reply, None if it is to come."""
        self.calls += 1
        self.now += timedelta(seconds=1)
        identity = id or f"call-{self.calls}"
        message = MCPMessage(id=identity, type=method, data=params.model_dump(mode="json"))
        drive(self.agent.handle_message(message))
        self.read()
        return self.reply(identity)

    def reply(self, identity: str) -> dict[str, Any] | None:
        (row,) = self.rows("inbox", f"id = '{identity}'")
        return json.loads(row["reply"]) if row["reply"] else None

    def read(self) -> None:
        (row,) = self.rows("jobs", "job = 'j1'")
        self.record = JobRecord.model_validate_json(row["record"])

    @property
    def facts(self) -> list[Fact]:
        return [Fact(type=event.type, data=event.data) for event in self.agent.store.events("j1")]

    @property
    def timers(self) -> dict[str, float]:
        found = self.agent.store.connection.execute("SELECT name, due FROM timers ORDER BY due").fetchall()
        return {row["name"]: row["due"] for row in found}

    def start(self) -> None:
        self.ask("train.route", ROUTED, "j1:route")

    def pending(self) -> list[tuple[str, str, BaseModel]]:
        rows = self.agent.store.due_calls(self.now, 100)
        data = {row["id"]: json.loads(row["message"])["data"] for row in rows}
        return [(row["id"], row["method"], METHODS[row["method"]].params.model_validate(data[row["id"]])) for row in rows]

    def answer(self, call_id: str, result: BaseModel | LabError) -> None:
        self.now += timedelta(seconds=1)
        reply = (
            Reply(id=call_id, error=result.body())
            if isinstance(result, LabError)
            else Reply(id=call_id, result=result.model_dump(mode="json"))
        )
        topic = f"{PREFIX}/reply/conductor-1"
        self.agent.take_in([Incoming(topic, reply.body(), (), None, None, False, False, 1, 0)])
        self.read()

    def report(self, said: Report) -> None:
        old = self.record
        answer = self.ask("job.report", said)
        assert answer is not None
        assert ("error" in answer) == (old.lease is None or old.fence != said.fence)

    def lose(self, loss: LeaseLost) -> None:
        assert self.ask("lease.lost", loss) is not None

    def cancel(self) -> None:
        answer = self.ask("job.cancel", JobQuery(job="j1"))
        assert (answer is not None) == self.record.final

    def fire(self, name: str) -> None:
        self.now = max(self.now, NOON + timedelta(seconds=self.timers[name] - NOON.timestamp()))
        self.agent.fire_due()
        self.read()

    def published(self, topic: str) -> list[dict[str, Any]]:
        rows = self.rows("publications", f"topic = '{PREFIX}/{topic}'")
        return [json.loads(row["payload"]) for row in rows]

    def check(self) -> None:
        """Facts are numbered without gap and published as they are stored; the record is what they add up to."""
        events = self.agent.store.events("j1")
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [(e["seq"], e["type"]) for e in self.published("job/j1/event")] == [(e.seq, e.type) for e in events]
        folded = JobRecord(
            job="j1", digest=ROUTED.digest, request=REQUEST, route=ROUTE, submitted_at=events[0].at, updated_at=events[0].at
        )
        for event in events[1:]:
            folded = evolve(folded, Fact(type=event.type, data=event.data), event.at)
        assert folded == self.record
        state = JobSnapshot.model_validate(self.published("job/j1/state")[-1])
        assert state == self.record.snapshot()
        assert (self.reply("j1:route") is not None) == (self.record.attempt > 0 or self.record.final)
        assert self.rows("inbox", "attempts > 0") == self.rows("outbox", "failures > 0") == []
        assert self.rows("publications", "topic LIKE '%/dead/%'") == []
