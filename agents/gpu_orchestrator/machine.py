"""A machine of the fleet: a factory that is online, and what it has."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.access import is_lent
from protocol.machine import LENT, LOCAL, Device


@dataclass(frozen=True)
class Machine:
    """A factory that is online: its slots, and what it has. `free` is how many slots nobody leases; `rental` None: it sees this lab's files."""

    name: str
    slots: int
    free: int
    device: Device | None
    free_memory_bytes: int = 0
    rental: str | None = None

    @property
    def lent(self) -> bool:
        """Whether a person lends it."""
        return is_lent(self.rental)

    @property
    def provider(self) -> str:
        """Whose machine it is, where nobody bills for it."""
        return LENT if self.lent else LOCAL

    @property
    def own(self) -> bool:
        """Whether nobody bills for it."""
        return self.rental is None or self.lent
