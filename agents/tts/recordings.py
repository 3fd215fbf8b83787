"""The audio files of one agent, named by their content, bounded in size and age."""

from __future__ import annotations

import contextlib
import hashlib
import os
import wave
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from protocol import Code, LabError, Retry

SIZE_LIMIT = 256 * 1024 * 1024
"""Bytes of all files: an hour and a half of speech. The oldest go first; the longest file (79 MB) fits three times."""
AGE_LIMIT = timedelta(days=7)
"""Since a file was last asked for: as long as the bus keeps the reply that names it."""


@dataclass(frozen=True)
class Recording:
    """A WAV file that is there."""

    sha256: str
    bytes: int
    sample_rate: int
    seconds: float


class Recordings:
    """The folder.

    Args:
        folder: where the files are; it need not exist.
        owner: begins the names of unfinished files, so that only their maker removes them.
        size_limit: bytes of all files.
        age_limit: since a file was last asked for.
    """

    def __init__(
        self, folder: Path, owner: str, *, size_limit: int = SIZE_LIMIT, age_limit: timedelta = AGE_LIMIT
    ) -> None:
        self.folder = folder
        self.owner = owner
        self.size_limit = size_limit
        self.age_limit = age_limit
        for part in folder.glob(f".{owner}-*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)

    def part(self, name: str) -> Path:
        """Return where an unfinished file is written; its folder is made."""
        self.folder.mkdir(parents=True, exist_ok=True)  # a person may have removed it
        return self.folder / f".{self.owner}-{name}.part"

    def path(self, sha256: str) -> Path:
        """Return where a finished file is."""
        return self.folder / f"{sha256}.wav"

    def keep(self, part: Path, now: datetime) -> Recording:
        """Take over an unfinished file: checked, synced, and renamed to its content's sha256.

        Raises:
            LabError: INTERNAL, it is no whole WAV file; NO_SPACE, it cannot be synced or renamed.
        """
        try:
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                with contextlib.closing(wave.open(file)) as wav:
                    rate, frames, width = wav.getframerate(), wav.getnframes(), wav.getsampwidth() * wav.getnchannels()
                if file.tell() + frames * width != size:
                    raise wave.Error(f"{size} bytes instead of {file.tell() + frames * width}")
                os.fsync(file.fileno())
            os.utime(part, (now.timestamp(), now.timestamp()))
            part.replace(self.path(sha256))
        except (wave.Error, EOFError) as error:
            raise LabError(
                Code.INTERNAL, f"the speech synthesis gave no whole WAV file: {error or 'it is empty'}.",
                advice="Say it again; if it stays so, report the text.", retry=Retry.LATER,
            ) from error  # fmt: skip
        except OSError as error:
            raise LabError(
                Code.NO_SPACE, f"the speech cannot be kept in {self.folder}: {error.strerror}.",
                advice="Free some space, then say it again.", retry=Retry.LATER, file=str(self.folder),
            ) from error  # fmt: skip
        return Recording(sha256, size, rate, round(frames / rate, 3))

    def has(self, recording: Recording, now: datetime) -> bool:
        """Tell whether a file is there and whole; one that is asked for stays longer."""
        path = self.path(recording.sha256)
        try:
            whole = path.stat().st_size == recording.bytes
            if whole:
                os.utime(path, (now.timestamp(), now.timestamp()))
        except OSError:  # removed, by the limits or by a person
            return False
        return whole

    def read(self, sha256: str, offset: int, limit: int) -> tuple[bytes, int]:
        """Return at most `limit` bytes from `offset` on, and the file's size.

        Raises:
            LabError: NOT_FOUND, there is no such file; INVALID_PARAMS, the offset lies behind its end.
        """
        try:
            with self.path(sha256).open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                file.seek(offset)
                data = file.read(limit)
        except FileNotFoundError as error:
            raise LabError(
                Code.NOT_FOUND, f"there is no audio {sha256[:12]}… here.",
                advice="Audio is kept for some days only: say the text again with speech.synthesise.",
                retry=Retry.OTHER_WORKER, sha256=sha256,
            ) from error  # fmt: skip
        if offset > total:
            raise LabError(
                Code.INVALID_PARAMS, f"offset: {offset} lies behind the end of the {total} bytes.",
                advice="Ask for less than `total`.", field="offset", total=total,
            )  # fmt: skip
        return data, total

    def prune(self, now: datetime) -> list[str]:
        """Remove what is too old, then the oldest until the rest fits; returns the sha256 of the removed files.

        The youngest always stays: somebody is about to fetch it.
        """
        files = []
        for path in self.folder.glob("*.wav"):
            with contextlib.suppress(FileNotFoundError):  # another agent on this folder was faster
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        files.sort(reverse=True)
        removed, total = [], 0
        for number, (used, size, path) in enumerate(files):
            total += size
            if number and (total > self.size_limit or used < (now - self.age_limit).timestamp()):
                path.unlink(missing_ok=True)
                removed.append(path.stem)
        return removed
