"""`python -m benchmarks [NAME …]` measures, keeps the results as JSON and writes docs/results/benchmarks.md from them.

    python -m benchmarks                     # all of them, under ten minutes on two quiet cores
    python -m benchmarks calls transitions   # some
    python -m benchmarks small_jobs export   # minutes each: only when they are named
    python -m benchmarks --report            # only the page and its pictures, from the JSON that is there
"""

from __future__ import annotations

import argparse
import importlib
import time
from datetime import timedelta

from benchmarks.report import LONG, NAMES, write_report
from benchmarks.result import Result, describe_machine, utc_now
from bus.mosquitto import find_mosquitto


def measure(name: str, rounds: int | None, seed: int) -> Result:
    """Run one benchmark."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    rounds = rounds or benchmark.ROUNDS
    machine, at, began = describe_machine(find_mosquitto()), utc_now(), time.perf_counter()
    series = benchmark.run(rounds, seed)
    return Result(
        name=name, title=benchmark.TITLE, method=benchmark.method(), measured_at=at,
        seconds=round(time.perf_counter() - began, 1), rounds=rounds, machine=machine, series=list(series),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the lab.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each benchmark; default: its own")
    parser.add_argument("--seed", type=int, default=0, help="of the order within the rounds")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in (*NAMES, *LONG)]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join((*NAMES, *LONG))}")
    for name in [] if options.report else options.names or NAMES:
        try:
            result = measure(name, options.rounds, options.seed)
        except ModuleNotFoundError as error:
            if options.names:
                raise SystemExit(f"{name}: {error}") from error
            print(f"{name}: left out, {error}", flush=True)
            continue
        path = result.save()
        print(f"{name}: {timedelta(seconds=round(result.seconds))} for {result.rounds} rounds, {path.name}", flush=True)
        for series in result.series:
            low, high = series.spread
            met = {True: "  met", False: "  MISSED", None: ""}[series.met]
            print(f"  {series.name:58} {series.median:10.3g} {series.unit:14} {low:.3g} to {high:.3g}{met}", flush=True)
    print(write_report())


if __name__ == "__main__":
    main()
