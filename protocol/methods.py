"""The methods of the lab: who serves what, with which words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel

from protocol import job, machine, money, voice


@dataclass(frozen=True)
class Method:
    """One call. `deadline_s` is how long a caller waits by default; None: as long as it takes.

    `repeatable`: done twice it is as good as done once, because it only reads or because its result is named by its
    content. Once answered neither the call nor its reply is kept, a repetition is answered afresh. Of all other calls
    both are kept, so that a repetition has no second effect.
    """

    name: str
    role: str
    params: type[BaseModel]
    result: type[BaseModel]
    deadline_s: float | None = 30.0
    repeatable: bool = False

    @cached_property
    def digest(self) -> str:
        """Sha256 of both schemas: two agents with equal digests understand each other. Made once: it takes milliseconds."""
        schemas = [self.params.model_json_schema(), self.result.model_json_schema()]
        return hashlib.sha256(json.dumps(schemas, sort_keys=True).encode()).hexdigest()


TABLE: tuple[Method, ...] = (
    Method("train.submit", "router", job.TrainRequest, job.Submitted),
    Method("train.quote", "router", job.TrainRequest, machine.Quote, repeatable=True),
    Method("route.text", "router", voice.TextQuery, voice.TextRoute, repeatable=True),
    Method("train.route", "conductor", job.RoutedRequest, job.Submitted, None),
    Method("job.quote", "conductor", job.RoutedRequest, machine.Quote, None, repeatable=True),
    Method("job.get", "conductor", job.JobQuery, job.JobSnapshot, repeatable=True),
    Method("job.list", "conductor", job.JobListQuery, job.JobList, repeatable=True),
    Method("job.events", "conductor", job.EventsQuery, job.JobEvents, repeatable=True),
    Method("job.cancel", "conductor", job.JobQuery, job.JobSnapshot),
    Method("job.approve", "conductor", job.ApproveRequest, job.JobSnapshot),
    Method("job.report", "conductor", job.Report, job.Empty, None),
    Method("lease.lost", "conductor", machine.LeaseLost, job.Empty, None),
    Method("lease.recall", "conductor", machine.LeaseRecall, job.Empty, None),
    Method("lease.delay", "conductor", machine.LeaseDelay, job.Empty, None),
    Method("job.plan", "gguf_factory", job.PlanRequest, job.Plan, None),
    Method("model.remember", "gguf_factory", job.Remember, job.Empty, None),
    Method("job.run", "gguf_factory", job.RunRequest, job.Empty, None),
    Method("job.stop", "gguf_factory", job.StopRequest, job.Empty, None),
    Method("offer.quote", "gpu_orchestrator", machine.QuoteRequest, machine.Quote, None, repeatable=True),
    Method("offer.requote", "gpu_orchestrator", machine.RequoteRequest, machine.Offer, None, repeatable=True),
    Method("offer.list", "gpu_orchestrator", machine.ListingQuery, machine.ListingPage, repeatable=True),
    Method("lease.request", "gpu_orchestrator", machine.LeaseRequest, machine.LeaseGrant, None),
    Method("lease.renew", "gpu_orchestrator", machine.LeaseRenewal, machine.LeaseGrant),
    Method("lease.release", "gpu_orchestrator", machine.LeaseRelease, job.Empty, None),
    Method("budget.reserve", "cost_monitor", money.ReserveRequest, money.Reservation, None),
    Method("budget.settle", "cost_monitor", money.SettleRequest, job.Empty, None),
    Method("budget.release", "cost_monitor", money.ReleaseRequest, job.Empty, None),
    Method("budget.extend", "cost_monitor", money.ExtendRequest, money.Reservation, None, repeatable=True),
    Method("budget.bill", "cost_monitor", money.BillRequest, money.BillReport, None),
    Method("budget.report", "cost_monitor", job.Empty, money.BudgetReport, repeatable=True),
    Method("budget.entries", "cost_monitor", money.EntriesQuery, money.EntryPage, repeatable=True),
    Method("budget.set", "cost_monitor", money.CapRequest, money.CapReply),
    Method("budget.unfreeze", "cost_monitor", money.UnfreezeRequest, job.Empty),
    Method("emotion.analyse", "emotion", voice.EmotionQuery, voice.EmotionReading, repeatable=True),
    Method("speech.synthesise", "tts", voice.SpeechRequest, voice.Speech, 120.0, repeatable=True),
    Method("speech.read", "tts", voice.AudioQuery, voice.AudioPart, repeatable=True),
    Method("speech.voices", "tts", job.Empty, voice.VoiceList, repeatable=True),
)

METHODS = {method.name: method for method in TABLE}


def served_by(role: str) -> dict[str, Method]:
    """Return the methods that a role serves."""
    return {name: method for name, method in METHODS.items() if method.role == role}


def dialect(names: Iterable[str]) -> str:
    """Return one digest of some methods: two programs with equal ones understand each other in these."""
    return hashlib.sha256("".join(f"{name} {METHODS[name].digest}\n" for name in sorted(names)).encode()).hexdigest()
