"""A training job in words: the request, the plan, the facts, the snapshot, the progress."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.signature import Signature


class Strict(BaseModel):
    """A message whose unknown fields are errors: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class State(StrEnum):
    """A job's state; the last four are final."""

    SUBMITTED = "submitted"
    ROUTED = "routed"
    QUOTED = "quoted"
    RESERVED = "reserved"
    AWAITING_APPROVAL = "awaiting_approval"
    PROVISIONING = "provisioning"
    TRAINING = "training"
    EXPORTING = "exporting"
    VALIDATING = "validating"
    INTERRUPTED = "interrupted"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.REFUSED})


class Stage(StrEnum):
    """The factory's stages, in order."""

    PLAN = "plan"
    DATA = "data"
    TRAIN = "train"
    MERGE = "merge"
    CONVERT = "convert"
    QUANTISE = "quantise"
    VALIDATE = "validate"
    PUBLISH = "publish"


Profile = Literal["edge", "adapter"]
"""Form of the product. edge: base and adapter merged into one file; adapter: a LoRA file on a quantised base that many share."""


def stages_of(profile: str) -> tuple[Stage, ...]:
    """Return a profile's stages in order: an adapter stays apart from its base, so nothing is merged."""
    return tuple(stage for stage in Stage if not (profile == "adapter" and stage is Stage.MERGE))


class TrainRequest(Strict):
    """What a user asks for: a `dataset`, and a `domain` or a `text` that says what the model is for in free words.

    Everything else has a default by tier. A domain that is named comes before the text. What is signed: the job's id and the
    request's `digest`.
    """

    domain: str | None = Field(
        default=None, min_length=1, max_length=64, description="one of the 62 domains, or one added in configs/"
    )
    text: str | None = Field(
        default=None, min_length=1, max_length=2000, description="what the model is for, in free words; finds the domain"
    )
    dataset: str = Field(min_length=1, max_length=4096, description="path or URI of the training rows")
    eval_dataset: str | None = Field(default=None, description="path or URI of held-out rows; default: a split")
    tier: str | None = Field(default=None, description="default: the domain's tier in configs/, or the lab's")
    base: str | None = Field(default=None, description="local folder or hub name of the base model")
    profile: Profile = Field(
        default="edge", description="edge: one merged file; adapter: a LoRA file on a quantised base that many adapters share"
    )
    priority: int = Field(default=1, ge=1, le=3, description="1 normal, 2 high, 3 critical")
    quantisation: str | None = Field(default=None, description="GGUF type, default Q4_K_M")
    budget_usd: float | None = Field(default=None, ge=0, description="most this job may cost")
    deadline_hours: float | None = Field(default=None, gt=0, description="no machine is chosen on which it would take longer")
    providers: list[str] | None = Field(default=None, description="whose machines may be taken; default: all that are configured")
    untrusted_hosts: bool = Field(default=False, description="whether machines of strangers (marketplaces) may get the data")
    checkpoints: Literal["machine", "store"] | None = Field(
        default=None, description="where they go; store: another machine can go on; default: store unless it is local"
    )
    parameters: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="overrides of configs/proven_parameters.json, by name"
    )
    use_cache: bool = Field(
        default=True, description="take a finished model that was made from the same things; false: train in any case"
    )
    licence: str | None = Field(
        default=None, min_length=1, max_length=100,
        description="licence of the data set for the model card, an SPDX name such as cc-by-4.0; default: unknown",
    )
    signature: Signature | None = Field(
        default=None, description="by a key that the lab trusts: lets the job take a machine that costs money without being asked"
    )


def digest(request: TrainRequest) -> str:
    """Return the sha256 (hex) of a request's canonical JSON: keys sorted, no spaces, defaults and the signature left out.

    So a field that a later version adds does not make another request of a known one.
    """
    fields = request.model_dump(mode="json", exclude_defaults=True, exclude={"signature"})
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Submitted(Strict):
    """The reply to a submitted request."""

    job: str
    state: State
    domain: str
    tier: str
    base: str
    message: str = ""


class Route(Strict):
    """What the router adds to a request, from configs/."""

    domain: str
    category: str
    tier: str
    base: str
    voice: str
    empathy: str
    quality_floor: float
    safety_critical: bool
    gpus: list[str] = Field(default_factory=list, description="what the tier is meant for; empty: this machine")


class RoutedRequest(Strict):
    """A request on its way from the router to the conductor. `digest` is sha256 of the request's canonical JSON."""

    job: str
    digest: str
    request: TrainRequest
    route: Route


class PlanRequest(Strict):
    """The conductor asks a factory whether a job can work, before anything is reserved."""

    job: str
    request: TrainRequest
    route: Route
    elsewhere: bool = Field(
        default=False, description="another machine may train it, so what this one has is no reason to refuse"
    )
    staging: bool = Field(default=True, description="put what such a machine needs into the artefact store; a mere quote does not")


PRODUCTS = frozenset({"gguf", "adapter"})
"""Kinds of artefacts that are what a job was asked for: a whole model, or an adapter."""


class Artefact(Strict):
    kind: str = Field(description="gguf, adapter, base (what an adapter belongs to), manifest, card, curves")
    uri: str
    sha256: str
    bytes: int


class Gate(Strict):
    """One check of the finished file. `value` None means that it was not measured, and then `ok` is None too."""

    value: float | None
    threshold: float | None
    ok: bool | None
    level: Literal["fail", "warn", "off"] = "fail"
    detail: str = ""


class Finished(Strict):
    """A finished model that `job` made earlier from the same things, looked at again just now. The numbers are that job's."""

    job: str
    artefacts: list[Artefact]
    gates: dict[str, Gate]
    results: dict[str, Any]


class Staged(Strict):
    """Where machines elsewhere find what a job needs: URIs of the artefact store, or of places that all reach."""

    store: str = Field(description="the artefact store; checkpoints and finished files go there")
    dataset: str = Field(description="training rows")
    eval_dataset: str | None = Field(default=None, description="held-out rows; none: a split")
    base: str = Field(description="folder of the base in the store, or its hub name")


class Plan(Strict):
    """The factory's prediction. Tokens are real (non-padding) tokens, sizes bytes, times seconds."""

    rows: int
    held_out_rows: int
    tokens: int = Field(description="tokens of the training rows, one epoch")
    steps: int = Field(description="optimiser steps")
    parameters: dict[str, Any] = Field(description="all training parameters as they will be used")
    base_parameters: int = Field(description="weights of the base model")
    file_bytes: int | None = Field(description="predicted size of the GGUF; null for a family of which no file was measured")
    base_file_bytes: int | None = Field(
        default=None, description="profile adapter: predicted size of the base's GGUF that it shares with others"
    )
    disk_bytes: int = Field(description="space needed while working")
    memory_bytes: int = Field(description="predicted peak memory of training")
    working_bytes: int | None = Field(
        default=None, description="the part of it that is neither weights nor process: adapter, moments, activations"
    )
    trained_tokens: int | None = Field(
        default=None, description="places that all steps compute, control training included; at least the real tokens"
    )
    terms: dict[str, Any] | None = Field(
        default=None, description="the tier with all of its values, for a machine elsewhere that has other configs"
    )
    seconds_p50: float
    seconds_p90: float
    not_here: str | None = Field(
        default=None, description="why the machine of the factory that planned it could not train it; another one may"
    )
    warnings: list[str] = Field(default_factory=list)
    key: str | None = Field(
        default=None, description="sha256 of everything that the model will be made from; none where it must not be shared"
    )
    finished: Finished | None = Field(default=None, description="the model is there already; then nothing is to be done")
    staged: Staged | None = Field(
        default=None, description="where machines elsewhere find data and base; none: only a machine that sees the same files can train it"
    )


class Remember(Strict):
    """A model was made on a machine elsewhere: whoever asks for the same shall get it, and pay for no machine again."""

    key: str = Field(description="sha256 of everything that it was made from, as its plan says")
    plan: Plan
    model: Finished = Field(description="its job, files, gates and numbers")


class RunRequest(Strict):
    """The conductor hands a leased job to the factory that owns the slot."""

    job: str
    request: TrainRequest
    route: Route
    plan: Plan
    lease: str
    fence: int
    attempt: int
    price_micros_per_hour: int = Field(description="for the cost in the progress display")
    provider: str = Field(default="local", description="whose machine it is")
    spot: bool = Field(default=False, description="the machine may be taken away at any time")


class StopRequest(Strict):
    """Stop a running job: `cancel` ends it, `checkpoint` saves first so that it can go on elsewhere."""

    job: str
    mode: Literal["cancel", "checkpoint"]


class Probe(Strict):
    """What the first steps on a machine really took; replaces what was only computed."""

    steps: int = Field(ge=1, description="optimiser steps that were measured, 20 or a few more")
    seconds: float = Field(gt=0, description="what these steps took")
    step: int = Field(ge=1, description="optimiser steps that are done, those before an interruption included")
    elapsed_s: float = Field(ge=0, description="from the start of the job on this machine to the end of the probe")


class Report(Strict):
    """What a factory tells the conductor about a running job; refused when `fence` is old."""

    job: str
    fence: int
    lease: str | None = Field(
        default=None, description="the lease's id, which its holder alone was told; without it nothing is believed"
    )
    kind: Literal["started", "stage_started", "stage_done", "done", "failed", "interrupted", "probed"]
    stage: Stage | None = None
    seconds: float | None = Field(default=None, description="measured time of the stage or of the job")
    artefacts: list[Artefact] = Field(default_factory=list)
    gates: dict[str, Gate] = Field(default_factory=dict)
    results: dict[str, Any] = Field(default_factory=dict, description="measured numbers for the result table")
    probe: Probe | None = Field(default=None, description="kind probed, on rented machines: what the first steps took")
    again: bool = Field(default=False, description="the stage was finished before; told in case that the word got lost")
    reason: str = ""
    retry: Literal["never", "later", "other-worker"] = "never"

    @model_validator(mode="after")
    def _named(self) -> Report:
        if self.stage is None and self.kind in ("stage_started", "stage_done"):
            raise ValueError(f"a report of {self.kind} names its stage")
        if (self.probe is None) == (self.kind == "probed"):
            raise ValueError("a report of probed, and no other, has a probe")
        return self


class Progress(Strict):
    """Where a running job stands; sent about twice a second at most, may be lost. None was not measured (yet)."""

    job: str
    stage: Stage
    attempt: int
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    cost_usd: float | None = None
    note: str = ""
    at: datetime


class AskedPrice(Strict):
    """What a job would cost that waits for approval: the offer that was chosen for it."""

    provider: str
    machine: str = Field(description="what the provider would launch")
    gpu: str = ""
    spot: bool = False
    price_micros_per_hour: int
    seconds_p50: float
    seconds_p90: float
    cost_p50_micros: int
    cost_p90_micros: int
    reservation_micros: int = Field(description="what would be reserved: the most that is approved")
    expires_at: datetime | None = Field(default=None, description="the quote holds until then; later it is made anew")


class ApproveRequest(Strict):
    """Let a job that waits for approval go on, at a price. What is signed: job, amount."""

    job: str
    amount_micros: int = Field(ge=0, description="what it may reserve: the price that was shown; a tenth more is let pass")
    signature: Signature


class JobSnapshot(Strict):
    """The retained `job/{job}/state`."""

    job: str
    state: State
    stage: Stage | None
    attempt: int
    domain: str
    tier: str
    profile: str
    cost_usd: float | None
    quality_percent: float | None
    artefacts: list[Artefact]
    gates: dict[str, Gate]
    reason: str | None = None
    results: dict[str, Any] = Field(default_factory=dict)
    priority: int = 1
    machine: str | None = Field(default=None, description="the factory that holds the job now")
    cached_from: str | None = Field(default=None, description="the job that made the model; this one trained nothing")
    approval: AskedPrice | None = Field(default=None, description="the price for which the job waits to be approved")
    at: datetime


class JobEvent(Strict):
    """One numbered fact about a job. `seq` counts from 1 without gaps."""

    job: str
    seq: int
    type: str
    data: dict[str, Any]
    at: datetime


class JobQuery(Strict):
    job: str


class JobListQuery(Strict):
    """Which jobs? Without `before` the newest."""

    before: str | None = Field(default=None, description="a job's id: those that were submitted before it")


class JobList(Strict):
    """As many jobs, newest first, as one message holds; without gates, samples and other lists."""

    jobs: list[JobSnapshot]
    more: bool = Field(default=False, description="older ones follow: ask again with `before` the last of these")


class EventsQuery(Strict):
    job: str
    since: int = Field(default=0, ge=0, description="events with a greater seq are returned")


class JobEvents(Strict):
    events: list[JobEvent]


class Empty(Strict):
    """No parameters, or nothing to say but that it was done."""
