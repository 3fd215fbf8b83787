"""The rooms of a home and their limits: finished models, bases, folders of jobs. Full rooms are told before work starts.

What is made again by itself goes by itself where a limit wants it: the working files of jobs whose model is published, and bases
as F16 files. Finished models, and bases that adapters share, never do.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from configs import Storage
from protocol import Code, LabError
from protocol.job import Plan, Stage

ARTEFACTS, MODELS, JOBS = "artefacts", "models", "jobs"
F16 = "model-f16.gguf"
"""The name of a base as F16 file, as `convert` gives it."""
LOCK = "work.lock"
"""Held by the process that works in a job's folder, as `work` does it."""
SETTLED_S = 3600.0
"""A job that was published so long ago is over for everybody: a factory that was killed before it could tell comes back within
minutes, and goes through the finished stages once more."""
BASE_BYTES_PER_WEIGHT = 2


@dataclass(frozen=True)
class Room:
    """Bytes of a part of the home that only grows so far. `setting` is its limit's name in storage.yaml."""

    folder: Path
    setting: str
    limit: int | None
    what: str

    def used(self) -> int:
        """Return the bytes of all files in it, links not followed."""
        return used(self.folder)


def rooms(home: Path, limits: Storage) -> dict[str, Room]:
    """Return the rooms of a home by folder name."""
    return {
        ARTEFACTS: Room(home / ARTEFACTS, "artefacts_bytes", limits.artefacts_bytes, "finished models"),
        MODELS: Room(home / MODELS, "models_bytes", limits.models_bytes, "bases"),
        JOBS: Room(home / JOBS, "jobs_bytes", limits.jobs_bytes, "folders of jobs"),
    }


def used(folder: Path) -> int:
    """Return the bytes of all files below a folder, links not followed; one that vanishes meanwhile counts nothing."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        total += used(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
    except (FileNotFoundError, NotADirectoryError):
        return total
    return total


def check(plan: Plan, home: Path, limits: Storage, job: str) -> None:
    """Refuse a job that would not fit into a room, after making room where that costs nothing.

    Args:
        job: its id; what its own folder holds already is part of what it needs.

    Raises:
        LabError: NO_SPACE, naming room, sums and the setting.
    """
    by_name = rooms(home, limits)
    store, bases, jobs = by_name[ARTEFACTS], by_name[MODELS], by_name[JOBS]
    if store.limit is not None:
        _fit(store, store.used(), plan.file_bytes or 0, "Remove some with `meetara gc --models`")
    if bases.limit is not None:
        kept = bases.used() - sum(path.stat().st_size for path in f16_files(home))
        needed = BASE_BYTES_PER_WEIGHT * plan.base_parameters + (plan.base_file_bytes or 0)
        _fit(bases, kept, needed, "Remove shared bases with `meetara gc --models`")
    if jobs.limit is not None:
        over = jobs.used() - used(jobs.folder / job) + plan.disk_bytes - jobs.limit
        for folder in published(home):
            if over <= 0:
                break
            over -= tidy(folder)
        _fit(jobs, jobs.used() - used(jobs.folder / job), plan.disk_bytes, "Remove ended jobs with `meetara gc`")


def _fit(room: Room, taken: int, needed: int, advice: str) -> None:
    assert room.limit is not None
    if taken + needed > room.limit:
        raise LabError(
            Code.NO_SPACE,
            f"The job needs about {_mb(needed)} in {room.folder} ({room.what}), which holds {_mb(taken)} of at most {_mb(room.limit)}.",
            advice=f"{advice}, or raise {room.setting} in storage.yaml.",
            field=room.setting, file=str(room.folder), needed_bytes=needed, used_bytes=taken, limit_bytes=room.limit,
        )  # fmt: skip


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 10_000_000 else f"{size / 1e6:,.2f} MB"


def f16_files(home: Path) -> list[Path]:
    """Return the bases' F16 files, the one that was not used for longest first; each is made again when it is missing."""
    return sorted((home / MODELS).glob(f"*/{F16}"), key=lambda path: path.stat().st_mtime_ns)


def shrink_models(home: Path, limits: Storage, keep: Path) -> None:
    """Remove F16 files until the room's limit is kept; not the one that was just made or used."""
    room = rooms(home, limits)[MODELS]
    if room.limit is None:
        return
    over = room.used() - room.limit
    for path in f16_files(home):
        if over <= 0:
            return
        if path != keep:
            over -= path.stat().st_size
            path.unlink(missing_ok=True)  # who reads it keeps it until it closes it


def published(home: Path, now: float | None = None) -> list[Path]:
    """Return the folders of jobs whose model is in the store since SETTLED_S seconds, the oldest first."""
    found = []
    for paper in (home / JOBS).glob(f"*/{Stage.PUBLISH.value}/manifest.json"):
        try:
            age = (time.time() if now is None else now) - paper.stat().st_mtime
            facts = json.loads(paper.read_text(encoding="utf-8"))
            stored = [Path(unquote(urlsplit(item["uri"]).path)) for item in facts["artefacts"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not whole: nobody knows what it made
        if age >= SETTLED_S and stored and all(path.is_file() for path in stored):
            found.append((age, paper.parents[1]))
    return [folder for _, folder in sorted(found, reverse=True)]


def tidy(folder: Path) -> int:
    """Remove the working files of a job that is over, and return their bytes; its papers (JSON, log) stay.

    A folder in which a process works is left alone.
    """
    with _alone(folder) as alone:
        if not alone:
            return 0
        freed = 0
        for stage in Stage:
            for path, size in working_files(folder / stage.value):
                path.unlink(missing_ok=True)
                freed += size
        return freed


def working_files(stage: Path) -> Iterator[tuple[Path, int]]:
    """Yield the files of a stage's folder that only the next stages needed, with their bytes."""
    for path in sorted(stage.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix not in (".json", ".log", ".txt"):
            yield path, path.stat().st_size


def remove(folder: Path) -> int:
    """Remove the whole folder of a job that has ended, unless a process works in it; return its bytes."""
    with _alone(folder) as alone:
        if not alone:
            return 0
        freed = used(folder)
        shutil.rmtree(folder)
        return freed


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold a job's lock, if nobody has it; a folder without one was never worked in."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        yield folder.is_dir()
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    try:
        yield alone
    finally:
        os.close(descriptor)


def artefact_paths(entry: dict[str, Any]) -> list[Path]:
    """Return where the local artefacts of a cache entry or a manifest lie."""
    places = [urlsplit(item["uri"]) for item in entry.get("artefacts", [])]
    return [Path(unquote(place.path)) for place in places if place.scheme == "file"]
