"""Plans, machines and listings as tests need them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agents.gpu_orchestrator.machine import Machine
from configs import Provider
from protocol.job import Plan
from protocol.machine import Device, Listing

GIB = 2**30
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def plan(memory: int = GIB, p50: float = 300, p90: float = 600, **changes: Any) -> Plan:
    """A job of 846 steps on a base of 600 million weights."""
    fields: dict[str, Any] = {
        "rows": 10, "held_out_rows": 2, "tokens": 100_000, "steps": 846, "parameters": {}, "base_parameters": 600_000_000,
        "file_bytes": 400_000_000, "disk_bytes": 5_000_000_000, "memory_bytes": memory, "seconds_p50": p50, "seconds_p90": p90,
        "working_bytes": 2_000_000_000, "trained_tokens": 846 * 6 * 512,
    }  # fmt: skip
    return Plan.model_validate(fields | changes)


def terms(price: float = 3.6) -> Provider:
    return Provider(slots=None, threads_per_slot=2, price_usd_per_hour=price, provisioning_seconds=5, grace_seconds=60)


def machine(name: str = "m1", memory: int = 4 * GIB, free: int = 1, slots: int = 1) -> Machine:
    return Machine(name, slots, free, Device(cores=2, memory_bytes=memory, disk_free_bytes=GIB), memory)


def listing(provider: str = "lambda", id: str = "a", gpu: str = "T4", usd: float | None = 0.5, **changes: Any) -> Listing:
    """One GPU with 16 GiB for half a dollar, seen a minute ago."""
    price = None if usd is None else round(usd * 1_000_000)
    fields: dict[str, Any] = {
        "provider": provider, "id": id, "gpu": gpu, "gpus": 1, "gpu_memory_bytes": 16 * GIB, "price_micros_per_hour": price,
        "seen_at": NOW - timedelta(minutes=1),
    }  # fmt: skip
    return Listing(**(fields | changes))
