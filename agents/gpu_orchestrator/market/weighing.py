"""Weighs machines for a job: what fits and how it is ordered, and what does not. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market import estimate, gpus
from agents.gpu_orchestrator.market.estimate import Work, milliseconds
from agents.gpu_orchestrator.market.gpus import GPUS, Gpu
from agents.gpu_orchestrator.market.requirements import Requirements, Supply
from agents.gpu_orchestrator.market.words import gib, late, over
from protocol.machine import LENT, Listing, Offer

Key = tuple[int, bool, bool, float, str, str]


@dataclass(frozen=True)
class Fitting:
    """What fits: how it is ordered, and what it is made of."""

    key: Key
    machine: Offer | Listing
    reservation: int = 0
    work: Work | None = None


@dataclass(slots=True)
class Refused:
    """A listing that is not taken. `spent` and `seconds`: what the job would cost and take there at P90, where that is known."""

    item: Listing
    reason: str
    spent: int = 0
    seconds: float = 0.0

    @property
    def far(self) -> bool:
        """Whether nobody asked for such a machine."""
        return self.reason in ("provider", "gpu")


@dataclass
class Search:
    """What was found: what fits, and of the rest whether only money or time was missing."""

    fitting: list[Fitting] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    needed_micros: int | None = None
    needed_s: float | None = None

    def too_dear(self, reservation: int) -> None:
        """Note that only money was missing."""
        self.needed_micros = reservation if self.needed_micros is None else min(self.needed_micros, reservation)

    def too_slow(self, seconds: float) -> None:
        """Note that only time was missing."""
        self.needed_s = seconds if self.needed_s is None else min(self.needed_s, seconds)


def weigh_own(wanted: Requirements, supply: Supply, search: Search) -> None:
    """Sort the machines that nobody bills for into what fits and what does not."""
    for machine in supply.machines:
        if (reason := unfit(wanted, machine)) is not None:
            search.own[machine.name] = reason
            continue
        offer, seconds = _own_offer(wanted, machine, supply), own_seconds(wanted, machine, supply)
        if wanted.deadline_s is not None and seconds > wanted.deadline_s:
            search.own[machine.name] = late(seconds, wanted)
            search.too_slow(seconds)
        elif wanted.limit_micros is not None and offer.reservation_micros > wanted.limit_micros:
            search.own[machine.name] = over(offer.reservation_micros, wanted)
            search.too_dear(offer.reservation_micros)
        else:
            key = (offer.cost_p90_micros, False, machine.free < 1, offer.seconds_p90, offer.provider, machine.name)
            search.fitting.append(Fitting(key, offer))


def unfit(wanted: Requirements, machine: Machine) -> str | None:
    """Return why a machine that nobody bills for could not do a job at all."""
    plan, device = wanted.plan, machine.device
    if wanted.providers is not None and machine.provider not in wanted.providers:
        return "the request names other providers"
    if machine.slots < 1:
        return "it has no slots"
    if not machine.lent and plan.not_here is not None:
        return plan.not_here
    if device is None:
        return "its card does not say what memory it has"
    if machine.lent and plan.staged is None and not wanted.would_stage:
        return (
            "the job's data are here only: set MEETARA_STORE, and name providers with `lent` among them "
            "or a tier that is meant for GPUs"
        )
    known = _gpu(machine) is not None and plan.trained_tokens is not None and plan.working_bytes is not None
    if known and device.gpu_memory_bytes < (needed := estimate.gpu_bytes(plan)):
        return f"the job needs {gib(needed)} GiB of one GPU's memory, it has {gib(device.gpu_memory_bytes)} GiB"
    if device.memory_bytes < plan.memory_bytes:
        return f"the job needs {gib(plan.memory_bytes)} GiB of memory, the machine has {gib(device.memory_bytes)} GiB"
    if machine.lent and device.disk_free_bytes < plan.disk_bytes:
        return f"the job needs {plan.disk_bytes / 1e9:.1f} GB of disk, it has {device.disk_free_bytes / 1e9:.1f} GB"
    return None


def own_seconds(wanted: Requirements, machine: Machine, supply: Supply) -> float:
    """Return the seconds in which nine in ten such jobs are done on a machine that nobody bills for."""
    return _own_offer(wanted, machine, supply).seconds_p90 + (0.0 if machine.lent else supply.local.provisioning_seconds)


def instead(wanted: Requirements, machine: Machine, supply: Supply, reserved_micros: int) -> bool:
    """Tell whether a machine that nobody bills for may have a job that was quoted for another one: it can do it, in time, and for
    what is reserved."""
    if unfit(wanted, machine) is not None or _own_offer(wanted, machine, supply).reservation_micros > reserved_micros:
        return False
    return wanted.deadline_s is None or own_seconds(wanted, machine, supply) <= wanted.deadline_s


def _gpu(machine: Machine) -> Gpu | None:
    """Return the GPU of a lent machine whose speed is known; the factory's own plan knows the lab's own machines better."""
    if not machine.lent or machine.device is None:
        return None
    return GPUS.get(gpus.gpu_name(machine.device.gpu, machine.device.gpu_memory_bytes))


def _own_offer(wanted: Requirements, machine: Machine, supply: Supply) -> Offer:
    if not machine.lent:
        return estimate.local_offer(machine.name, wanted.plan, supply.local)
    gpu = _gpu(machine)
    if gpu is None or wanted.plan.trained_tokens is None:
        return estimate.lent_offer(machine, wanted.plan)
    return estimate.lent_offer(machine, wanted.plan, gpu, supply.history.calibration(LENT, gpu.name))


def weigh_rented(wanted: Requirements, supply: Supply, search: Search) -> None:
    """Sort the listings into what fits and what does not."""
    scale = _Scale(wanted, supply)
    for item in supply.listings:
        refusal = scale.unfit(item)
        if refusal is not None:
            search.refused.append(Refused(item, refusal))
            continue
        work = scale.work(item.provider, item.gpu)
        assert item.price_micros_per_hour is not None
        spent = estimate.cost(item.price_micros_per_hour, work.p90_ms) + scale.extras(item, work.p90_ms)
        refusal = scale.forbidden(item, work)
        if refusal is not None:
            if refusal == "deadline":
                search.too_slow(work.p90_ms / 1000)
            search.refused.append(Refused(item, refusal, spent, work.p90_ms / 1000))
            continue
        # however short finished runs were, setting up may take its time
        whole = max(work.p90_ms, scale.setup_ms) + scale.grace_ms
        aside = estimate.reservation(item.price_micros_per_hour, whole) + scale.extras(item, whole)
        if wanted.limit_micros is not None and aside > wanted.limit_micros:
            search.too_dear(aside)
            search.refused.append(Refused(item, over(aside, wanted), spent))
            continue
        key = (spent, True, False, work.p90_ms / 1000, item.provider, item.id)
        search.fitting.append(Fitting(key, item, aside, work))


class _Scale:
    """What listings are weighed on. Everything is worked out once per GPU: thousands of listings are of a few dozen."""

    def __init__(self, wanted: Requirements, supply: Supply) -> None:
        plan = wanted.plan
        self._wanted = wanted
        self._supply = supply
        self._known = plan.trained_tokens is not None and plan.working_bytes is not None
        self._memory = estimate.gpu_bytes(plan) if self._known else 0
        self._disk = estimate.disk_bytes(plan)
        self._sizes = estimate.sizes_gb(plan)
        self._works: dict[tuple[str, str], Work] = {}
        self._meant: dict[str, bool] = {}
        self.grace_ms = milliseconds(supply.rented.grace_seconds)
        self.setup_ms = milliseconds(supply.rented.provisioning_seconds)
        self._deadline_ms = math.inf if wanted.deadline_s is None else wanted.deadline_s * 1000

    def unfit(self, item: Listing) -> str | None:
        """Return why a machine could not do the job, or why nobody can say what it would cost there."""
        if self._wanted.providers is not None and item.provider not in self._wanted.providers:
            return "provider"
        if not self.meant(item.gpu):
            return "gpu"
        if not self._known:
            return "plan"
        if item.gpu not in GPUS:
            return "speed"
        if (item.gpu_memory_bytes or GPUS[item.gpu].memory_gib * gpus.GIB) < self._memory:
            return "memory"
        if item.disk_bytes is not None and item.disk_bytes < self._disk:
            return "disk"
        return "judged" if item.price_micros_per_hour is None else None

    def forbidden(self, item: Listing, work: Work) -> str | None:
        """Return why a machine that could do the job is not to be taken."""
        if item.rejected is not None:
            return "judged"
        if not item.secure and not self._wanted.untrusted:
            return "untrusted"
        if item.spot and not self._wanted.spot:
            return "spot"
        if self._wanted.economy and not item.spot and self._price(item) > self._supply.usual.get(item.gpu, math.inf):
            return "economy"
        return "deadline" if work.p90_ms > self._deadline_ms else None

    def _price(self, item: Listing) -> float:
        return (item.price_micros_per_hour or 0) / item.gpus

    def meant(self, gpu: str) -> bool:
        """Tell whether the tier is meant for a GPU; a tier for this lab's own machines takes any that the request asks for by
        naming the provider."""
        if gpu not in self._meant:
            names = self._wanted.gpus
            self._meant[gpu] = (
                any(gpus.fits(name, gpu) for name in names) if names else self._wanted.providers is not None
            )
        return self._meant[gpu]

    def work(self, provider: str, gpu: str) -> Work:
        key = (provider, gpu)
        if key not in self._works:
            calibration = self._supply.history.calibration(provider, gpu)
            self._works[key] = estimate.work(self._wanted.plan, GPUS[gpu], self._supply.rented, calibration)
        return self._works[key]

    def extras(self, item: Listing, ms: int) -> int:
        """Return what disk and egress cost; most listings take nothing for them."""
        if not item.disk_micros_per_gb_hour and not item.egress_micros_per_gb:
            return 0
        return estimate.extras(item, *self._sizes, ms)
