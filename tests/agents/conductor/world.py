"""The rest of the lab as a job can meet it: every answer, loss, report and delay that is possible, in any order."""

from __future__ import annotations

from typing import Any, Protocol

from hypothesis import strategies as st
from pydantic import BaseModel

from agents.conductor.record import ORDER, Fact, JobRecord
from protocol.errors import Code, LabError
from protocol.job import FINAL, Empty, Report, RunRequest, Stage, State
from protocol.machine import LeaseGrant, LeaseLost, LeaseRelease
from protocol.money import SettleRequest
from tests.agents.conductor.jobs import DONE, PLAN, QUOTE, RESERVATION, grant, lost, report

FINAL_WORDS = {state.value for state in FINAL}
ANSWERS: dict[str, BaseModel] = {"job.plan": PLAN, "offer.quote": QUOTE, "budget.reserve": RESERVATION}
REFUSABLE = ("job.plan", "offer.quote", "budget.reserve", "job.run")


class Job(Protocol):
    """A job under test, with or without its shell."""

    record: JobRecord
    facts: list[Fact]
    timers: dict[str, Any]

    def start(self) -> None: ...
    def pending(self) -> list[tuple[str, str, BaseModel]]: ...
    def answer(self, call_id: str, result: BaseModel | LabError) -> None: ...
    def report(self, said: Report) -> None: ...
    def lose(self, loss: LeaseLost) -> None: ...
    def cancel(self) -> None: ...
    def fire(self, name: str) -> None: ...
    def check(self) -> None: ...


class World:
    """An orchestrator with one lease at a time, a ledger, and factories that may speak under any lease they ever had."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.held: LeaseGrant | None = None
        self.fence = 0
        self.granted: dict[str, LeaseGrant] = {}  # answers that the orchestrator keeps for a repeated call
        self.losses: list[LeaseLost] = []
        self.reserved = False
        self.ends: list[BaseModel] = []
        self.before = job.record
        job.start()
        self.look()

    def moves(self) -> list[tuple[Any, ...]]:
        """Everything that could happen next."""
        found: list[tuple[Any, ...]] = []
        for call, method, _ in self.job.pending():
            found.append(("answer", call))
            if method in REFUSABLE:
                found.append(("refuse", call))
            if method == "lease.request":
                found.append(("grant", call))
        found += [("fire", name) for name in self.job.timers]
        if self.held is not None:
            found.append(("expire",))
            found += [("report", self.held.fence)] * 4
        if self.losses:
            found.append(("lose",))
        if self.fence > 1:
            found.append(("report", self.fence - 1))
        return [*found, ("cancel",)]

    def move(self, name: str, argument: Any = None, said: dict[str, Any] | None = None) -> None:
        call = next((entry for entry in self.job.pending() if entry[0] == argument), None)
        match name:
            case "answer":
                assert call is not None
                self.job.answer(call[0], self.result(*call))
            case "refuse":
                self.job.answer(argument, LabError(Code.BUSY, "not now."))
            case "grant":
                self.lease_for(argument)
            case "fire":
                self.job.fire(argument)
            case "expire":
                assert self.held is not None
                self.losses.append(lost(self.held.fence, self.held.machine))
                self.held = None
            case "lose":
                self.job.lose(self.losses.pop(0))
            case "report":
                self.job.report(report(argument, **(said or {"kind": "started"})))
            case "cancel":
                self.job.cancel()
        self.look()

    def result(self, call: str, method: str, params: BaseModel) -> BaseModel:
        if method == "lease.request":
            return self.lease_for(call)
        if isinstance(params, LeaseRelease) and self.held is not None and params.lease in (None, self.held.lease):
            self.held = None
        if method == "budget.reserve":
            self.reserved = True
        if method in ("budget.settle", "budget.release"):
            self.ends.append(params)
        return ANSWERS.get(method, Empty())

    def lease_for(self, call: str) -> LeaseGrant:
        if call not in self.granted:
            if self.held is None:
                self.fence += 1
                self.held = grant(self.fence, f"factory-{self.fence % 2 + 1}")
            self.granted[call] = self.held
        return self.granted[call]

    def look(self) -> None:
        """What must hold after everything."""
        old, new = self.before, self.job.record
        self.before = new.model_copy(deep=True)
        if old.final:
            assert new == old, "a final state was left"
        assert new.fence >= old.fence
        if new.attempt == old.attempt and old.stage is not None:
            assert new.stage is not None and ORDER[new.stage] >= ORDER[old.stage], "the stage went back"
        assert new.failures <= 3
        holding, fences = False, [0]
        for fact in self.job.facts:
            if fact.type == "leased":
                assert not holding, "two leases at once"
                holding = True
                fences.append(fact.data["lease"]["fence"])
            elif fact.type == "interrupted" or fact.type in FINAL_WORDS:
                holding = False
        assert holding == (new.lease is not None)
        assert fences == sorted(set(fences)), "a fence was used again"
        for _, method, params in self.job.pending():
            if method == "job.run":
                assert isinstance(params, RunRequest) and params.fence == new.fence, "an old job.run holds up the new"
        if not new.final:
            heard = new.lease is not None and (
                (self.held is not None and self.held.fence == new.fence)
                or new.fence in [loss.fence for loss in self.losses]
            )
            assert heard or self.job.pending() or self.job.timers, "nothing will ever happen to this job"
        self.job.check()

    def end(self) -> None:
        """Let all answers and timers come, cancel what still runs, and look at what is left."""
        for _ in range(60):
            moves = [move for move in self.moves() if move[0] in ("answer", "fire", "lose")]
            if not moves:
                if self.job.record.final:
                    break
                moves = [("cancel",)]
            self.move(*moves[0])
        record = self.job.record
        assert record.final and not self.job.pending() and not self.job.timers
        assert self.held is None, "a slot leaked"
        assert len(self.ends) == (1 if self.reserved else 0), "a reservation ends once"
        for end in self.ends:
            assert isinstance(end, SettleRequest) == bool(record.spent_micros)
            assert getattr(end, "amount_micros", 0) == record.spent_micros
        assert [fact.type in FINAL_WORDS for fact in self.job.facts] == [False] * (len(self.job.facts) - 1) + [True]
        if record.state is not State.REFUSED and self.reserved:
            assert record.attempt >= 1 or record.state is State.CANCELLED


SAYINGS = st.one_of(
    st.fixed_dictionaries({"kind": st.sampled_from(["stage_started", "stage_done"]), "stage": st.sampled_from(Stage)}),
    st.fixed_dictionaries(
        {"kind": st.just("failed"), "retry": st.sampled_from(["never", "later", "other-worker"]), "reason": st.just("bad")}
    ),
    st.sampled_from([{"kind": "done", **DONE}, {"kind": "started"}, {"kind": "interrupted", "reason": "leaving"}]),
)


def live(job: Job, data: st.DataObject, steps: int) -> World:
    """Lead a job through a random life of some steps, and to its end."""
    world = World(job)
    for _ in range(steps):
        moves = world.moves()
        # a cancel ends the story, and so it comes seldom
        chosen = data.draw(st.sampled_from(moves * 3 if moves == [("cancel",)] else moves[:-1] * 3 + moves[-1:]))
        said = data.draw(SAYINGS) if chosen[0] == "report" else None
        world.move(chosen[0], chosen[1] if len(chosen) > 1 else None, said)
    world.end()
    return world
