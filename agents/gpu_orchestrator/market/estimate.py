"""What a planned job takes on a GPU, and what that costs. Pure; money in integer micro-dollars, always rounded up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market.gpus import Gpu
from agents.gpu_orchestrator.market.history import Calibration
from configs import Provider
from configs.providers import Rented
from protocol.job import Plan, Probe
from protocol.machine import LENT, LOCAL, Listing, Offer

FLOPS_PER_TOKEN = 4
"""Times the base's weights: LoRA needs the forward pass and the gradient of activations, not of weights."""
EFFICIENCY = 0.2
"""Part of a GPU's peak that training reaches. A guess until runs are finished: pre-training of large models reaches 0.46
(Chowdhery and others, PaLM, 2022, as model FLOPs utilisation), small batches of LoRA less."""
FIXED_S = 120.0
"""Imports, gates and publishing on a rented machine; a guess, which finished runs correct."""
FILE_PASSES, FILE_RATE = 4, 100e6
"""The 16-bit weights are fetched, merged, converted and quantised; bytes per second of such a pass, a guess as above."""
CUDA_BYTES = 1_500_000_000
"""What CUDA's context, its kernels and the allocator's slack take of a GPU's memory; about 0.5-1 GB are seen, so cautious."""
IMAGE_BYTES = 15_000_000_000
"""The worker's image with torch for CUDA, unpacked."""
MEASURED_SPREAD = 1.3
"""P90 ÷ P50 after a probe: only the export's time is still a guess then, and the machine's steadiness."""
GB = 10**9


@dataclass(frozen=True)
class Work:
    """What a job takes on one kind of machine. Milliseconds from the launch to the end of the work; `prior_s` before calibration."""

    p50_ms: int
    p90_ms: int
    prior_s: float


def training_seconds(plan: Plan, gpu: Gpu) -> float:
    """Return the seconds of all optimiser steps by arithmetic alone: tokens x 4·N FLOPs over peak x EFFICIENCY.

    Only one GPU counts, however many the machine has: the worker trains on one.
    """
    assert plan.trained_tokens is not None
    return FLOPS_PER_TOKEN * plan.base_parameters * plan.trained_tokens / (gpu.tflops * 1e12 * EFFICIENCY)


def export_seconds(plan: Plan) -> float:
    """Return the seconds of everything beside training: fetching the base, conversion, gates, publishing."""
    return FIXED_S + FILE_PASSES * 2 * plan.base_parameters / FILE_RATE


def work(plan: Plan, gpu: Gpu, terms: Rented, calibration: Calibration) -> Work:
    """Return what a job takes on a rented GPU: arithmetic, corrected by what finished runs took."""
    prior = terms.provisioning_seconds + export_seconds(plan) + training_seconds(plan, gpu)
    return Work(milliseconds(prior * calibration.median), milliseconds(prior * calibration.ninetieth), prior)


def gpu_bytes(plan: Plan) -> int:
    """Return the least memory of one GPU: the base's weights in 16 bits, adapter and activations, and CUDA's own."""
    assert plan.working_bytes is not None
    return 2 * plan.base_parameters + plan.working_bytes + CUDA_BYTES


def disk_bytes(plan: Plan) -> int:
    """Return the disk that a rented machine needs: the image, the base in 16 bits, and what the plan says."""
    return IMAGE_BYTES + 2 * plan.base_parameters + plan.disk_bytes


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds, rounded up: money is reckoned in integers."""
    return math.ceil(seconds * 1000)


def cost(price_micros_per_hour: int, ms: int) -> int:
    """Return what `ms` milliseconds cost, rounded up to a micro-dollar."""
    return -(-price_micros_per_hour * ms // 3_600_000)


def reservation(price_micros_per_hour: int, ms: int) -> int:
    """Return what has to be set aside for `ms` milliseconds: a tenth more than they cost (architecture §5)."""
    return -(-price_micros_per_hour * ms * 11 // 36_000_000)


def extras(listing: Listing, disk_gb: int, egress_gb: int, ms: int) -> int:
    """Return what disk (for `ms` milliseconds) and egress cost."""
    return cost(listing.disk_micros_per_gb_hour * disk_gb, ms) + listing.egress_micros_per_gb * egress_gb


def sizes_gb(plan: Plan) -> tuple[int, int]:
    """Return whole gigabytes of disk, and of what leaves the machine: the product, the shared base, a checkpoint's worth."""
    leaving = (plan.file_bytes or 2 * plan.base_parameters) + (plan.base_file_bytes or 0) + (plan.working_bytes or 0)
    return -(-disk_bytes(plan) // GB), -(-leaving // GB)


def local_offer(machine: str, plan: Plan, terms: Provider) -> Offer:
    """Return what a planned job takes and costs on a machine of the fleet; the plan's own times count there.

    The reservation is price x (P90 time + provisioning + grace) x 1.1.
    """
    price = terms.price_micros_per_hour
    p50, p90 = milliseconds(plan.seconds_p50), milliseconds(plan.seconds_p90)
    around = milliseconds(terms.provisioning_seconds + terms.grace_seconds)
    return Offer(
        provider=LOCAL, machine=machine, price_micros_per_hour=price,
        seconds_p50=plan.seconds_p50, seconds_p90=plan.seconds_p90,
        cost_p50_micros=cost(price, p50), cost_p90_micros=cost(price, p90),
        reservation_micros=reservation(price, p90 + around),
    )  # fmt: skip


def lent_offer(machine: Machine, plan: Plan, gpu: Gpu | None = None, calibration: Calibration | None = None) -> Offer:
    """Return what a planned job takes on a machine that somebody lends, from its start there; it costs the lab nothing.

    Args:
        gpu: what arithmetic is made with; None: nothing is known of its speed, and the plan's own times are all there is.
        calibration: what finished runs correct the arithmetic with.
    """
    p50, p90, prior = plan.seconds_p50, plan.seconds_p90, None
    if gpu is not None and calibration is not None:
        prior = export_seconds(plan) + training_seconds(plan, gpu)
        p50, p90 = prior * calibration.median, prior * calibration.ninetieth
    return Offer(
        provider=LENT, machine=machine.name, price_micros_per_hour=0, seconds_p50=p50, seconds_p90=p90,
        cost_p50_micros=0, cost_p90_micros=0, reservation_micros=0, prior_s=prior,
        gpu=gpu.name if gpu is not None else "", gpus=0 if gpu is None else 1,
        gpu_memory_bytes=machine.device.gpu_memory_bytes if gpu is not None and machine.device is not None else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class Rest:
    """What a job on a rented machine still takes from its probe on: likely, and what has to be set aside for it."""

    seconds: float
    likely_micros: int
    aside_micros: int


def rest(plan: Plan, probe: Probe, price_micros_per_hour: int, listing: Listing | None, terms: Rented) -> Rest:
    """Return what is still to come: what was until now, the meter tells better than any reckoning.

    Args:
        price_micros_per_hour: what the machine costs, its disk included.
        listing: what it is, for egress; None: it is sold no more.
    """
    seconds = _rest_s(plan, probe, exports=True)
    p50, whole = milliseconds(seconds), milliseconds(seconds * MEASURED_SPREAD + terms.grace_seconds)
    egress = listing.egress_micros_per_gb * sizes_gb(plan)[1] if listing is not None else 0
    return Rest(seconds, cost(price_micros_per_hour, p50) + egress, reservation(price_micros_per_hour, whole) + egress)


def _rest_s(plan: Plan, probe: Probe, exports: bool) -> float:
    steps = plan.steps * (1 + float(plan.parameters.get("control_share") or 0))
    return max(0.0, steps - probe.step) * probe.seconds / probe.steps + (export_seconds(plan) if exports else 0.0)


def requoted(offer: Offer, plan: Plan, probe: Probe, listing: Listing | None, local: Provider, terms: Rented) -> Offer:
    """Return an offer with times and money by what the first steps really took.

    All steps at the probe's pace replace the arithmetic; what came before the probe is known, only the export is still a guess.

    Args:
        listing: what the offer was made from, for disk and egress; None: a local slot, or one that is sold no more.
    """
    around = terms.provisioning_seconds if offer.paid else 0.0
    seconds = around + probe.elapsed_s + _rest_s(plan, probe, exports=offer.provider != LOCAL)
    p50, p90 = milliseconds(seconds), milliseconds(seconds * MEASURED_SPREAD)
    grace = terms.grace_seconds if offer.paid else local.provisioning_seconds + local.grace_seconds
    price, whole = offer.price_micros_per_hour, p90 + milliseconds(grace)
    beside = [extras(listing, *sizes_gb(plan), ms) if listing is not None else 0 for ms in (p50, p90, whole)]
    return offer.model_copy(update={
        "seconds_p50": p50 / 1000, "seconds_p90": p90 / 1000,
        "cost_p50_micros": cost(price, p50) + beside[0], "cost_p90_micros": cost(price, p90) + beside[1],
        "reservation_micros": reservation(price, whole) + beside[2],
    })  # fmt: skip
