"""A machine of the fleet: a factory that is online, and what it has."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.machine import Device


@dataclass(frozen=True)
class Machine:
    """A factory that is online: its slots, and what it has. `free` is how many slots nobody leases; `rental` None: it is ours."""

    name: str
    slots: int
    free: int
    device: Device | None
    free_memory_bytes: int = 0
    rental: str | None = None
