"""Machines in words: cards and presence of agents, offers, quotes and leases."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from protocol.job import Plan, Probe, Strict


class Device(Strict):
    """What a machine really has. Bytes; `gpu` empty means none."""

    cores: int
    memory_bytes: int
    disk_free_bytes: int
    gpu: str = ""
    gpu_memory_bytes: int = 0


class Card(Strict):
    """The retained card of an agent: what it can be asked, and what it has."""

    agent: str
    role: str
    version: str
    methods: dict[str, str] = Field(description="method to sha256 of its params and result schema")
    slots: int = Field(default=0, description="jobs it can train at once (factories)")
    device: Device | None = None
    provider: str = Field(default="local", description="whose machine it is (factories)")
    rental: str | None = Field(default=None, description="the rented instance that it runs on, as the orchestrator names it")


class Presence(Strict):
    """The retained presence of an agent; its last will says offline."""

    agent: str
    role: str
    online: bool
    instance: str | None = Field(default=None, description="names the agent's store, which one process has at a time")
    at: datetime | None = Field(default=None, description="None in a last will: nobody was there to read the clock")


class ProviderStatus(Strict):
    provider: str
    status: str = Field(description="up, degraded or down")
    slots: int
    free: int
    reason: str = Field(default="", description="why it is not up")
    at: datetime


class Listing(Strict):
    """What a provider sells, without a job: a type of machine, or one machine of a marketplace. The price is of all of it."""

    provider: str
    id: str = Field(description="what the provider launches: an ask, or a type in a region")
    gpu: str = Field(default="", description="the vendor-neutral name, e.g. A100; empty: none")
    gpus: int = 0
    gpu_memory_bytes: int = Field(default=0, description="of one GPU")
    cores: int = 0
    memory_bytes: int = 0
    disk_bytes: int | None = Field(default=None, description="most that can be had; None: as much as is asked for")
    region: str = ""
    spot: bool = False
    secure: bool = Field(default=True, description="false: a stranger's machine, which gets no private data")
    single: bool = Field(default=False, description="one machine, which can be rented once; else a type of which there are more")
    price_micros_per_hour: int | None = Field(description="None: not known, so never chosen unattended")
    disk_micros_per_gb_hour: int = 0
    egress_micros_per_gb: int = 0
    source: Literal["live", "catalogue", "configs"] = "live"
    seen_at: datetime
    rejected: str | None = Field(default=None, description="why it is never chosen; None: it may be")


class ListingQuery(Strict):
    """Which listings? All conditions hold together."""

    gpu: str | None = Field(default=None, description="a GPU's name, e.g. T4; case does not matter")
    provider: str | None = None
    max_price_usd: float | None = Field(default=None, ge=0, description="per hour")
    min_gpu_memory_gb: float | None = Field(default=None, ge=0, description="least memory of one GPU")
    region: str | None = None
    spot: bool | None = Field(default=None, description="only machines that may be taken away, or only others")
    all: bool = Field(default=False, description="also those that are never chosen, with the reason")


class ListingPage(Strict):
    """The cheapest listings, as many as one message holds."""

    listings: list[Listing]
    more: int = Field(default=0, description="how many were left out")
    rejected: int = Field(default=0, description="how many match but are never chosen")
    stale: dict[str, str] = Field(default_factory=dict, description="provider to why its listings are old or missing")


class QuoteRequest(Strict):
    job: str
    tier: str
    plan: Plan
    budget_usd: float | None = None
    deadline_hours: float | None = Field(default=None, description="from now on; what takes longer is not chosen")
    providers: list[str] | None = Field(default=None, description="only these; None: all that are configured")
    untrusted_hosts: bool = Field(default=False, description="whether strangers' machines may get the data")
    checkpoints: Literal["machine", "store"] | None = Field(
        default=None, description="where the request wants them; machine: then no spot machine is chosen"
    )
    economy: bool = Field(default=False, description="money is short: of paid machines only spot, or what costs less")
    dry_run: bool = Field(default=False, description="only to tell somebody: nothing is staged for it, and nothing will follow")


LOCAL = "local"
"""Provider of the machines that see this lab's files."""
LENT = "lent"
"""Provider of machines that persons lend: their workers dial in, and nobody bills for them."""
OWN = frozenset({LOCAL, LENT})
"""Providers at which nothing is rented."""


class Offer(Strict):
    """A machine at a price, with what this job would take there. Money in micro-dollars, time in seconds.

    The times of a paid offer count from the launch, as its bill does; those of a local slot from the start of the work.
    """

    provider: str
    machine: str = Field(description="id of the factory whose slot it is; of a paid provider the listing's id")
    price_micros_per_hour: int
    seconds_p50: float
    seconds_p90: float
    cost_p50_micros: int
    cost_p90_micros: int
    reservation_micros: int = Field(description="what must be reserved before launch (architecture §5)")
    gpu: str = ""
    gpus: int = 0
    gpu_memory_bytes: int = 0
    region: str = ""
    spot: bool = False
    expires_at: datetime | None = Field(default=None, description="a paid offer holds until then; None: it does not end")
    disk_bytes: int = Field(default=0, description="disk that the job needs there; 0: not predicted")
    prior_s: float | None = Field(
        default=None, description="seconds by arithmetic alone, which finished runs correct; None: the plan's own"
    )

    @property
    def paid(self) -> bool:
        """Whether choosing it rents a machine."""
        return self.provider not in OWN


class Quote(Strict):
    job: str
    choice: Offer
    rejected: dict[str, str] = Field(default_factory=dict, description="machine to the reason it was not chosen")
    others: list[Offer] = Field(default_factory=list, description="what else would fit, cheapest first; at most 20")
    reason: str = Field(default="", description="why this one was chosen")
    calibration: str = Field(default="", description="what the times rest on, and how often such a P90 held so far")
    plan: Plan | None = Field(default=None, description="what it was made for (train.quote)")
    finished_by: str | None = Field(
        default=None, description="a job that made this very model: the request would train nothing and cost nothing"
    )


class RequoteRequest(Strict):
    """A probe has run: what does the offer take now?"""

    job: str
    offer: Offer
    plan: Plan
    probe: Probe
    limit_micros: int | None = Field(default=None, description="most that the job may ever cost; null: no such limit")
    deadline_hours: float | None = Field(default=None, description="most that it may take on its machine; null: no such limit")
    fence: int | None = Field(default=None, description="of the lease under which was probed; of another one nothing follows")


class LeaseRequest(Strict):
    """Ask for a slot. Answered when one is free: highest priority first, then the oldest."""

    job: str
    reservation: str
    priority: int
    submitted_at: datetime
    memory_bytes: int
    avoid: list[str] = Field(default_factory=list, description="machines on which this job failed")
    offer: Offer | None = Field(default=None, description="the choice of the quote; None: a local slot")
    limit_micros: int | None = Field(default=None, description="most that the job may ever cost; null: no such limit")
    kind: str = Field(default="", description="base and tier: jobs of the same kind share a warm machine")
    domain: str = ""


class LeaseGrant(Strict):
    job: str
    lease: str
    fence: int
    provider: str
    machine: str
    price_micros_per_hour: int
    ttl_s: float
    expires_at: datetime
    listing: str = Field(default="", description="what was rented, which may be another one than was quoted; empty: nothing")
    gpu: str = Field(default="", description="of what was rented")
    spot: bool = Field(default=False, description="the rented machine may be taken away at any time")


class LeaseRenewal(Strict):
    job: str
    lease: str
    fence: int


class LeaseRelease(Strict):
    """Give back a slot, or leave the queue when `lease` is None."""

    job: str
    lease: str | None = None
    over: bool = Field(default=False, description="the job has ended: a rented machine's cost is settled then")
    reservation: str | None = Field(default=None, description="what is set aside for rented machines; null: nothing")
    done: bool = Field(default=False, description="the job is done: what it took corrects later quotes")


class LeaseLost(Strict):
    """The orchestrator tells the conductor that a lease ran out, or that its machine is gone."""

    job: str
    lease: str
    fence: int
    machine: str
    reason: str = ""
    counts: bool = Field(default=True, description="false: the machine was taken away or ended, which is no failure of the job")


class LeaseRecall(Strict):
    """The orchestrator asks for a machine back: the job is to be checkpointed, and goes on later or elsewhere, unless it is `final`."""

    job: str
    lease: str
    fence: int
    reason: str
    final: bool = Field(default=False, description="it gets no other one: the job has failed, for this reason")


class LeaseDelay(Strict):
    """The orchestrator tells why a job still waits for a machine, or (`final`) that it will not get one."""

    job: str
    reason: str
    final: bool = Field(default=False, description="it gets none, so the job has failed")
