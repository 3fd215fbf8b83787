"""Sha256 of files. A small file is read each time; a large one is believed as long as nothing says that it was touched."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

FILE = "run/hashes.json"
REMEMBERED_BYTES = 64 << 20
"""From this size on hashes are remembered. Below, reading costs at most 0.15 s on a slow core and cannot be deceived."""
REST_NS = 2_000_000_000
"""A file that was touched so shortly before it was read is not remembered: a change within one tick of the file system's
clock would not show (git calls such an entry racy). FAT counts in 2 s, everything else finer."""
MOST = 1000
"""Files remembered; the oldest entries go."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hashes:
    """Hashes of large files, remembered in a home.

    What identifies a version of a file is device, inode, size, and the times of its last change of content (mtime) and of
    anything at all (ctime). A copy can be given any mtime, but not a ctime: the system alone sets it.

    Args:
        home: MEETARA_HOME.
        remembered_bytes: from which size on.
        now: Unix time in nanoseconds.
    """

    def __init__(
        self, home: Path, remembered_bytes: int = REMEMBERED_BYTES, now: Callable[[], int] = time.time_ns
    ) -> None:
        self.file = home / FILE
        self.remembered_bytes = remembered_bytes
        self.now = now

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a file.

        Raises:
            OSError: it cannot be read.
        """
        before = path.stat()
        if before.st_size < self.remembered_bytes:
            return file_sha256(path)
        place, version = str(path.resolve()), _version(before)
        known = self._read()
        found = known.get(place)
        if found is not None and found[:-1] == version:
            return str(found[-1])
        read_at = self.now()
        digest = file_sha256(path)
        if _version(path.stat()) == version and before.st_ctime_ns + REST_NS < read_at:
            known.pop(place, None)
            self._write({**dict(list(known.items())[-(MOST - 1) :]), place: [*version, digest]})
        return digest

    def _read(self) -> dict[str, list[int | str]]:
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # none yet, or cut by a crash: everything is read again
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, list[int | str]]) -> None:
        # Of two that write at once one's entries are lost, and read again next time.
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(self.file)


def _version(facts: os.stat_result) -> list[int | str]:
    return [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
