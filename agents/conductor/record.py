"""What the conductor knows of a job, and how facts change it. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from protocol.job import FINAL, Artefact, AskedPrice, Gate, JobSnapshot, Plan, Report, Route, Stage, State, TrainRequest
from protocol.machine import LeaseGrant, Offer

STATE_OF_STAGE = {
    Stage.PLAN: State.PROVISIONING,
    Stage.DATA: State.TRAINING,
    Stage.TRAIN: State.TRAINING,
    Stage.MERGE: State.EXPORTING,
    Stage.CONVERT: State.EXPORTING,
    Stage.QUANTISE: State.EXPORTING,
    Stage.VALIDATE: State.VALIDATING,
    Stage.PUBLISH: State.VALIDATING,
}

ORDER = {stage: number for number, stage in enumerate(Stage)}


class Fact(BaseModel):
    """Something that happened to a job; becomes a numbered event."""

    type: str
    data: dict[str, Any] = Field(default_factory=dict)


class JobRecord(BaseModel):
    """A job. `lease` is set while a factory holds it; `spent_micros` counts the leases that have ended.

    `recalled` is why its machine is wanted back, while the job is being checkpointed; `given_up`: it gets no other one.

    `quotes` counts the quotes that were answered. `approved_by` is whose key let it spend, up to `approved_micros`; None: up to
    the request's own limits. `economises` while it waits for the budget, `sold_out` while nothing that would fit is for sale.

    `sharing` is the job for whose model this one waits, `cached_from` the one that made the model that this one ended with.
    """

    job: str
    digest: str
    request: TrainRequest
    route: Route
    submitted_at: datetime
    updated_at: datetime
    state: State = State.SUBMITTED
    stage: Stage | None = None
    stages_done: list[Stage] = Field(default_factory=list)
    attempt: int = 0
    failures: int = 0
    avoid: list[str] = Field(default_factory=list)
    plan: Plan | None = None
    offer: Offer | None = None
    quotes: int = 0
    approved_by: str | None = None
    approved_micros: int | None = None
    economises: bool = False
    sold_out: bool = False
    reservation: str | None = None
    lease: LeaseGrant | None = None
    leased_at: datetime | None = None
    fence: int = 0
    fenced_reports: int = 0
    cancelling: bool = False
    recalled: str | None = None
    given_up: bool = False
    spent_micros: int = 0
    artefacts: list[Artefact] = Field(default_factory=list)
    gates: dict[str, Gate] = Field(default_factory=dict)
    results: dict[str, Any] = Field(default_factory=dict)
    reason: str | None = None
    sharing: str | None = None
    cached_from: str | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL

    def believes(self, report: Report) -> bool:
        """Whether a report comes from who holds the job now. Fences are small numbers that a stranger's machine could guess."""
        return self.lease is not None and (report.fence, report.lease) == (self.fence, self.lease.lease)

    def snapshot(self) -> JobSnapshot:
        """The retained state of the job."""
        quality = self.gates.get("quality_percent")
        return JobSnapshot(
            job=self.job, state=self.state, stage=self.stage, attempt=self.attempt, domain=self.route.domain,
            tier=self.route.tier, profile=self.request.profile,
            cost_usd=None if self.offer is None and self.cached_from is None else self.spent_micros / 1e6,
            quality_percent=quality.value if quality else None, artefacts=self.artefacts, gates=self.gates,
            reason=self.reason, results=self.results, priority=self.request.priority,
            machine=self.lease.machine if self.lease else None, cached_from=self.cached_from,
            approval=price(self.offer) if self.offer and self.state is State.AWAITING_APPROVAL else None, at=self.updated_at,
        )  # fmt: skip


def price(offer: Offer) -> AskedPrice:
    """Return what is shown to who approves a job."""
    return AskedPrice(
        provider=offer.provider, machine=offer.machine, gpu=offer.gpu, spot=offer.spot,
        price_micros_per_hour=offer.price_micros_per_hour, seconds_p50=offer.seconds_p50, seconds_p90=offer.seconds_p90,
        cost_p50_micros=offer.cost_p50_micros, cost_p90_micros=offer.cost_p90_micros,
        reservation_micros=offer.reservation_micros, expires_at=offer.expires_at,
    )  # fmt: skip


def evolve(record: JobRecord, fact: Fact, at: datetime) -> JobRecord:
    """Return the record after a fact. A final state is never left, and `updated_at` never goes back.

    Whoever watches drops snapshots that are older than the last one; a clock set back must not make them blind.
    """
    if record.final:
        return record
    data = fact.data
    change: dict[str, Any] = {"updated_at": max(at, record.updated_at)}
    match fact.type:
        case "routed":
            change |= {"state": State.ROUTED}
        case "planned":
            change |= {"plan": Plan.model_validate(data["plan"])}
        case "sharing":
            change |= {"sharing": data["job"], "reason": f"waits for the job {data['job']}, which makes the same model."}
        case "alone":
            change |= {"sharing": None, "reason": None}
        case "quoted":
            change |= {"state": State.QUOTED, "offer": Offer.model_validate(data["offer"]), "quotes": record.quotes + 1}
            change |= {"economises": False, "sold_out": False, "reason": None}
        case "sold_out":
            change |= {"sold_out": True, "quotes": record.quotes + 1, "economises": False, "reason": data["reason"]}
        case "economising":
            change |= {"state": State.QUOTED, "economises": True, "reason": data["reason"]}
        case "awaiting_approval":
            change |= {"state": State.AWAITING_APPROVAL, "economises": False, "reason": data["reason"]}
        case "approved":
            change |= {"state": State.QUOTED, "reason": None}
            change |= {"approved_by": data["by"], "approved_micros": data["amount_micros"]}
        case "reserved":
            change |= {"state": State.RESERVED, "reservation": data["reservation"], "economises": False, "reason": None}
        case "delayed":
            change |= {"reason": data["reason"]}
        case "provisioning":
            change |= {"state": State.PROVISIONING, "attempt": data["attempt"], "stage": None}
        case "leased":
            grant = LeaseGrant.model_validate(data["lease"])
            change |= {"lease": grant, "fence": grant.fence, "leased_at": at, "reason": None}
        case "stage_started":
            stage = Stage(data["stage"])
            if record.stage is None or ORDER[stage] >= ORDER[record.stage]:  # a resumed job repeats what it skips
                change |= {"stage": stage, "state": STATE_OF_STAGE[stage]}
        case "stage_done":
            change |= {"results": {**record.results, **data.get("results", {})}}
            change |= {"stages_done": [*record.stages_done, Stage(data["stage"])]}
        case "cancelling":
            change |= {"cancelling": True}
        case "recalled":
            change |= {"recalled": data["reason"], "given_up": data.get("final", False)}
        case "fenced":
            change |= {"fenced_reports": record.fenced_reports + 1}
        case "interrupted":
            change |= {
                **ended_lease(record, at),
                "state": State.INTERRUPTED,
                "fence": max(record.fence, data.get("fence", 0)),
                "failures": record.failures + (1 if data["counts"] else 0),
                "avoid": [*record.avoid, data["avoid"]] if data.get("avoid") else record.avoid,
                "reason": data["reason"],
            }
        case "done" | "failed" | "cancelled" | "refused":
            change |= ended_lease(record, at)
            change |= {"state": State(fact.type), "reason": data.get("reason"), "cancelling": False, "sharing": None}
            change |= {"cached_from": data.get("cached_from"), "economises": False}
            change |= {
                "artefacts": [Artefact.model_validate(item) for item in data.get("artefacts", [])] or record.artefacts,
                "gates": {n: Gate.model_validate(g) for n, g in data.get("gates", {}).items()} or record.gates,
                "results": {**record.results, **data.get("results", {})},
            }
    return record.model_copy(update=change)


def ended_lease(record: JobRecord, at: datetime) -> dict[str, Any]:
    """The changes that the end of a lease brings: its time is paid for."""
    if record.lease is None or record.leased_at is None:
        return {}
    seconds = max(0.0, (at - record.leased_at).total_seconds())
    cost = round(record.lease.price_micros_per_hour * seconds / 3600)
    return {"lease": None, "leased_at": None, "recalled": None, "given_up": False, "spent_micros": record.spent_micros + cost}
