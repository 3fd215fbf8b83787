"""The one door to a machine: `select_optimal_provider` weighs every machine there is for a job. Pure.

What fits is what may hold the job at all: GPU of the tier, memory, disk, deadline, budget, trust, spot. Of what fits the
lowest P90 cost is taken. Equals are told apart in this order: this lab's own machine, one with a free slot, the shorter
P90, the provider's name, the machine's name. So the same market and the same job give the same answer.
"""

from __future__ import annotations

from datetime import timedelta
from heapq import nsmallest

from agents.gpu_orchestrator.market import estimate
from agents.gpu_orchestrator.market.reasons import nothing_fits, reasons, why
from agents.gpu_orchestrator.market.requirements import Requirements, Supply
from agents.gpu_orchestrator.market.weighing import Fitting, Search, weigh_own, weigh_rented
from agents.gpu_orchestrator.market.words import named
from protocol.job import Plan
from protocol.machine import Listing, Offer, Quote

OTHERS = 20
"""Further offers in a quote."""
TRIED = 200
"""Machines that are ranked for a launch: where so many are sold out, the next look at the market is due."""


def ranked(requirements: Requirements, supply: Supply) -> list[tuple[Offer, Listing]]:
    """Return the rented machines that fit, best first, as many as anybody would try one after another."""
    search = Search()
    weigh_rented(requirements, supply, search)
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
    search = Search()
    weigh_own(requirements, supply, search)
    weigh_rented(requirements, supply, search)
    if not search.fitting:
        raise nothing_fits(requirements, search)
    best, *others = nsmallest(OTHERS + 1, search.fitting, key=lambda entry: entry.key)
    choice = _offer(best, requirements.plan, supply)
    offers = [_offer(entry, requirements.plan, supply) for entry in others]
    rejected = reasons(requirements, search)
    for offer in offers:
        rejected[named(offer)] = "costs more" if offer.cost_p90_micros > choice.cost_p90_micros else "as good as the chosen one"
    calibration = (
        supply.history.told_local() if choice.prior_s is None else supply.history.calibration(choice.provider, choice.gpu).told
    )
    return Quote(
        job=requirements.job, choice=choice, rejected=rejected, others=offers, calibration=calibration,
        reason=why(choice, offers, len(search.fitting)),
    )  # fmt: skip


def _offer(entry: Fitting, plan: Plan, supply: Supply) -> Offer:
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
