"""Offers: what a job would take and cost on each machine. Pure; money in integer micro-dollars, rounded up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from configs import Provider
from protocol import Code, LabError, Retry
from protocol.job import Plan
from protocol.machine import Device, Offer, Quote

MARGIN = Fraction(11, 10)
"""A reservation is a tenth above what P90 says (architecture §5)."""


@dataclass(frozen=True)
class Machine:
    """A factory that is online: its slots, and what it has. `free` is how many slots nobody leases; `rental` None: it is ours."""

    name: str
    slots: int
    free: int
    device: Device | None
    free_memory_bytes: int = 0
    rental: str | None = None


def cost(price_micros_per_hour: int, seconds: float) -> int:
    """Return what `seconds` cost, rounded up to a micro-dollar."""
    return math.ceil(price_micros_per_hour * Fraction(seconds) / 3600)


def offer(machine: str, plan: Plan, terms: Provider, provider: str = "local") -> Offer:
    """Return what a planned job takes and costs on a machine.

    The reservation is price x (P90 time + provisioning + grace) x MARGIN.
    """
    price = terms.price_micros_per_hour
    whole = Fraction(plan.seconds_p90) + Fraction(terms.provisioning_seconds) + Fraction(terms.grace_seconds)
    return Offer(
        provider=provider, machine=machine, price_micros_per_hour=price,
        seconds_p50=plan.seconds_p50, seconds_p90=plan.seconds_p90,
        cost_p50_micros=cost(price, plan.seconds_p50), cost_p90_micros=cost(price, plan.seconds_p90),
        reservation_micros=math.ceil(price * whole / 3600 * MARGIN),
    )  # fmt: skip


def quote(
    job: str, plan: Plan, machines: Iterable[Machine], terms: Provider, budget_usd: float | None, tier_cap_usd: float | None = None
) -> Quote:
    """Choose the machine with the lowest P90 cost; among equals one with a free slot, then by name.

    Args:
        machines: the machines that are online; at least one.
        budget_usd: the most that the request allows; None: the tier's cap counts.
        tier_cap_usd: the tier's cap; None: there is none.

    Raises:
        LabError: BUDGET if only the money is missing, else NO_CAPACITY; both with the reason of every machine.
    """
    limit_usd, whose = (budget_usd, "the request's budget_usd") if budget_usd is not None else (tier_cap_usd, "the tier's cap")
    limit = None if limit_usd is None else math.floor(Fraction(str(limit_usd)) * 1_000_000)
    good: list[tuple[int, bool, str, Offer]] = []
    rejected: dict[str, str] = {}
    dear: list[Offer] = []
    for machine in machines:
        here = offer(machine.name, plan, terms)
        if machine.slots < 1:
            rejected[machine.name] = "it has no slots"
        elif machine.device is None:
            rejected[machine.name] = "its card does not say what memory it has"
        elif machine.device.memory_bytes < plan.memory_bytes:
            rejected[machine.name] = (
                f"the job needs {_gib(plan.memory_bytes)} GiB of memory, the machine has {_gib(machine.device.memory_bytes)} GiB"
            )
        elif limit is not None and here.reservation_micros > limit:
            rejected[machine.name] = (
                f"the job must reserve {_usd(here.reservation_micros)} there, more than {_usd(limit)}, {whose}"
            )
            dear.append(here)
        else:
            good.append((here.cost_p90_micros, machine.free < 1, machine.name, here))
    if good:
        best = min(good, key=lambda entry: entry[:3])
        for _, _, name, other in good:
            if name != best[2]:
                rejected[name] = "costs more" if other.cost_p90_micros > best[0] else "as good as the chosen one"
        return Quote(job=job, choice=best[3], rejected=rejected)
    listed = "; ".join(f"{name}: {reason}" for name, reason in sorted(rejected.items()))
    if dear:
        needed = min(here.reservation_micros for here in dear)
        error = LabError(
            Code.BUDGET, f"no machine fits the budget: {listed}.",
            advice=f"Allow budget_usd of at least {math.ceil(needed / 10_000) / 100:.2f}, or ask for a smaller job.",
            needed_micros=needed, cap_micros=limit, rejected=rejected,
        )  # fmt: skip
        if budget_usd is not None:
            error.data["field"] = "budget_usd"
        raise error
    raise LabError(
        Code.NO_CAPACITY, f"no machine fits the job: {listed}.",
        advice="Choose a smaller base or batch_size, or start a factory on a larger machine.", rejected=rejected,
    )  # fmt: skip


def nobody_online(waited_s: float) -> LabError:
    """Return the error for a quote while no factory is there."""
    return LabError(
        Code.NO_CAPACITY, f"no factory is online; none came within {waited_s:g} s.",
        advice="Start one (`meetara up`), then send the request again.", retry=Retry.LATER, retry_after=30,
    )  # fmt: skip


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _usd(micros: int) -> str:
    return f"${micros / 1_000_000:.2f}" if micros % 10_000 == 0 else f"${micros / 1_000_000:.6f}".rstrip("0")
