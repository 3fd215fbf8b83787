"""Run the fault matrix and print its table.

    python -m tests.faults [--seed N] [--repeat K] [--only NAME …] [--short] [--list]

Repeat k of a scenario has the seed N + k - 1: `--only NAME --seed THAT --repeat 1` does the same again. Exit code 1
unless nothing was lost, doubled or stuck and every promise was kept.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults import clocks, kills, messages, network, storage
from tests.faults.cluster import Cluster, cluster
from tests.faults.scenario import MATRIX, Arena, Place, Scenario
from tests.faults.verdict import Tally
from tests.integration.lab import Ground

FAMILIES = (kills, network, messages, storage, clocks)
"""The modules whose import fills the matrix, in the order of the table."""
SCENARIO_SECONDS = 900.0
"""More than any scenario needs on a machine that eight others share; what is not over then is stuck."""
SHORT = ("mixed", "expired")
"""What `make test` runs with one seed a day (test_rotation.py)."""


@dataclass
class Row:
    """One line of the table."""

    scenario: Scenario
    seed: int
    repeats: int
    tally: Tally
    seconds: float
    skipped: str | None = None


class Runner:
    """Runs scenarios on one shared lab, which is made when it is needed and anew when a scenario left it broken."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.ground = Ground.make(folder / "ground")
        self.seed = seed
        self._stack = AsyncExitStack()
        self._lab: Cluster | None = None
        self._labs = 0

    async def shared(self) -> Cluster:
        if self._lab is None:
            self._labs += 1
            home = self.folder / f"shared-{self._labs}"
            self._lab = await self._stack.enter_async_context(cluster(home, self.ground, Random(self.seed)))
        return self._lab

    async def drop(self) -> None:
        """End the shared lab."""
        self._lab = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def once(self, scenario: Scenario, seed: int) -> Tally:
        """Run a scenario with one seed; whatever it raises is counted."""
        folder = self.folder / f"{scenario.name}-{seed}"
        folder.mkdir()
        arena = Arena(self.ground, folder, Random(f"{scenario.name} {seed}"))
        try:
            async with asyncio.timeout(SCENARIO_SECONDS):
                if scenario.place is Place.SHARED:
                    arena.lab = await self.shared()
                await scenario.run(arena)
        except TimeoutError:
            arena.tally.count("stuck", f"{scenario.name} was not over after {SCENARIO_SECONDS:.0f} s or waited in vain")
            traceback.print_exc()
        except Exception as error:  # noqa: BLE001 - the boundary: a row that fails must not hide the others
            arena.tally.count("unmet", f"{type(error).__name__}: {error}")
            traceback.print_exc()
        if not arena.tally.clean and scenario.place is Place.SHARED:
            try:
                await self.drop()
            except Exception as error:  # noqa: BLE001 - the same boundary
                arena.tally.count("unmet", f"the lab did not end well: {type(error).__name__}: {error}")
        elif arena.tally.clean:
            shutil.rmtree(folder, ignore_errors=True)
        return arena.tally

    async def row(self, scenario: Scenario, repeats: int) -> Row:
        """Run a scenario with `repeats` seeds."""
        reason = scenario.needs()
        row = Row(scenario, self.seed, 0 if reason else repeats, Tally(), 0.0, reason)
        start = time.monotonic()
        for number in range(row.repeats):
            row.tally += await self.once(scenario, self.seed + number)
        row.seconds = time.monotonic() - start
        return row


def header() -> str:
    return f"{'scenario':<20} {'seed':>6} {'repeats':>7} {'lost':>5} {'doubled':>7} {'stuck':>5} {'unmet':>5} {'seconds':>8}"


def line(row: Row) -> str:
    """Return a row as text."""
    if row.skipped:
        return f"{row.scenario.name:<20} {row.seed:>6} skipped: {row.skipped}"
    return numbers(row.scenario.name, str(row.seed), row.repeats, row.tally, row.seconds)


def numbers(name: str, seed: str, repeats: int, tally: Tally, seconds: float) -> str:
    return (
        f"{name:<20} {seed:>6} {repeats:>7} {tally.lost:>5} {tally.doubled:>7} {tally.stuck:>5} {tally.unmet:>5}"
        f" {seconds:>8.1f}"
    )


async def run(chosen: Sequence[Scenario], seed: int, repeats: int) -> list[Row]:
    """Run scenarios and print a row after each."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    runner, rows = Runner(folder, seed), []
    whole = asyncio.current_task()
    assert whole is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)  # labs end and disks are unmounted
    print(header(), flush=True)
    try:
        for scenario in chosen:
            rows.append(await runner.row(scenario, repeats))
            print(line(rows[-1]), flush=True)
            for note in rows[-1].tally.notes:
                print(f"    {note}", flush=True)
    finally:
        await runner.drop()
    if all(row.tally.clean for row in rows):
        shutil.rmtree(folder)
    else:
        print(f"homes and logs are kept in {folder}", file=sys.stderr)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat; default 1")
    parser.add_argument("--repeat", type=int, default=2, metavar="K", help="seeds per scenario; default 2")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="scenarios whose names begin so")
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("--list", action="store_true", help="tell the scenarios and what each does")
    options = parser.parse_args(arguments)
    logging.getLogger("aiomqtt").setLevel(logging.ERROR)  # it warns of each publication that waits for its acknowledgement
    wanted = options.only or (SHORT if options.short else ("",))
    ordered = [one for family in FAMILIES for one in MATRIX.values() if one.run.__module__ == family.__name__]
    chosen = [one for one in ordered if any(one.name.startswith(word) for word in wanted)]
    if options.list:
        for one in chosen:
            print(f"{one.name:<20} {one.does}")
        return 0
    if not chosen:
        parser.error(f"no such scenario: {' '.join(wanted)}; --list tells them")
    rows = asyncio.run(run(chosen, options.seed, options.repeat))
    total = Tally()
    for row in rows:
        total += row.tally
    print(numbers("total", "", sum(row.repeats for row in rows), total, sum(row.seconds for row in rows)), flush=True)
    return 0 if total.clean else 1


if __name__ == "__main__":
    sys.exit(main())
