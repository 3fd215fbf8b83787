"""Many simulated lives: `python -m tests.simulation --seeds 10000`. Exit code 1 when an invariant was violated.

Prints what was lived and which faults struck; for a violation the smallest plan that shows it, and its trace.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from tests.simulation.search import Findings, live_rented, search_apart

CHUNK = 250
"""Lives of one search: small enough that a violation is told soon, large enough that hypothesis varies what it draws."""
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="lives in all")
    parser.add_argument("--start", type=int, default=0, help="hypothesis's seed of the first search")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rented", action="store_true", help="lives on rented machines, whose vendors cause trouble")
    options = parser.parse_args(arguments)
    search = live_rented if options.rented else search_apart
    chunk = 10 if options.rented else CHUNK
    tasks = [
        (min(chunk, options.seeds - done), options.start + (done if options.rented else number))
        for number, done in enumerate(range(0, options.seeds, chunk))
    ]
    began = time.monotonic()
    total, violations = Findings(), 0
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=8) as pool:
        for found in pool.imap_unordered(search, tasks):
            total.add(found)
            if found.violation is not None:
                violations += 1
                print(f"{found.story}\n\nVIOLATION: {found.violation}\n", flush=True)
            seconds = time.monotonic() - began
            print(f"{total.lives} lives, {total.steps} steps, {violations} violations, {seconds:.0f} s", flush=True)
    print("\nfaults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(total.faults.items())))
    print("ends of jobs: " + ", ".join(f"{state} {count}" for state, count in sorted(total.ends.items())))
    seconds = time.monotonic() - began
    print(
        f"seeds run {total.lives}, steps {total.steps}, faults {sum(total.faults.values())}, violations {violations},"
        f" seconds {seconds:.0f} ({total.lives / seconds:.1f} seeds/s in {options.processes} processes)"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
