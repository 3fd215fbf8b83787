"""The one door to a machine: `select_optimal_provider` weighs every machine there is for a job. Pure.

What fits is what may hold the job at all: GPU of the tier, memory, disk, deadline, budget, trust, spot. Of what fits the
lowest P90 cost is taken. Equals are told apart in this order: this lab's own machine, one with a free slot, the shorter
P90, the provider's name, the machine's name. So the same market and the same job give the same answer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from heapq import nsmallest

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market import estimate, gpus
from agents.gpu_orchestrator.market.estimate import Work, milliseconds
from agents.gpu_orchestrator.market.gpus import GPUS
from agents.gpu_orchestrator.market.history import History
from agents.gpu_orchestrator.market.sanity import usd
from configs import Provider
from configs.providers import Rented
from protocol import Code, LabError
from protocol.job import Plan
from protocol.machine import Listing, Offer, Quote

OTHERS = 20
"""Further offers in a quote."""
REASONS = 60
"""Rejected listings that a quote names, cheapest first, of those that anybody asked for. A message has a limit."""

TOLD = 8
"""Reasons that an error's sentence gives; its data has more."""
REST = "…"
"""Stands in a quote's reasons for all machines that it does not name."""
TRIED = 200
"""Machines that are ranked for a launch: where so many are sold out, the next look at the market is due."""


@dataclass(frozen=True)
class Requirements:
    """What a job needs of a machine, and what its owner allows.

    Attributes:
        gpus: what the tier is meant for; empty: this lab's own machines, unless `providers` names others.
        limit_micros: the most that may be reserved; None: no limit beside the budget's periods.
        limit_is: whose limit it is, for people.
        deadline_s: seconds from now on in which nine in ten such jobs must be done.
        providers: only these; None: all.
        untrusted: whether strangers' machines may get the data.
        spot: whether a machine may be taken that its provider may take away: only where checkpoints leave the machine.
        economy: money is short: of rented machines only spot, or one that costs at most the median of its GPU.
        tier: its name, for people.
    """

    job: str
    plan: Plan
    gpus: tuple[str, ...] = ()
    limit_micros: int | None = None
    limit_is: str = "the request's budget_usd"
    deadline_s: float | None = None
    providers: frozenset[str] | None = None
    untrusted: bool = False
    spot: bool = False
    economy: bool = False
    tier: str = ""


@dataclass(frozen=True)
class Supply:
    """What there is: this lab's machines that are online, listings that the book has judged, and what a GPU usually costs."""

    at: datetime
    machines: Sequence[Machine]
    local: Provider
    listings: Sequence[Listing] = ()
    rented: Rented = field(default_factory=Rented)
    history: History = field(default_factory=History)
    usual: Mapping[str, float] = field(default_factory=dict)


Key = tuple[int, bool, bool, float, str, str]


@dataclass(frozen=True)
class _Fitting:
    """What fits: how it is ordered, and what it is made of."""

    key: Key
    machine: Offer | Listing
    reservation: int = 0
    work: Work | None = None


@dataclass(slots=True)
class _Refused:
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
class _Search:
    """What was found: what fits, and of the rest whether only money or time was missing."""

    fitting: list[_Fitting] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)
    refused: list[_Refused] = field(default_factory=list)
    needed_micros: int | None = None
    needed_s: float | None = None

    def too_dear(self, reservation: int) -> None:
        self.needed_micros = reservation if self.needed_micros is None else min(self.needed_micros, reservation)

    def too_slow(self, seconds: float) -> None:
        self.needed_s = seconds if self.needed_s is None else min(self.needed_s, seconds)


def ranked(requirements: Requirements, supply: Supply) -> list[tuple[Offer, Listing]]:
    """Return the rented machines that fit, best first, as many as anybody would try one after another."""
    search = _Search()
    _rented(requirements, supply, search)
    return [
        (_offer(entry, requirements.plan, supply), entry.machine)
        for entry in nsmallest(TRIED, search.fitting, key=lambda entry: entry.key) if isinstance(entry.machine, Listing)
    ]  # fmt: skip


def select_optimal_provider(requirements: Requirements, supply: Supply) -> Quote:
    """Choose the machine with the lowest P90 cost that fits.

    Raises:
        LabError: BUDGET if only the money is missing, else NO_CAPACITY (with field deadline_hours if only time is missing);
            both with the reason of every machine, as far as they go into a message.
    """
    search = _Search()
    _own_machines(requirements, supply, search)
    _rented(requirements, supply, search)
    if not search.fitting:
        raise _nothing_fits(requirements, search)
    best, *others = nsmallest(OTHERS + 1, search.fitting, key=lambda entry: entry.key)
    choice = _offer(best, requirements.plan, supply)
    offers = [_offer(entry, requirements.plan, supply) for entry in others]
    rejected = _reasons(requirements, search)
    for offer in offers:
        rejected[_named(offer)] = "costs more" if offer.cost_p90_micros > choice.cost_p90_micros else "as good as the chosen one"
    calibration = (
        supply.history.calibration(choice.provider, choice.gpu).told if choice.paid else supply.history.told_local()
    )
    return Quote(
        job=requirements.job, choice=choice, rejected=rejected, others=offers, calibration=calibration,
        reason=_why(choice, offers, len(search.fitting)),
    )  # fmt: skip


def _own_machines(wanted: Requirements, supply: Supply, search: _Search) -> None:
    for machine in supply.machines:
        offer = estimate.local_offer(machine.name, wanted.plan, supply.local)
        seconds = offer.seconds_p90 + supply.local.provisioning_seconds
        if wanted.providers is not None and "local" not in wanted.providers:
            reason = "the request names other providers"
        elif machine.slots < 1:
            reason = "it has no slots"
        elif wanted.plan.not_here is not None:
            reason = wanted.plan.not_here
        elif machine.device is None:
            reason = "its card does not say what memory it has"
        elif machine.device.memory_bytes < wanted.plan.memory_bytes:
            reason = f"the job needs {_gib(wanted.plan.memory_bytes)} GiB of memory, the machine has {_gib(machine.device.memory_bytes)} GiB"
        elif wanted.deadline_s is not None and seconds > wanted.deadline_s:
            reason = _late(seconds, wanted)
            search.too_slow(seconds)
        elif wanted.limit_micros is not None and offer.reservation_micros > wanted.limit_micros:
            reason = _over(offer.reservation_micros, wanted)
            search.too_dear(offer.reservation_micros)
        else:
            key = (offer.cost_p90_micros, False, machine.free < 1, offer.seconds_p90, "local", machine.name)
            search.fitting.append(_Fitting(key, offer))
            continue
        search.own[machine.name] = reason


def _rented(wanted: Requirements, supply: Supply, search: _Search) -> None:
    scale = _Scale(wanted, supply)
    for item in supply.listings:
        refusal = scale.unfit(item)
        if refusal is not None:
            search.refused.append(_Refused(item, refusal))
            continue
        work = scale.work(item.provider, item.gpu)
        assert item.price_micros_per_hour is not None
        spent = estimate.cost(item.price_micros_per_hour, work.p90_ms) + scale.extras(item, work.p90_ms)
        refusal = scale.forbidden(item, work)
        if refusal is not None:
            if refusal == "deadline":
                search.too_slow(work.p90_ms / 1000)
            search.refused.append(_Refused(item, refusal, spent, work.p90_ms / 1000))
            continue
        whole = work.p90_ms + scale.grace_ms
        aside = estimate.reservation(item.price_micros_per_hour, whole) + scale.extras(item, whole)
        if wanted.limit_micros is not None and aside > wanted.limit_micros:
            search.too_dear(aside)
            search.refused.append(_Refused(item, _over(aside, wanted), spent))
            continue
        key = (spent, True, False, work.p90_ms / 1000, item.provider, item.id)
        search.fitting.append(_Fitting(key, item, aside, work))


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


def _offer(entry: _Fitting, plan: Plan, supply: Supply) -> Offer:
    item, work = entry.machine, entry.work
    if isinstance(item, Offer):
        return item
    assert work is not None and item.price_micros_per_hour is not None
    counts = timedelta(minutes=supply.rented.live_minutes)
    return Offer(
        provider=item.provider, machine=item.id, price_micros_per_hour=item.price_micros_per_hour,
        seconds_p50=work.p50_ms / 1000, seconds_p90=work.p90_ms / 1000,
        cost_p50_micros=estimate.cost(item.price_micros_per_hour, work.p50_ms)
        + estimate.extras(item, *estimate.sizes_gb(plan), work.p50_ms),
        cost_p90_micros=entry.key[0], reservation_micros=entry.reservation,
        gpu=item.gpu, gpus=item.gpus, gpu_memory_bytes=item.gpu_memory_bytes, region=item.region, spot=item.spot,
        expires_at=(item.seen_at if item.source == "live" else supply.at) + counts,
        disk_bytes=estimate.disk_bytes(plan), prior_s=work.prior_s,
    )  # fmt: skip


def _reasons(wanted: Requirements, search: _Search) -> dict[str, str]:
    """Every own machine's reason, and those of the listings that come nearest; of the rest how many have which."""
    found = dict(search.own)
    near = sorted((refused for refused in search.refused if not refused.far), key=lambda refused: refused.spent or math.inf)
    for refused in near[:REASONS]:
        found[f"{refused.item.provider} {refused.item.id}"] = _sentence(refused, wanted)
    rest = Counter(SHORT.get(refused.reason, "over the limit of money") for refused in near[REASONS:])
    rest.update(_sentence(refused, wanted) for refused in search.refused if refused.far)
    if rest:
        found[REST] = "; ".join(f"{what} ({count} machines)" for what, count in rest.most_common())
    return found


SHORT = {
    "plan": "the plan says too little", "memory": "too little memory", "disk": "too little disk",
    "speed": "a GPU of unknown speed", "judged": "see `meetara offers --all`", "untrusted": "machines of strangers",
    "economy": "dearer than the median while money is short", "spot": "may be taken away at any time", "deadline": "too slow for the deadline",
}  # fmt: skip
"""What a reason is, for those that are only counted; any other reason is a sentence about money."""


def _sentence(refused: _Refused, wanted: Requirements) -> str:
    item, plan = refused.item, wanted.plan
    match refused.reason:
        case "provider":
            return "the request names other providers"
        case "gpu":
            meant = ", ".join(wanted.gpus) or "this lab's own machines, unless the request names providers"
            return f"the tier {wanted.tier} is meant for {meant}"
        case "plan":
            return "the plan does not say what training takes: the factory that made it is of an older version"
        case "memory":
            has = item.gpu_memory_bytes or GPUS[item.gpu].memory_gib * gpus.GIB
            return f"the job needs {_gib(estimate.gpu_bytes(plan))} GiB of one GPU's memory, it has {_gib(has)} GiB"
        case "disk":
            return f"the job needs {estimate.disk_bytes(plan) / 1e9:.0f} GB of disk, it has {(item.disk_bytes or 0) / 1e9:.0f} GB"
        case "speed":
            return f"nothing is known of the speed of {item.gpu or 'a machine without a GPU'}"
        case "judged":
            would = f"would cost {usd(refused.spent)} (P90), but " if refused.spent > 0 else ""
            return f"{would}{item.rejected or 'its price is not known'}"
        case "untrusted":
            return "a stranger's machine, and the request does not allow untrusted_hosts"
        case "spot":
            return "it may be taken away at any time, and its checkpoints with it: no artefact store is set, or they are to stay there"
        case "economy":
            return "four fifths of the budget are used: only spot machines are taken, and those that cost at most the median"
        case "deadline":
            return _late(refused.seconds, wanted)
        case reason:
            return reason


def _why(choice: Offer, others: Sequence[Offer], count: int) -> str:
    told = f"the lowest cost at P90, {usd(choice.cost_p90_micros)} in {_hours(choice.seconds_p90)}"
    if not others:
        return f"{told}; nothing else fits"
    return f"{told}, of {count} that fit; the next is {_named(others[0])} at {usd(others[0].cost_p90_micros)}"


def _nothing_fits(wanted: Requirements, search: _Search) -> LabError:
    rejected = _reasons(wanted, search)
    alike: dict[str, list[str]] = defaultdict(list)
    for name, reason in rejected.items():
        if name != REST or len(rejected) == 1:
            alike[reason].append(name)
    shown = [
        reason if names == [REST] else f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in list(alike.items())[:TOLD]
    ]  # fmt: skip
    left = len(alike) - len(shown)
    listed = "; ".join([*shown, *([f"and {left} more reasons (`meetara offers --all`)"] if left > 0 else [])]) or "there is none"
    if search.needed_micros is not None:
        error = LabError(
            Code.BUDGET, f"no machine fits the budget: {listed}.",
            advice=f"Allow budget_usd of at least {math.ceil(search.needed_micros / 10_000) / 100:.2f}, or ask for a smaller job.",
            needed_micros=search.needed_micros, cap_micros=wanted.limit_micros, rejected=rejected,
        )  # fmt: skip
        if wanted.limit_is == Requirements.limit_is:
            error.data["field"] = "budget_usd"
        return error
    if search.needed_s is not None:
        return LabError(
            Code.NO_CAPACITY, f"no machine is fast enough: {listed}.",
            advice=f"Allow deadline_hours of at least {math.ceil(search.needed_s / 360) / 10:.1f}, or ask for a smaller job.",
            field="deadline_hours", needed_hours=search.needed_s / 3600, rejected=rejected,
        )  # fmt: skip
    return LabError(
        Code.NO_CAPACITY, f"no machine fits the job: {listed}.",
        advice="Choose a smaller base or batch_size, start a factory on a larger machine, or add a provider (docs/money.md).",
        rejected=rejected,
    )  # fmt: skip


def limit(budget_usd: float | None, cap_usd: float | None) -> tuple[int | None, str]:
    """Return the most that may be reserved, in micro-dollars, and whose limit that is: the tier's cap counts only where the
    request names no budget."""
    usd_, whose = (budget_usd, Requirements.limit_is) if budget_usd is not None else (cap_usd, "the tier's cap")
    return (None if usd_ is None else math.floor(Fraction(str(usd_)) * 1_000_000)), whose


def _late(seconds: float, wanted: Requirements) -> str:
    return f"the job may take {_hours(seconds)} there (P90), longer than the {_hours(wanted.deadline_s or 0)} of deadline_hours"


def _over(reservation: int, wanted: Requirements) -> str:
    return f"the job must reserve {usd(reservation)} there, more than {usd(wanted.limit_micros or 0)}, {wanted.limit_is}"


def _named(offer: Offer) -> str:
    return f"{offer.provider} {offer.machine}" if offer.paid else offer.machine


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
