"""Vendors in virtual time: the test clouds behind the real adapters; what they boot are factories of the world.

Their meters are the truth that the lab's books are compared with at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import httpx2

from agents.gguf_factory.agent import FactoryAgent
from agents.gpu_orchestrator.providers.provider import Provider
from agents.gpu_orchestrator.providers.registry import open_providers
from agents.gpu_orchestrator.rentals.rental import Rental
from bus.workers import VARIABLE
from configs import Configs
from protocol.access import rental_of, worker_name
from protocol.machine import Card
from tests.clouds.cloud import Cloud, Instance
from tests.clouds.faults import Fault
from tests.clouds.http import Inside
from tests.clouds.lambda_cloud import LambdaCloud
from tests.clouds.runpod_cloud import RunPodCloud
from tests.clouds.vast_cloud import VastCloud
from tests.simulation.plan import Seller

if TYPE_CHECKING:
    from bus import Wiring
    from tests.simulation.world import Node, World

GIB = 2**30
VENDORS: dict[str, type[Cloud]] = {"lambda": LambdaCloud, "runpod": RunPodCloud, "vast": VastCloud}
TROUBLES = (
    Fault.ERROR, Fault.ERROR_AFTER, Fault.LOST, Fault.CUT, Fault.HANG_AFTER, Fault.MALFORMED, Fault.HTML, Fault.RATE_LIMIT,
    Fault.SOLD_OUT, Fault.EMPTY,
)  # fmt: skip


class RentedFactory(FactoryAgent):
    """A factory on a rented machine. `gpu`, `gpu_gib`: what it really has."""

    def __init__(self, wiring: Wiring, configs: Configs, provider: str, gpu: str, gpu_gib: float) -> None:
        self.provider, self.gpu, self.gpu_gib = provider, gpu, gpu_gib
        super().__init__(wiring, configs)
        self.slots = 1

    def card(self) -> Card:
        card = super().card()
        assert card.device is not None
        device = card.device.model_copy(update={"gpu": self.gpu, "gpu_memory_bytes": int(self.gpu_gib * GIB)})
        return card.model_copy(
            update={"provider": self.provider, "rental": rental_of(self.agent), "device": device, "slots": 1}
        )


class Booted:
    """What a cloud's boot gives: a machine of the world that can be switched off."""

    def __init__(self, world: World, node: Node) -> None:
        self.world, self.node = world, node

    def terminate(self) -> None:
        self.world.returned(self.node)

    kill = terminate


class Slow(httpx2.AsyncBaseTransport):
    """A line to a vendor that takes its time."""

    def __init__(self, world: World, inner: httpx2.AsyncBaseTransport) -> None:
        self.world, self.inner = world, inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(self.world.random.uniform(0.05, 0.8))
        return await self.inner.handle_async_request(request)


class Vendor:
    """One vendor of the world.

    Args:
        seller: what it sells, and how well.
    """

    def __init__(self, world: World, seller: Seller) -> None:
        self.world, self.seller = world, seller
        self.accounts: list[Cloud] = []
        self.open_account()
        self._tick()

    def open_account(self) -> None:
        """Let the lab have the key of a new account, from its next start on."""
        number = len(self.accounts)
        self.cloud = VENDORS[self.seller.vendor](
            self.clock, boot=self._boot, boot_seconds=self.seller.boot, billing_factor=self.seller.billing_factor,
            key=f"key-of-account-{number}", account=number,
        )  # fmt: skip
        self.cloud.chance = self._chance
        for stock in self.cloud.stock.values():
            stock.free = self.seller.capacity
        self.accounts.append(self.cloud)

    def clock(self) -> datetime:
        """The vendor's clock is right."""
        return self.world.start + timedelta(seconds=self.world.now)

    def provider(self) -> Provider:
        """Return the real adapter."""
        line = Slow(self.world, Inside(self.cloud))
        orchestrator = self.world.nodes["gpu_orchestrator"]  # the adapter is in its process
        return open_providers({self.seller.vendor: self.cloud.account()}, orchestrator.clock, line)[self.seller.vendor]

    def _tick(self) -> None:
        for cloud in self.accounts:
            cloud.move()
        self.world.at(self.world.now + 1.0, self._tick)

    def _chance(self, call: str) -> Fault | None:
        dice = self.world.random
        if self.world.healed or dice.random() >= self.seller.trouble:
            return None
        fault = dice.choice(TROUBLES)
        self.world.counts[f"{call}: {fault.name.lower()}"] += 1
        return fault

    def _boot(self, instance: Instance, environment: dict[str, str]) -> Booted | None:
        dice, seller, stock = self.world.random, self.seller, instance.stock
        if VARIABLE not in environment:
            return None  # another lab's
        if not self.world.healed and dice.random() < seller.dead:
            self.world.counts["never boots"] += 1
            return None
        gib = float(stock.gpu_memory_gb)
        if not self.world.healed and dice.random() < seller.lies:
            self.world.counts["host lies"] += 1
            gib /= 2
        build = partial(
            RentedFactory, configs=self.world.configs, provider=seller.vendor, gpu=stock.gpu if stock.gpus else "", gpu_gib=gib
        )
        if not self.world.healed and dice.random() < seller.preempted:
            self.world.at(self.world.now + dice.uniform(5, 120), partial(self._preempt, self.cloud, instance))
        return Booted(self.world, self.world.rented(worker_name(self.world.tokens[environment[VARIABLE]]), build))

    def _preempt(self, cloud: Cloud, instance: Instance) -> None:
        if instance.state in ("booting", "running"):
            self.world.counts["preempted"] += 1
            cloud.preempt(instance.id)


class Gate:
    """Lets workers in: the simulated broker asks nobody for a login."""

    def __init__(self, world: World) -> None:
        self.world = world

    def token(self, rental: str, provider: str) -> str:
        token = f"token-of-{rental}"
        self.world.tokens[token] = rental
        return token

    def environment(self, rental: Rental) -> Mapping[str, str]:
        return {VARIABLE: rental.token}

    async def admit(self, rental: Rental, jobs: Iterable[str]) -> None:
        pass

    async def dismiss(self, worker: str) -> None:
        pass

    async def admitted(self) -> set[str]:
        return set()
