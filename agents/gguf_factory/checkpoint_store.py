"""Checkpoints in the artefact store, so that another machine goes on with a job whose machine is gone.

What lies there is what lies in a folder of checkpoints: files that name their own hash, so nothing that an upload left half
done, or that a store damaged, is ever believed. Two machines may write at once: a run is a function of its data and
parameters, so the checkpoints of one that lost its lease are as good as those of the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from fsspec.implementations.local import LocalFileSystem

from agents.gguf_factory import checkpoint
from agents.gguf_factory.checkpoint import Name
from agents.gguf_factory.hashes import file_sha256
from agents.gguf_factory.job import Job
from agents.gguf_factory.store import filesystem
from configs import load
from protocol import Code, LabError, Retry

FOLDER = "checkpoints"
SHARE = 10  # uploads take at most this part of the time: a large adapter over a slow line comes less often
PATIENCE_S = 60.0  # for the last upload; a factory that stops kills its jobs after 20 s in any case
KEPT = timedelta(days=14)  # of a job that was cancelled, or whose machine and factory are gone; nobody else removes them
FETCHED = ".fetched"


class CheckpointStore:
    """The stored checkpoints of one run of a job.

    Args:
        uri: a folder that fsspec reaches (file://, s3://, gs:// …).
        mtbf_s: mean seconds between two losses of such a machine.
        now: seconds of a clock that only goes forward.
    """

    def __init__(self, uri: str, *, mtbf_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.uri, self.now = uri, now
        self.mtbf_s = mtbf_s
        self.notes: list[str] = []
        self._due = now()
        self._upload: Future[float] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint-store")

    @classmethod
    def of(cls, job: Job, run: str) -> Self | None:
        """Return the store for one run of a job, None where its checkpoints stay on the machine."""
        root = root_of(job)
        if root is None:
            return None
        hours = load().storage.machine_mtbf_hours
        return cls(f"{root}/{run}", mtbf_s=3600 * (hours.spot if job.run.spot else hours.on_demand))

    def pull(self, folder: Path) -> list[str]:
        """Fetch the newest sound checkpoint, and the newest pinned one, where the folder has none as new.

        Returns:
            A sentence for each that was fetched or is damaged.

        Raises:
            LabError: UNREACHABLE, the store does not answer.
        """
        return self._await(self._thread.submit(self._pull, folder))

    def offer(self, folder: Path) -> None:
        """Begin to put the newest checkpoints of a folder into the store, unless that was done just now. Never waits."""
        if self._upload is not None and self._upload.done():
            self._settle()
        if self._upload is None and self.now() >= self._due:
            self._upload = self._thread.submit(self._push, folder)

    def finish(self, folder: Path) -> None:
        """Put the newest checkpoints of a folder into the store and wait for it; a failure is noted."""
        if self._upload is not None:
            self._settle()
        self._upload = self._thread.submit(self._push, folder)
        self._settle()

    def _settle(self) -> None:
        """Take in how the upload went."""
        upload, self._upload = self._upload, None
        assert upload is not None
        try:
            error = upload.exception(PATIENCE_S)
            seconds = 0.0 if error else upload.result()
        except TimeoutError as late:
            error, seconds = late, PATIENCE_S
        if error is not None:
            note = f"a checkpoint could not be put into the artefact store {self.uri} ({type(error).__name__}: {error})"
            self.notes = [*(known for known in self.notes if known != note), note]
        self._due = self.now() + spacing(seconds, self.mtbf_s)

    def _push(self, folder: Path) -> float:
        started = self.now()
        files, root = filesystem(self.uri)
        if isinstance(files, LocalFileSystem):  # on others this would make a bucket of a name that was misspelt
            files.makedirs(root, exist_ok=True)
        there = listed(files, root)
        local = checkpoint.names(folder)
        for name in sorted({*local} - {*checkpoint.outdated(local, keep=1)}, key=lambda name: name.number):
            path = folder / str(name)
            try:
                if there.get(name) != path.stat().st_size:
                    files.put_file(str(path), f"{root}/{name}")
            except FileNotFoundError:
                if path.exists():
                    raise  # it is the bucket that is not there
                continue  # a newer one has taken its place in the meantime; that comes next
            there[name] = 0
        for old in checkpoint.outdated(sorted(there, key=lambda name: name.number)):
            files.rm_file(f"{root}/{old}")
        return self.now() - started

    def _pull(self, folder: Path) -> list[str]:
        files, root = filesystem(self.uri)
        there = sorted(listed(files, root), key=lambda name: name.number)
        folder.mkdir(parents=True, exist_ok=True)
        notes: list[str] = []
        for pinned in (True, False):
            here = [name.number for name in checkpoint.names(folder) if name.pinned or not pinned]
            newer = [name for name in there if (name.pinned or not pinned) and name.number > max(here, default=0)]
            for name in reversed(newer):
                sound = fetch(files, f"{root}/{name}", folder, name)
                notes.append(f"{name.short} {'came from' if sound else 'is damaged in'} the artefact store")
                if sound:
                    break
        return notes

    def _await(self, future: Future[Any]) -> Any:
        error = future.exception()
        if error is None:
            return future.result()
        raise LabError(
            Code.UNREACHABLE, f"the artefact store {self.uri} cannot be read ({type(error).__name__}: {error}).",
            advice="Check MEETARA_STORE, the network and the permissions; the checkpoints are kept.", retry=Retry.LATER,
        ) from error  # fmt: skip


def spacing(seconds: float, mtbf_s: float) -> float:
    """Return how many seconds after a checkpoint the next is put into the store.

    Young's interval, sqrt(2·δ·MTBF) (CACM 17(9), 1974): more often costs more than the work that a loss repeats, less often
    the other way round. At least SHARE times what an upload takes, where machines are lost so fast that the rule fails.

    Args:
        seconds: δ, measured: what the last upload took.
        mtbf_s: mean seconds between two losses.
    """
    return max(math.sqrt(2 * seconds * mtbf_s), SHARE * seconds)


def root_of(job: Job) -> str | None:
    """Return where a job's checkpoints are stored, None where they stay on the machine."""
    if not job.stored:
        return None
    return f"{(job.store or job.home.as_uri()).rstrip('/')}/{FOLDER}/{job.run.job}"


def clear(job: Job, now: datetime | None = None) -> None:
    """Remove the stored checkpoints of a job that is over, and those of jobs that nobody went on with for two weeks.

    Raises:
        OSError: the store does not answer, or does not allow it; with other stores also errors of their own.
    """
    root = root_of(job)
    if root is None:
        return
    files, mine = filesystem(root)
    if files.exists(mine):
        files.rm(mine, recursive=True)
    parent = mine.rpartition("/")[0]
    for other in files.ls(parent, detail=False) if files.exists(parent) else ():
        found = files.find(other)
        if found and all((now or datetime.now(UTC)) - files.modified(file) > KEPT for file in found):
            files.rm(other, recursive=True)


def listed(files: Any, root: str) -> dict[Name, int]:
    """Return names and sizes of the checkpoints in a stored folder."""
    if not files.exists(root):
        return {}
    entries = ((Name.read(entry["name"].rpartition("/")[2]), entry["size"]) for entry in files.ls(root, detail=True))
    return {name: size for name, size in entries if name is not None}


def fetch(files: Any, place: str, folder: Path, name: Name) -> bool:
    """Bring a stored checkpoint into a folder, whole or not at all; false: its bytes do not have its hash."""
    temporary = folder / FETCHED
    files.get_file(place, str(temporary))
    if file_sha256(temporary) != name.sha256:
        temporary.unlink()
        return False
    checkpoint.sync(temporary)
    temporary.replace(folder / str(name))
    checkpoint.sync(folder)
    return True
