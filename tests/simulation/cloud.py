"""A provider of machines in virtual time: it sells, boots, bills and fails; what it boots are factories of the world.

Its own books are the truth that the lab's are compared with at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from agents.gguf_factory.agent import FactoryAgent
from agents.gpu_orchestrator.providers.provider import (
    Instance,
    NoCapacity,
    Order,
    Phase,
    PriceMoved,
    RateLimited,
    Unknown,
)
from agents.gpu_orchestrator.rentals.meter import micros
from agents.gpu_orchestrator.rentals.rental import Rental
from protocol.access import worker_name
from protocol.machine import Card, Listing
from tests.simulation.plan import Seller

if TYPE_CHECKING:
    from tests.simulation.world import Node, World

GIB = 2**30
REGIONS = ("east", "west")


@dataclass
class Machine:
    """What a cloud has rented out. `ended`: when the meter stopped."""

    instance: Instance
    started: datetime
    ended: datetime | None = None
    node: Node | None = None


class RentedFactory(FactoryAgent):
    """A factory on a rented machine."""

    def __init__(self, wiring: Any, configs: Any, provider: str, rental: str, gpu_gib: int) -> None:
        self.rented = {"provider": provider, "rental": rental}
        self.gpu_gib = gpu_gib
        super().__init__(wiring, configs)

    def card(self) -> Card:
        card = super().card()
        assert card.device is not None
        device = card.device.model_copy(update={"gpu": "Tesla T4", "gpu_memory_bytes": self.gpu_gib * GIB})
        return card.model_copy(update={**self.rented, "device": device, "slots": 1})


class Cloud:
    """One provider.

    Args:
        seller: what it sells, and how well. The second region costs a tenth more.
    """

    def __init__(self, world: World, seller: Seller) -> None:
        self.world, self.name = world, seller.name
        self.price, self.capacity = seller.price, seller.capacity
        self.trouble, self.preempted, self.lies = seller.trouble, seller.preempted, seller.lies
        self.down = False
        self.machines: dict[str, Machine] = {}
        self.launches = 0

    def _now(self) -> datetime:
        return self.world.start + timedelta(seconds=self.world.now)

    async def _answer(self) -> None:
        """Take some time, and fail now and then without having done anything."""
        dice = self.world.random
        await asyncio.sleep(dice.uniform(0.05, 1.0))
        if self.down or dice.random() < self.trouble / 2:
            self.world.counts["provider does not answer"] += 1
            raise dice.choice((Unknown(self.name, "502 Bad Gateway"), RateLimited(self.name, "slow down", 3.0)))

    async def _lose(self) -> None:
        """Lose the answer to something that was done."""
        if self.world.random.random() < self.trouble / 2:
            self.world.counts["provider's answer is lost"] += 1
            await asyncio.sleep(20.0)
            raise Unknown(self.name, "no answer within 20 s")

    async def listings(self) -> Sequence[Listing]:
        await self._answer()
        return [
            Listing(
                provider=self.name, id=f"t4-{region}", gpu="T4", gpus=1, gpu_memory_bytes=16 * GIB, cores=8,
                memory_bytes=32 * GIB, region=region, price_micros_per_hour=self.price * (10 + number) // 10, seen_at=self._now(),
            )
            for number, region in enumerate(REGIONS)
        ]  # fmt: skip

    async def launch(self, order: Order) -> Instance:
        await self._answer()
        dice = self.world.random
        region = order.listing.region
        if sum(1 for machine in self.machines.values() if machine.instance.region == region and not machine.ended) >= self.capacity:
            self.world.counts["sold out"] += 1
            raise NoCapacity(self.name, f"no T4 in {region}")
        if dice.random() < self.trouble / 4:
            self.world.counts["price moved"] += 1
            raise PriceMoved(self.name, "it costs more now")
        price = order.listing.price_micros_per_hour
        assert price is not None
        self.launches += 1
        id = f"{self.name}-{self.launches}"
        instance = Instance(self.name, id, order.tag, Phase.STARTING, "T4", region, price, self._now())
        self.machines[id] = Machine(instance, self._now())
        boots = dice.random() >= self.trouble / 4
        if boots:
            self.world.at(self.world.now + dice.uniform(20, 90), partial(self._boot, id, order))
        else:
            self.world.counts["never boots"] += 1
        if dice.random() < self.preempted:
            self.world.at(self.world.now + dice.uniform(60, 300), partial(self._preempt, id))
        await self._lose()
        return instance

    def _boot(self, id: str, order: Order) -> None:
        machine = self.machines[id]
        if machine.ended is not None:
            return
        machine.instance = self._as(machine, Phase.RUNNING)
        rental = order.key
        gpu_gib = 6 if self.world.random.random() < self.lies else 15
        if gpu_gib == 6:
            self.world.counts["host lies"] += 1
        build = partial(RentedFactory, configs=self.world.configs, provider=self.name, rental=rental, gpu_gib=gpu_gib)
        machine.node = self.world.rented(worker_name(rental), build)

    def _preempt(self, id: str) -> None:
        if self.machines[id].ended is None:
            self.world.counts["preempted"] += 1
            self._end(id)

    def _end(self, id: str) -> None:
        machine = self.machines[id]
        if machine.ended is None:
            machine.ended = self._now()
            machine.instance = self._as(machine, Phase.GONE)
            if machine.node is not None:
                self.world.returned(machine.node)

    def _as(self, machine: Machine, phase: Phase) -> Instance:
        old = machine.instance
        return Instance(old.provider, old.id, old.tag, phase, old.gpu, old.region, old.price_micros_per_hour, old.since)

    async def list(self, prefix: str) -> Sequence[Instance]:
        await self._answer()
        return [m.instance for m in self.machines.values() if m.instance.tag.startswith(prefix)]

    async def status(self, id: str) -> Instance | None:
        await self._answer()
        found = self.machines.get(id)
        return found.instance if found else None

    async def terminate(self, id: str) -> None:
        await self._answer()
        self._end(id)
        await self._lose()

    async def billed(self, id: str, since: datetime) -> int | None:
        await self._answer()
        return self.bill(self.machines[id])

    async def close(self) -> None:
        pass

    def bill(self, machine: Machine) -> int:
        """Return what a machine costs, in micro-dollars."""
        assert machine.instance.price_micros_per_hour is not None
        return micros(machine.instance.price_micros_per_hour, (machine.ended or self._now()) - machine.started)

    def invoice(self) -> int:
        """Return what all machines cost, in micro-dollars."""
        return sum(map(self.bill, self.machines.values()))




class Gate:
    """Lets workers in: the simulated broker asks nobody for a login."""

    def token(self, rental: str, provider: str) -> str:
        return ""

    def environment(self, rental: Rental) -> Mapping[str, str]:
        return {}

    async def admit(self, rental: Rental, jobs: Iterable[str]) -> None:
        pass

    async def dismiss(self, worker: str) -> None:
        pass

    async def strangers(self, living: Iterable[str]) -> set[str]:
        return set()
