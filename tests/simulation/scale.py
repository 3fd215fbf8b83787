"""Many jobs, a third of them long ones that share no machine, on many rented machines in virtual time: `python -m tests.simulation.scale --jobs 1000 --workers 200`.

The whole lab with its real code and the real adapters, against test clouds that fail in a share of their calls. Prints what
came of it, and what the orchestrator's own work took; exit code 1 when a job was not done or an invariant does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import Loop
from tests.simulation.plan import Plan, Request, Seller
from tests.simulation.world import Node, Violation, World

LOOK = 60.0
"""Virtual seconds between two checks of the invariants: with a thousand jobs each check reads a thousand records."""


class Crowd(World):
    """A world with many jobs. `busy`: processor seconds by the role that used them."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.busy: Counter[str] = Counter()
        self.most = 0
        self._checked = 0.0
        self._look, self.invariants.look = self.invariants.look, self._seldom  # type: ignore[method-assign]

    def _seldom(self) -> None:
        if self.now - self._checked >= LOOK:
            self._checked = self.now
            self._look()
            self.most = max(self.most, sum(len(vendor.cloud.living()) for vendor in self.vendors))


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
    parser.add_argument("--workers", type=int, default=200, help="machines that the vendors have together")
    parser.add_argument("--faults", type=float, default=0.05, help="share of calls that fail, and of machines that are taken away")
    parser.add_argument("--spread", type=int, default=120, help="seconds over which the requests come")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    trouble = dict(trouble=options.faults, preempted=options.faults, dead=options.faults, lies=options.faults / 5)
    each = max(1, options.workers // 12)  # four types at each of three vendors are cheap enough
    plan = Plan(
        seed=options.seed, affordable=options.jobs, trouble=options.spread * 10 + 36_000,
        requests=tuple(
            Request(at=number * options.spread * 10 // options.jobs, paid=True, priority=1 + number % 3, long=number % 3 == 0)
            for number in range(options.jobs)
        ),
        sellers=tuple(Seller(vendor, capacity=each, **trouble) for vendor in ("vast", "runpod", "lambda")),
    )  # fmt: skip
    Loop.run = counted(Loop.run)  # type: ignore[method-assign]
    world = Crowd(plan)
    began = time.process_time()
    violation = ""
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
    print(f"jobs {options.jobs}: " + ", ".join(f"{state} {count}" for state, count in sorted(ends.items())))
    print(f"machines: {launched} rented, at most {world.most} at a time; virtual time {world.now / 3600:.2f} h")
    print(f"vendors charge ${invoice / 1e6:.2f} of a month's ${world.invariants.caps['month'] / 1e6:.2f}")
    print("faults: " + ", ".join(f"{kind} {count}" for kind, count in world.counts.most_common()))
    print("processor seconds: " + ", ".join(f"{role} {seconds:.1f}" for role, seconds in world.busy.most_common()))
    print(f"{world.steps} steps, {time.process_time() - began:.0f} processor seconds; {violation or 'no violation'}")
    return 0 if not violation and ends == Counter({"done": options.jobs}) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
