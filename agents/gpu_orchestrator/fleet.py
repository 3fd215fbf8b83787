"""The fleet: factories as their cards and presences tell, without the bus. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from agents.gpu_orchestrator.machine import Machine
from bus.lease import Lease
from protocol.machine import Card, Presence, ProviderStatus


class Fleet:
    """Cards and presences by machine; a machine is online when both are there and the presence says so."""

    def __init__(self) -> None:
        self._cards: dict[str, Card] = {}
        self._online: dict[str, bool] = {}

    def note(self, word: Card | Presence) -> None:
        """Take in a card or a presence."""
        if isinstance(word, Card):
            self._cards[word.agent] = word
        else:
            self._online[word.agent] = word.online

    def forget(self, machine: str) -> None:
        """Drop a machine whose card was cleared."""
        self._cards.pop(machine, None)

    def machines(self, leases: Iterable[Lease]) -> list[Machine]:
        """Return the machines that are online, by name, with what the leases leave free."""
        leases = list(leases)
        taken = Counter(lease.machine for lease in leases)
        memory: Counter[str] = Counter()
        for lease in leases:
            memory[lease.machine] += lease.memory_bytes
        return [
            Machine(
                name, card.slots, max(0, card.slots - taken[name]), card.device,
                max(0, (card.device.memory_bytes if card.device else 0) - memory[name]), card.rental,
            )
            for name, card in sorted(self._cards.items()) if self._online.get(name, False)
        ]  # fmt: skip

    def status(self, provider: str, leases: Iterable[Lease], now: datetime) -> ProviderStatus:
        """Return the status of the machines that are not rented: down without any, degraded while one with a lease is away."""
        rented = {name for name, card in self._cards.items() if card.rental is not None}
        leases = [lease for lease in leases if lease.machine not in rented]
        machines = [machine for machine in self.machines(leases) if machine.rental is None]
        names = {machine.name for machine in machines}
        away = any(lease.machine not in names for lease in leases)
        status = "down" if not machines else "degraded" if away else "up"
        slots, free = sum(machine.slots for machine in machines), sum(machine.free for machine in machines)
        return ProviderStatus(provider=provider, status=status, slots=slots, free=free, at=now)
