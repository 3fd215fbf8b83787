"""Machines in words: cards and presence of agents, offers, quotes and leases."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from protocol.job import Plan, Strict


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
    at: datetime


class QuoteRequest(Strict):
    job: str
    tier: str
    plan: Plan
    budget_usd: float | None = None


class Offer(Strict):
    """A machine at a price, with what this job would take there. Money in micro-dollars, time in seconds."""

    provider: str
    machine: str = Field(description="id of the factory whose slot it is")
    price_micros_per_hour: int
    seconds_p50: float
    seconds_p90: float
    cost_p50_micros: int
    cost_p90_micros: int
    reservation_micros: int = Field(description="what must be reserved before launch (architecture §5)")


class Quote(Strict):
    job: str
    choice: Offer
    rejected: dict[str, str] = Field(default_factory=dict, description="machine to the reason it was not chosen")


class LeaseRequest(Strict):
    """Ask for a slot. Answered when one is free: highest priority first, then the oldest."""

    job: str
    reservation: str
    priority: int
    submitted_at: datetime
    memory_bytes: int
    avoid: list[str] = Field(default_factory=list, description="machines on which this job failed")


class LeaseGrant(Strict):
    job: str
    lease: str
    fence: int
    provider: str
    machine: str
    price_micros_per_hour: int
    ttl_s: float
    expires_at: datetime


class LeaseRenewal(Strict):
    job: str
    lease: str
    fence: int


class LeaseRelease(Strict):
    """Give back a slot, or leave the queue when `lease` is None."""

    job: str
    lease: str | None = None


class LeaseLost(Strict):
    """The orchestrator tells the conductor that a lease ran out."""

    job: str
    lease: str
    fence: int
    machine: str
