"""What follows from a happening: facts to store, calls to make, timers to set, an answer to give."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel

from agents.conductor.record import Fact, JobRecord, evolve
from protocol.errors import LabError
from protocol.job import Submitted
from protocol.money import BudgetMode


@dataclass(frozen=True)
class Call:
    """A durable call. The id is stable, so that deciding twice calls once."""

    id: str
    method: str
    params: BaseModel
    to: str | None = None


@dataclass
class Decision:
    """What follows. `admitted` answers the submitter; `timers` maps a name to its due time, None cancels it.

    `mode` is how paid work goes on, as far as it is known.
    """

    record: JobRecord
    now: datetime
    mode: BudgetMode | None = None
    facts: list[Fact] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    timers: dict[str, datetime | None] = field(default_factory=dict)
    admitted: Submitted | LabError | None = None

    def fact(self, type: str, **data: object) -> None:
        """Add a fact and let the record follow it."""
        fact = Fact(type=type, data=data)
        self.facts.append(fact)
        self.record = evolve(self.record, fact, self.now)

    def call(self, method: str, params: BaseModel, suffix: str = "", to: str | None = None) -> None:
        """Add a call with an id made from the job, the method and what tells repetitions apart."""
        self.calls.append(Call(f"{self.record.job}:{method}{suffix}", method, params, to))
