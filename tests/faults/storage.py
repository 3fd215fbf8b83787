"""Disks that are full, files that somebody has locked, files that change or vanish."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from urllib.parse import unquote, urlsplit

from protocol.job import Stage, State
from tests.faults.cluster import WORK, cluster
from tests.faults.scenario import MIDDLE, Arena, Place, scenario
from tests.integration.lab import LIMIT, listening, submit, write_rows

DISK_BYTES = 220_000_000
"""Size of the small disk: a tiny job takes about 100 MB, the stores and logs 10."""
FULL_SECONDS = (4.0, 12.0)
"""How long the disk stays full."""
LOCKED_SECONDS = 15.0
"""How long a store stays locked: longer than SQLite's usual patience of 5 s."""
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


def no_mount() -> str | None:
    """Why this user cannot mount a small disk, if so."""
    if os.geteuid() or not shutil.which("mount"):
        return "only root may mount a small disk"
    return None


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of DISK_BYTES in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take all space of a disk; returns the file that has it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:  # full, as wanted
            pass
    return ballast


@scenario("disk-full", "the disk of the home is full for 4-12 s in a seeded stage", place=Place.OWN, needs=no_mount)
async def disk_full(arena: Arena) -> None:
    with small_disk(arena.folder / "disk") as disk:
        async with cluster(disk / "home", arena.ground, arena.random) as lab, arena.on(lab), lab.client() as client:
            async with arena.accepted(client, "full", MIDDLE) as one:
                stage = arena.random.choice([Stage.DATA, Stage.TRAIN, Stage.MERGE, Stage.CONVERT, Stage.VALIDATE])
                await arena.in_stage(one.job, stage)
                ballast = fill(disk)
                await asyncio.sleep(arena.random.uniform(*FULL_SECONDS))
                ballast.unlink()
                final = await arena.finish(client, one, ending=None)
                if final is not None and final.state is not State.DONE:
                    arena.tally.expect(final.state is State.FAILED, f"{one.job} is {final.state.value}")
                    arena.tally.expect("space" in (final.reason or "").lower(), f"the reason names space: {final.reason}")
            async with arena.accepted(client, "after") as next_one:
                await arena.finish(client, next_one)


@scenario("store-locked", f"another process holds BEGIN EXCLUSIVE on a seeded agent's store for {LOCKED_SECONDS:.0f} s")
async def store_locked(arena: Arena) -> None:
    agent = arena.random.choice([name for name in arena.cluster.proxies])
    path = arena.cluster.home / "agents" / f"{agent}.db"
    async with arena.cluster.client() as client, arena.accepted(client, "locked", MIDDLE) as one:
        await arena.in_stage(one.job, arena.random.choice([Stage.DATA, Stage.TRAIN, Stage.CONVERT]))
        said = len(arena.cluster.said)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LOCK, path, str(LOCKED_SECONDS), stdout=asyncio.subprocess.PIPE
        )
        async with arena.accepted(client, "meanwhile") as two:
            await process.wait()
            await asyncio.gather(arena.finish(client, one), arena.finish(client, two))
        arena.tally.expect(arena.cluster.said[said:] == [], f"no process ended: {arena.cluster.said[said:]}")


@scenario("data-changed-plan", "the data set is rewritten after the job was planned and before it is read for training")
async def data_changed_after_plan(arena: Arena) -> None:
    rows = write_rows(arena.folder / "rows.jsonl")
    async with (
        arena.cluster.client() as client, arena.accepted(client, "holds-the-slot", MIDDLE) as first,
        arena.accepted(client, "changed", dataset=str(rows)) as one,  # waits for the slot
    ):  # fmt: skip
        change(rows, arena.random)
        await arena.finish(client, first)
        final = await arena.finish(client, one, ending=State.FAILED)
        if final is not None:
            reason = final.reason or ""
            arena.tally.expect("has changed since the job was planned" in reason, f"the reason says it: {reason}")


@scenario("data-changed-resume", "the data set is rewritten after it was read, and the job's process killed: it goes on")
async def data_changed_before_resume(arena: Arena) -> None:
    rows = write_rows(arena.folder / "rows.jsonl")
    async with arena.cluster.client() as client, arena.accepted(client, "changed", MIDDLE, dataset=str(rows)) as one:
        folder = arena.cluster.lab.folder(one.job)
        await arena.in_stage(one.job, Stage.TRAIN)
        packed = (folder / "data" / "packed.safetensors").read_bytes()
        change(rows, arena.random)
        await arena.cluster.kill(WORK)
        await arena.finish(client, one)
        same = (folder / "data" / "packed.safetensors").read_bytes() == packed
        arena.tally.expect(same, "the job went on with the content that was planned")


def change(rows: Path, random: Random) -> None:
    """Rewrite a data set in another order and without a seeded row."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.pop(random.randrange(len(lines)))
    random.shuffle(lines)
    rows.write_text("".join(lines), encoding="utf-8")


@scenario("output-deleted", "a finished stage's file is deleted and the job's process killed: the stage is done again")
async def output_deleted(arena: Arena) -> None:
    async with arena.cluster.client() as client, arena.accepted(client, "deleted", MIDDLE) as one:
        folder = arena.cluster.lab.folder(one.job)
        await arena.in_stage(one.job, Stage.TRAIN)
        victim = arena.random.choice(sorted((folder / "data").glob("*.safetensors")))
        victim.unlink()
        await arena.cluster.kill(WORK)
        await arena.finish(client, one)
        arena.tally.expect(victim.is_file(), f"{victim.name} was made again")


@scenario("artefact-deleted", "the finished model is deleted: the lab says so, and the same training brings it back")
async def artefact_deleted(arena: Arena) -> None:
    async with arena.cluster.client() as client:
        async with arena.accepted(client, "artefact") as one:
            final = await arena.finish(client, one)
        if final is None:
            return
        [model] = [Path(unquote(urlsplit(item.uri).path)) for item in final.artefacts if item.kind == "gguf"]
        content = model.read_bytes()
        model.unlink()
        shown = await arena.cluster.lab.cli("job", one.job)
        said = " ".join((shown.out + shown.error).split())
        arena.tally.expect("is gone" in said and "again" in said, f"`meetara job` tells of it: {said[:300]}")
        told = (await arena.cluster.lab.cli("job", one.job, "--json")).json
        arena.tally.expect(told.get("missing") == [model.as_uri()], "--json names what is missing")
        job = arena.cluster.name("again")
        async with listening(client, job) as ears:
            await submit(client, job, one.request)
            async with asyncio.timeout(LIMIT):
                again = await ears.end(client)
        arena.tally.expect(again.state is State.DONE, f"{job} is {again.state.value}: {again.reason}")
        arena.tally.expect(model.is_file() and model.read_bytes() == content, "the same file is back at the same place")


