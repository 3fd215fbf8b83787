"""Many jobs on many rented machines in virtual time: `python -m tests.simulation.scale --jobs 1000 --workers 200`.

The whole lab with its real code and the real adapters, against test clouds that fail in a share of their calls. There are more
long jobs, each of which needs a machine of its own, than there are machines; small ones share. The budget holds what all jobs
would reserve by arithmetic, and a tenth. Prints what came of it, and what the orchestrator's own work took; exit code 1 when
a job was not done, an invariant does not hold, or fewer than nine in ten machines worked at a time.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

from agents.gpu_orchestrator.market import estimate
from agents.gpu_orchestrator.market.gpus import GPUS
from agents.gpu_orchestrator.market.history import History
from bus import BaseAgent, Wiring
from configs import load
from protocol.job import Plan as JobPlan
from tests.clouds.cloud import Stock
from tests.clouds.lambda_cloud import LambdaCloud
from tests.simulation.factory import FORECAST, LONG
from tests.simulation.loop import Loop
from tests.simulation.plan import Plan, Request, Seller
from tests.simulation.world import LIMITS, Node, Violation, World

LOOK = 60.0
"""Virtual seconds between two checks of the invariants: with a thousand jobs each check reads a thousand records."""
BOOT = 240
"""Seconds from a launch until the worker runs: an image of some GB is fetched."""
AT_LEAST = 0.9
"""Share of the machines that must work at the same time."""
PRICE = 360_000
"""The usual one of a machine, in micro-dollars per hour."""


def crowd(jobs: int, workers: int, faults: float, spread: int, seed: int, lasts: int, trouble: int) -> Plan:
    """Return the plan of a crowd.

    Args:
        workers: machines that the vendors have together.
        faults: share of calls that fail, and of machines that are taken away or never come.
        spread: seconds over which the requests come.
        lasts: seconds of a long job's training.
        trouble: seconds after the last request for which calls and machines fail.
    """
    many = min(jobs, workers * 5 // 4)
    long = [number * many % jobs < many for number in range(jobs)]  # evenly among the others
    requests = tuple(
        Request(
            at=number * spread * 10 // jobs, paid=True, priority=2 + number % 2, long=long[number], lasts=lasts * long[number]
        )
        for number in range(jobs)
    )  # fmt: skip
    return Plan(
        seed=seed, requests=requests, trouble=(spread + trouble) * 10, cap_usd=budget(requests),
        sellers=tuple(
            Seller(vendor, trouble=faults, preempted=faults, dead=faults, lies=faults / 5, boot=BOOT)
            for vendor in ("vast", "runpod", "lambda")
        ),
    )  # fmt: skip


def budget(requests: Iterable[Request]) -> float:
    """Return the dollars of day, week and month: what all jobs would reserve at the usual price, and a tenth.

    So much is not to be had: from 80 % on only the cheaper half of the machines is taken, and at 95 % nobody gets any more. No job
    has priority 1: such a one waits from 80 % on, and is refused if nothing is for sale when it goes on.
    """
    terms = load().providers.rented
    micros = 0
    for request in requests:
        plan = JobPlan.model_validate(LONG if request.long else FORECAST)
        work = estimate.work(plan, GPUS["RTX 4090"], terms, History().calibration("", ""))
        micros += estimate.reservation(PRICE, work.p90_ms + estimate.milliseconds(terms.grace_seconds))
    return math.ceil(micros * 1.1 / 1e6)


def stocks(workers: int) -> dict[str, list[Stock]]:
    """Return what the vendors sell: half of all machines are single ones of a marketplace, four in ten of one type in eight data
    centres, and the rest of a type that can be launched every twelve seconds."""
    asks = workers // 2
    rare = workers // 10
    here = [(workers - asks - rare + number) // 8 for number in range(8)]
    return {
        "vast": [
            Stock(
                str(7000 + number), "RTX 4090", 300_000 + 120_000 * number // asks, f"region {number % 10}, US",
                disk_micros_per_gb_month=150_000, secure=False,
            )
            for number in range(asks)
        ],
        "runpod": [
            Stock(f"NVIDIA GeForce RTX 4090@US-{number}", "NVIDIA GeForce RTX 4090", 340_000, f"US-{number}", free=free)
            for number, free in enumerate(here)
        ],
        "lambda": [Stock("gpu_1x_a10@us-west-1", "A10", 300_000, "us-west-1", free=rare, cores=30, memory_gb=200, disk_gb=1400)],
    }  # fmt: skip


class Crowd(World):
    """A world with many jobs.

    Attributes:
        busy: processor seconds by the role that used them.
        most, most_at: machines that worked at the same time, and the second at which they were first so many.
        used: the largest share of the month's budget that was spent and reserved at the same time.
        short: minutes in which money was short.
    """

    patience = 6 * 3600.0
    limits = replace(LIMITS, boot=timedelta(minutes=15), dear=timedelta(hours=1))

    def __init__(self, plan: Plan, workers: int) -> None:
        super().__init__(plan)
        self.busy: dict[str, float] = defaultdict(float)
        self.most = 0
        self.most_at = 0.0
        self.used = 0.0
        self.short = 0.0
        self.trace = deque(maxlen=1000)  # type: ignore[assignment]
        self._checked = 0.0
        self._look, self.invariants.look = self.invariants.look, self._seldom  # type: ignore[method-assign]
        for vendor in self.vendors:
            vendor.cloud.stock = {stock.id: stock for stock in stocks(workers)[vendor.seller.vendor]}
            if isinstance(vendor.cloud, LambdaCloud):
                vendor.cloud.launch_gap_s = 12

    def rented(self, name: str, build: Callable[[Wiring], BaseAgent]) -> Node:
        node = super().rented(name, build)
        working = sum(name.startswith("worker-") for name in self.nodes)
        if working > self.most:
            self.most, self.most_at = working, self.now
        return node

    def _seldom(self) -> None:
        if self.now - self._checked < LOOK:
            return
        self._checked = self.now
        self._look()
        self.said.clear()  # it has been checked
        self.invariants._read = 0
        monitor = self.nodes["cost_monitor"]
        reserved = monitor.read("SELECT coalesce(sum(amount_micros), 0) FROM open_reservations")[0][0]
        spent = monitor.read("SELECT coalesce(sum(amount_micros), 0) FROM entries WHERE kind IN ('part', 'settle', 'correct')")[0][0]
        share = (reserved + spent) / self.invariants.caps["month"]
        self.used = max(self.used, share)
        self.short += (share >= 0.8) * LOOK / 60


def counted(run: Callable[[Loop], None]) -> Callable[[Loop], None]:
    """Count the processor time of each process."""

    def timed(loop: Loop) -> None:
        began = time.process_time()
        try:
            run(loop)
        finally:
            node: Any = loop.owner
            if isinstance(node, Node) and isinstance(node.world, Crowd):
                role = "worker" if node.name.startswith("worker-") else node.name
                node.world.busy[role if role in node.world.nodes or role == "worker" else "people"] += time.process_time() - began

    return timed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=200, help="machines that the vendors have together; at least ten")
    parser.add_argument("--faults", type=float, default=0.05, help="share of calls that fail, and of machines that are taken away")
    parser.add_argument("--spread", type=int, default=120, help="seconds over which the requests come")
    parser.add_argument("--trouble", type=int, default=3600, help="seconds after the last request for which something fails")
    parser.add_argument("--lasts", type=int, default=2400, help="seconds of a long job's training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    world = Crowd(crowd(**vars(options)), options.workers)
    began = time.process_time()
    violation = ""
    with mock.patch.object(Loop, "run", counted(Loop.run)):
        try:
            world.run()
        except Violation as error:
            violation = str(error)
    ends = Counter(record["state"] for record in world.invariants.records.values())
    reasons = Counter(record["reason"][:200] for record in world.invariants.records.values() if record["state"] != "done")
    for reason, count in reasons.most_common(5):
        print(f"{count} x {reason}")
    launched = sum(len(vendor.cloud.instances) for vendor in world.vendors)
    invoice = sum(vendor.cloud.bill() for vendor in world.vendors)
    cap = world.invariants.caps["month"]
    few = world.most < AT_LEAST * options.workers
    print(f"jobs {options.jobs}: " + ", ".join(f"{state} {count}" for state, count in sorted(ends.items())))
    reached = f"{world.most} of {options.workers} worked at a time, first after {world.most_at / 60:.0f} minutes"
    print(f"machines: {launched} rented; {reached}{' (too few)' if few else ''}; {world.now / 3600:.2f} virtual hours")
    print(f"vendors charge ${invoice / 1e6:.2f} of a month's ${cap / 1e6:.2f}; spent and reserved at most {world.used:.0%} of it, {world.short:.0f} minutes above 80 %")
    print("faults: " + ", ".join(f"{kind} {count}" for kind, count in world.counts.most_common()))
    print("processor seconds: " + ", ".join(f"{role} {seconds:.1f}" for role, seconds in sorted(world.busy.items(), key=lambda item: -item[1])))
    print(f"{world.steps} steps, {time.process_time() - began:.0f} processor seconds; {violation or 'no violation'}")
    return 0 if not violation and not few and ends == Counter({"done": options.jobs}) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
