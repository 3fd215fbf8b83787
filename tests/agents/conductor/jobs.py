"""A job's words, made short, and a job whose calls are kept as the bus keeps them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from agents.conductor.decide import decide, late
from agents.conductor.decision import Call, Decision
from agents.conductor.happening import CancelAsked, Happening, Refused, Requoted, Resume, Routed, Stopped
from agents.conductor.record import Fact, JobRecord
from protocol.errors import Code, LabError
from protocol.job import Artefact, Gate, Plan, Report, Route, RoutedRequest, TrainRequest
from protocol.machine import LeaseGrant, LeaseLost, Offer, Quote
from protocol.money import Reservation

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
REQUEST = TrainRequest(domain="sleep", dataset="/x.jsonl", priority=2, budget_usd=3.0)
ROUTE = Route(
    domain="sleep", category="health", tier="starter", base="models/starter", voice="calm", empathy="high",
    quality_floor=95.0, safety_critical=False,
)  # fmt: skip
ROUTED = RoutedRequest(job="j1", digest="d" * 64, request=REQUEST, route=ROUTE)
PLAN = Plan(
    rows=100, held_out_rows=10, tokens=5000, steps=20, parameters={"epochs": 1}, base_parameters=10**7,
    file_bytes=8 * 10**6, disk_bytes=10**9, memory_bytes=2 * 10**9, seconds_p50=60, seconds_p90=120,
)  # fmt: skip
OFFER = Offer(
    provider="local", machine="factory-1", price_micros_per_hour=36_000_000, seconds_p50=60, seconds_p90=120,
    cost_p50_micros=600_000, cost_p90_micros=1_200_000, reservation_micros=1_500_000,
)  # fmt: skip
QUOTE = Quote(job="j1", choice=OFFER, rejected={"factory-9": "too small"})
RESERVATION = Reservation(reservation="j1:budget.reserve", job="j1", amount_micros=1_500_000)
ARTEFACT = Artefact(kind="gguf", uri="file:///a.gguf", sha256="0" * 64, bytes=5)
REFUSAL = LabError(Code.BUDGET, "too dear.", advice="Ask for less.", needed_micros=5)
DONE = {
    "artefacts": [ARTEFACT],
    "gates": {"quality_percent": Gate(value=97.5, threshold=95.0, ok=True)},
    "results": {"loss": 1.5},
}


def grant(fence: int, machine: str = "factory-1", price: int = 36_000_000) -> LeaseGrant:
    """A lease; 36 dollars an hour are 10,000 micro-dollars a second."""
    return LeaseGrant(
        job="j1", lease=f"l{fence}", fence=fence, provider="local", machine=machine, price_micros_per_hour=price,
        ttl_s=30, expires_at=NOON,
    )  # fmt: skip


def report(fence: int, kind: str, **facts: Any) -> Report:
    return Report.model_validate({"job": "j1", "fence": fence, "lease": f"l{fence}", "kind": kind, **facts})


def lost(fence: int, machine: str = "factory-1") -> LeaseLost:
    return LeaseLost(job="j1", lease=f"l{fence}", fence=fence, machine=machine)


class PureJob:
    """A job without shell: what `decide` says is kept in memory as the bus would keep it."""

    def __init__(self) -> None:
        self.now = NOON
        self.record = JobRecord(
            job="j1", digest=ROUTED.digest, request=REQUEST, route=ROUTE, submitted_at=NOON, updated_at=NOON
        )
        self.facts: list[Fact] = []
        self.calls: list[Call] = []
        self.outbox: dict[str, Call] = {}
        self.timers: dict[str, datetime] = {}
        self.admitted: list[Any] = []

    def start(self) -> None:
        self.happen(Routed())

    def happen(self, happening: Happening) -> Decision | None:
        """Let something happen, one second after the last."""
        self.now += timedelta(seconds=1)
        if self.record.final:
            for call in late(self.record, happening):
                self._send(call)
            return None
        decision = decide(self.record, happening, self.now)
        self.record = decision.record
        self.facts += decision.facts
        for method in decision.drop:
            self.outbox = {id: call for id, call in self.outbox.items() if call.method != method}
        for call in decision.calls:
            self._send(call)
        for name, due in decision.timers.items():
            self.timers.pop(name, None)
            if due is not None:
                self.timers[name] = due
        if decision.admitted is not None:
            self.admitted.append(decision.admitted)
        return decision

    def _send(self, call: Call) -> None:
        self.calls.append(call)
        self.outbox.setdefault(call.id, call)

    # the same words as the job in a shell has

    def pending(self) -> list[tuple[str, str, BaseModel]]:
        """Calls that the bus sends now: of each method the first that is not answered."""
        firsts: dict[str, Call] = {}
        for call in self.outbox.values():
            firsts.setdefault(call.method, call)
        return [(call.id, call.method, call.params) for call in firsts.values()]

    def answer(self, call_id: str, result: BaseModel | LabError) -> None:
        call = self.outbox.pop(call_id, None)
        if call is None or call.method in ("budget.settle", "budget.release", "lease.release"):
            return
        if call.method == "job.stop":
            self.happen(Stopped())
        elif isinstance(result, LabError):
            self.happen(Refused(result))
        elif isinstance(result, Offer):
            self.happen(Requoted(result))
        elif call.method != "job.run":
            self.happen(result)  # type: ignore[arg-type]

    def report(self, said: Report) -> None:
        self.happen(said)

    def lose(self, loss: LeaseLost) -> None:
        self.happen(loss)

    def cancel(self) -> None:
        self.happen(CancelAsked())

    def fire(self, name: str) -> None:
        self.now = max(self.now, self.timers.pop(name))
        self.happen(Resume() if name == "resume" else Stopped())

    def check(self) -> None:
        """What must hold of the shell; there is none."""

    # for tests that tell one story

    def names(self) -> list[str]:
        return [fact.type for fact in self.facts]

    def made(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]


def quoted() -> PureJob:
    job = PureJob()
    job.start()
    job.answer("j1:job.plan", PLAN)
    job.answer("j1:offer.quote", QUOTE)
    return job


def provisioned() -> PureJob:
    job = quoted()
    job.answer("j1:budget.reserve", RESERVATION)
    return job


def running(fence: int = 1) -> PureJob:
    job = provisioned()
    job.answer("j1:lease.request:1", grant(fence))
    job.answer(f"j1:job.run:{fence}", PLAN)
    return job


def again(job: PureJob, fence: int, machine: str = "factory-1") -> None:
    """After an interruption: wait for the pause, get a slot."""
    job.fire("resume")
    job.answer(f"j1:lease.request:{job.record.attempt}", grant(fence, machine))
