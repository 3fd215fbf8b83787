"""Everything around a conductor that answers at once: a router's requests, plans, quotes, reservations, leases, a factory's
reports. Pure: it is told what the conductor says and returns what comes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import BaseModel

from protocol import MCPMessage, Reply, Topics, TrainRequest
from protocol.job import Artefact, Empty, Gate, Plan, Report, Route, RoutedRequest, Stage
from protocol.machine import LeaseGrant, Offer, Quote
from protocol.money import Reservation

CALLER = "world"
MACHINE = "gguf_factory-1"
HAPPENINGS = 5 + 2 * len(Stage) + 1
"""State transitions of one job: routed, planned, quoted, reserved, leased, each stage begun and done, done."""
TOPICS = Topics()
PLAN = Plan(
    rows=400, held_out_rows=40, tokens=60_000, steps=120, parameters={"epochs": 3}, base_parameters=12_000_000,
    file_bytes=8_000_000, disk_bytes=400_000_000, memory_bytes=1_500_000_000, seconds_p50=60, seconds_p90=120,
)  # fmt: skip
OFFER = Offer(
    provider="local", machine=MACHINE, price_micros_per_hour=0, seconds_p50=60, seconds_p90=120, cost_p50_micros=0,
    cost_p90_micros=0, reservation_micros=0,
)  # fmt: skip
RESULTS = {"loss": 1.5, "tokens_per_second": 1200.0, "quality_percent": 104.2}


@dataclass(frozen=True)
class Said:
    """A message to the conductor: a call's topic, or the reply topic."""

    topic: str
    body: bytes
    properties: Sequence[tuple[str, str]] = ()
    response_topic: str | None = None
    correlation: bytes | None = None


@dataclass
class World:
    """The jobs and how far they are. `done` counts the jobs that the conductor has heard the end of."""

    lab: Topics = TOPICS
    conductor: str = "conductor-1"
    reports: dict[str, Iterator[Report]] = field(default_factory=dict)
    done: int = 0

    def submit(self, job: str) -> Said:
        """A routed request of a new job."""
        request = TrainRequest(domain="sleep", dataset="file:///data/sleep.jsonl", tier="starter")
        route = Route(
            domain="sleep", category="health", tier="starter", base="starter", voice="meditative", empathy="high",
            quality_floor=101.0, safety_critical=False,
        )  # fmt: skip
        return self._call("train.route", RoutedRequest(job=job, digest="d" * 64, request=request, route=route), f"{job}:route")

    def hears(self, topic: str, body: bytes) -> list[Said]:
        """What the world says when the conductor publishes something."""
        match self.lab.levels(topic):
            case ["call", _, method] | ["direct", _, _, method]:
                return self._answers(method, json.loads(body))
            case ["reply", _]:
                identity = json.loads(body)["id"]
                if identity.endswith(":route"):
                    return []
                return self._reported(identity.partition(":")[0])
        return []

    def _answers(self, method: str, call: dict[str, object]) -> list[Said]:
        identity = str(call["id"])
        job = identity.partition(":")[0]
        said = [Said(self.lab.of("reply", client=self.conductor), Reply(id=identity, result=_result(method, job)).body())]
        if method == "job.run":
            self.reports[job] = iter(_reports(job))
            said += self._reported(job)
        return said

    def _reported(self, job: str) -> list[Said]:
        following = next(self.reports[job], None)
        if following is None:
            self.done += 1
            return []
        return [self._call("job.report", following, f"{job}:1:{following.kind}:{following.stage}")]

    def _call(self, method: str, params: BaseModel, identity: str) -> Said:
        message = MCPMessage(id=identity, sender=CALLER, type=method, data=params.model_dump(mode="json"))
        return Said(
            self.lab.of("call", role="conductor", method=method), message.body(), message.properties(),
            self.lab.of("reply", client=CALLER), identity.encode(),
        )  # fmt: skip


def _result(method: str, job: str) -> dict[str, object]:
    results: dict[str, BaseModel] = {
        "job.plan": PLAN,
        "offer.quote": Quote(job=job, choice=OFFER),
        "budget.reserve": Reservation(reservation=f"{job}:reserve", job=job, amount_micros=0),
        "lease.request": LeaseGrant(
            job=job, lease=f"{job}:lease", fence=1, provider="local", machine=MACHINE, price_micros_per_hour=0, ttl_s=30,
            expires_at=datetime(2100, 1, 1, tzinfo=UTC),
        ),
    }  # fmt: skip
    return results.get(method, Empty()).model_dump(mode="json")


def _reports(job: str) -> list[Report]:
    artefact = Artefact(kind="gguf", uri=f"file:///models/{job}.gguf", sha256="0" * 64, bytes=8_000_000)
    gates = {name: Gate(value=1.0, threshold=1.0, ok=True) for name in ("quality_percent", "size", "kl", "load_ms")}
    told: list[Report] = []
    for stage in Stage:
        told.append(Report(job=job, lease=f"{job}:lease", fence=1, kind="stage_started", stage=stage))
        told.append(Report(job=job, lease=f"{job}:lease", fence=1, kind="stage_done", stage=stage, seconds=1.0, results=RESULTS))
    return [*told, Report(job=job, lease=f"{job}:lease", fence=1, kind="done", artefacts=[artefact], gates=gates, results=RESULTS)]
