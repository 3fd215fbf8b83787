"""Workers that were stopped, clocks that are set, a machine that slept."""

from __future__ import annotations

import asyncio
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from bus import Client
from bus.lease import LEASE_SECONDS, TTL
from bus.mosquitto import find_mosquitto
from meetara.supervise import ROLES
from protocol.job import EventsQuery, JobEvents, Stage
from tests.faults.cluster import BROKER, LOOK, WORK, Cluster, cluster
from tests.faults.scenario import MIDDLE, Arena, Place, scenario
from tests.integration.lab import LIMIT, LONG

HOUR = 3600.0
BRIEF = 6.0
"""Seconds of a lease where only the job's process is stopped: its factory notices at once, and no session times out."""
STOPPED = (1.3, 1.8)
"""How many lease times a worker is stopped."""
STAGES = (Stage.DATA, Stage.TRAIN, Stage.CONVERT, Stage.VALIDATE)


@scenario("work-stopped", f"the job's process is stopped for longer than a lease ({BRIEF:.0f} s) and comes back", place=Place.OWN)
async def work_stopped(arena: Arena) -> None:
    async with (
        cluster(arena.folder / "home", arena.ground, arena.random, more={LEASE_SECONDS: str(BRIEF)}) as lab, arena.on(lab),
        lab.client() as client, arena.accepted(client, "stopped", LONG) as one,
    ):  # fmt: skip
        await arena.in_stage(one.job, Stage.TRAIN)
        held = await lab.there(WORK)
        for process in held:
            lab.signal(process, signal.SIGSTOP)
        await asyncio.sleep(BRIEF * arena.random.uniform(*STOPPED))
        for process in held:
            lab.signal(process, signal.SIGCONT)
        await arena.finish(client, one)
        kinds = await facts(client, one.job)
        arena.tally.expect("interrupted" in kinds, f"the lease was lost: {kinds}")


@scenario("factory-stopped", "the factory is stopped for longer than a lease of 30 s while its job works on, and comes back")
async def factory_stopped(arena: Arena) -> None:
    lab = arena.cluster
    async with lab.client() as client, arena.accepted(client, "stopped", LONG) as one:
        await arena.in_stage(one.job, Stage.TRAIN)
        [process] = await lab.there("gguf_factory")
        lab.signal(process, signal.SIGSTOP)
        await asyncio.sleep(TTL.total_seconds() * arena.random.uniform(*STOPPED))
        async with asyncio.timeout(LIMIT):
            while not (lab.lab.folder(one.job) / "train" / "manifest.json").exists():
                await asyncio.sleep(LOOK)  # it has something to tell then
        lab.signal(process, signal.SIGCONT)
        await arena.finish(client, one)
        kinds = await facts(client, one.job)
        arena.tally.expect("interrupted" in kinds, f"the lease was lost: {kinds}")
        arena.tally.expect("fenced" in kinds, f"what the factory told under its old lease was refused and counted: {kinds}")


async def facts(client: Client, job: str) -> list[str]:
    """Return the types of a job's events."""
    found: JobEvents = await client.call("job.events", EventsQuery(job=job), timeout=LIMIT)
    return [event.type for event in found.events]


def no_clock() -> str | None:
    """Why clocks cannot be set for single processes, if so."""
    if sys.platform != "linux":
        return "clocks of single processes can be set on Linux only"
    return None if shutil.which("cc") else "there is no C compiler (cc)"


class Clocks:
    """Wall clocks by role, set by wall_clock.c; the monotonic clocks stay true.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        source = Path(__file__).with_name("wall_clock.c")
        self.library = folder / "wall_clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", self.library, source], check=True)
        for name in (*ROLES, BROKER):
            (folder / name).write_bytes(bytes(8))

    def set(self, name: str, seconds: float) -> None:
        """Let a role's clock differ from the true one by so many seconds."""
        with (self.folder / name).open("r+b") as file:  # in place: the processes look into this very file
            file.write(struct.pack("q", int(seconds)))

    def environment(self, name: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "WALL_CLOCK_FILE": str(self.folder / name)}

    def broker(self) -> Path:
        """Return a program that runs Mosquitto with the broker's clock."""
        script = self.folder / "mosquitto.sh"
        sets = " ".join(f"{name}='{value}'" for name, value in self.environment(BROKER).items())
        script.write_text(f"#!/bin/sh\nexec env {sets} {find_mosquitto()} \"$@\"\n")
        script.chmod(0o755)
        return script


async def with_clocks(arena: Arena, act: Callable[[Cluster, Clocks], Awaitable[None]]) -> None:
    """Run a job on a lab whose clocks can be set, do something to them in a seeded stage, and run another job."""
    clocks = Clocks(arena.folder / "clocks")
    async with cluster(
        arena.folder / "home", arena.ground, arena.random, broker_program=clocks.broker(), by_role=clocks.environment
    ) as lab, arena.on(lab), lab.client() as client:
        async with arena.accepted(client, "clock", MIDDLE) as one:
            await arena.in_stage(one.job, arena.random.choice(STAGES))
            await act(lab, clocks)
            await arena.finish(client, one)
            kinds = await facts(client, one.job)
            arena.tally.expect("interrupted" not in kinds, f"the job went on under its lease: {kinds}")
        async with arena.accepted(client, "after") as next_one:
            await arena.finish(client, next_one)


def step(name: str, seconds: float, who: str) -> None:
    """Put a step of clocks into the matrix."""

    @scenario(name, f"the clock of {who} is set by {seconds / HOUR:+.0f} h in a seeded stage", place=Place.OWN, needs=no_clock)
    async def run(arena: Arena) -> None:
        chosen = [*ROLES, BROKER] if who == "all" else [arena.random.choice(ROLES)]

        async def act(lab: Cluster, clocks: Clocks) -> None:
            for role in chosen:
                clocks.set(role, seconds)

        await with_clocks(arena, act)


step("clock-all-ahead", HOUR, "all")
step("clock-all-back", -HOUR, "all")
step("clock-one-ahead", HOUR, "a seeded agent")
step("clock-one-back", -HOUR, "a seeded agent")


@scenario("asleep", "all processes, the broker too, are stopped for 3-6 s and their clocks go on by an hour",
          place=Place.OWN, needs=no_clock)  # fmt: skip
async def asleep(arena: Arena) -> None:
    async def act(lab: Cluster, clocks: Clocks) -> None:
        everybody = [process for victim in (*ROLES, WORK, BROKER) for process in lab.processes(victim)]
        for process in everybody:
            lab.signal(process, signal.SIGSTOP)
        for role in (*ROLES, BROKER):
            clocks.set(role, HOUR)
        await asyncio.sleep(arena.random.uniform(3, 6))
        for process in everybody:
            lab.signal(process, signal.SIGCONT)

    await with_clocks(arena, act)
