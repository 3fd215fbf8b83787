"""Read a data set by path or URI. A broken row refuses the whole: a person wants to know, with file and line.

URIs are fsspec's: plain paths, file://, and with their packages installed hf://datasets/<owner>/<name>/<file> (hub
data sets), s3://, gs://, https://. A relative path must exist as the factory's process sees it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from agents.gguf_factory import compression, records
from agents.gguf_factory.formats import ACCEPTED, Messages, RowError, messages
from agents.gguf_factory.place import limit_bytes, locate, opened, refuse, too_large, zipped
from protocol import LabError

__all__ = ["Bad", "Dataset", "Row", "Scan", "digest", "locate", "read", "scan"]

SHOWN = 5  # broken rows listed in an error; more would bury the first
BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation and the line (parquet: the row) of the file it came from, counted from 1."""

    line: int
    messages: Messages
    form: str = ""

    @property
    def question(self) -> str:
        """The first user turn."""
        return next(turn["content"] for turn in self.messages if turn["role"] == "user")

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1]["content"]

    @property
    def key(self) -> bytes:
        """A digest in which rows are equal that differ in white space only."""
        parts = [part for turn in self.messages for part in (turn["role"], " ".join(turn["content"].split()))]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that cannot be used."""

    line: int
    error: RowError


@dataclass(frozen=True)
class Dataset:
    """A data set as read. `sha256` is of the file as it lies there; `duplicates` rows were dropped."""

    uri: str
    sha256: str
    rows: list[Row]
    duplicates: int


@dataclass
class Scan:
    """A pass over a data set: iterate to get its rows one by one; memory stays that of one row.

    Args:
        place: absolute path or URI.
        container: what the file is, e.g. `jsonl.gz`.
        bytes: its size as it lies there.
        sha256: of the file as it lies there.
    """

    place: str
    container: str
    bytes: int
    sha256: str
    _field: str
    _file: BinaryIO
    _read: records.Reader
    _started: bool = field(default=False)

    @property
    def unit(self) -> Literal["line", "row"]:
        """What `Row.line` counts: parquet has no lines."""
        return "row" if self.container == "parquet" else "line"

    def __iter__(self) -> Iterator[Row | Bad]:
        """Yield rows and bad rows in the file's order.

        Raises:
            LabError: BAD_DATA, the file cannot be read on; with file, and line where known.
        """
        assert not self._started, "a scan goes over the file once"
        self._started = True
        try:
            for line, value in self._read(self._file):
                try:
                    if isinstance(value, RowError):
                        raise value
                    form, turns = messages(value)
                    yield Row(line, turns, form)
                except RowError as error:
                    yield Bad(line, error)
        except (records.FileError, compression.CompressionError) as error:
            raise _told(self.place, self._field, error) from error


@contextmanager
def scan(uri: str, field: str = "dataset") -> Iterator[Scan]:
    """Open a data set to go over its rows.

    Args:
        uri: path or URI of jsonl, json, csv, tsv or parquet, also .gz, .zst, .bz2 or .xz, or the only one in a .zip.
        field: the request's field that named it, for errors.

    Raises:
        LabError: BAD_DATA with field and file, also on leaving when the file has changed meanwhile.
    """
    place = locate(uri, field)
    with opened(place, field) as file:
        before = _state(file)
        sha256, size = _sha256(file), file.tell()
        if not size:
            raise refuse(place, field, "is empty", "It needs one question and answer per line.")
        if size > (limit := limit_bytes()):
            raise too_large(place, field, limit)
        file.seek(0)
        head = file.read(4)
        file.seek(0)
        if head == b"PK\x03\x04":
            inner = zipped(place, file, field)
            with opened(inner, field) as member:
                yield _scan(inner, field, member, size, sha256)
        else:
            yield _scan(place, field, file, size, sha256)
        if _state(file) != before:
            raise refuse(place, field, "has changed while it was read", "Leave the file alone while it is used.")


def _scan(place: str, field: str, file: BinaryIO, size: int, sha256: str) -> Scan:
    name = place.split("::")[0].lower()
    try:
        stream, packed = _plain(file)
        head = stream.read(records.HEAD_BYTES)
        if not head.strip():
            raise records.FileError("is empty", "It needs one question and answer per line.")
        if packed is not None:
            name = name.removesuffix(f".{packed}")
        container, read = records.reader(head, name)
        if packed is not None and container == "parquet":
            raise records.FileError("is parquet that was compressed once more", f"Unpack the .{packed}; parquet is packed inside.")
        file.seek(0)
        stream, _ = _plain(file)
    except (records.FileError, compression.CompressionError) as error:
        raise _told(place, field, error) from error
    return Scan(place, f"{container}.{packed}" if packed else container, size, sha256, field, stream, read)


def _plain(file: BinaryIO) -> tuple[BinaryIO, str | None]:
    """Return a file's bytes uncompressed, and by what they were packed."""
    head = file.read(8)
    file.seek(0)
    packed = compression.kind(head)
    if packed is None:
        return file, None
    return io.BufferedReader(compression.Inflated(file, limit_bytes()), BUFFER_BYTES), packed


def _told(place: str, field: str, error: records.FileError | compression.CompressionError) -> LabError:
    line = getattr(error, "line", None)
    return refuse(place, field, error.reason, error.advice, **({} if line is None else {"line": line}))


def _sha256(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while part := file.read(2**20):
        found.update(part)
    return found.hexdigest()


def _state(file: BinaryIO) -> tuple[int, int] | None:
    """Return size and time of change of a file on the disk; None of a copy in memory."""
    try:
        found = os.fstat(file.fileno())
    except (OSError, AttributeError):
        return None
    return found.st_size, found.st_mtime_ns


def read(uri: str, field: str = "dataset") -> Dataset:
    """Read, check and de-duplicate a data set.

    Args:
        uri: as `scan`.
        field: the request's field that named it, for the error.

    Raises:
        LabError: BAD_DATA with field, file, and line where known.
    """
    seen: set[bytes] = set()
    kept: list[Row] = []
    bad: list[Bad] = []
    count = 0
    with scan(uri, field) as found:
        for row in found:
            count += 1
            if isinstance(row, Bad):
                bad.append(row)
            elif (key := row.key) not in seen:
                seen.add(key)
                kept.append(row)
    if bad:
        raise refuse_rows(found, field, bad, count)
    if not count:
        raise no_rows(found.place, field)
    return Dataset(found.place, found.sha256, kept, count - len(kept))


def refuse_rows(found: Scan, field: str, bad: list[Bad], count: int) -> LabError:
    """Return the error that lists bad rows; its advice is theirs where they agree."""
    listed = "; ".join(f"{found.unit} {row.line} {row.error.reason}" for row in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more, which `meetara data check` lists" if len(bad) > SHOWN else ""
    column = bad[0].error.column
    own = {row.error.advice for row in bad}
    advice = f"Mend or remove these lines. Rows have one of these forms: {' | '.join(ACCEPTED)}."
    if len(own) == 1 and (told := own.pop()):
        advice = told
    return refuse(
        found.place, field, f"has {len(bad)} of {count} rows that cannot be used: {listed}{more}", advice,
        bad_rows=len(bad), **{found.unit: bad[0].line}, **({"column": column} if column else {}),
    )  # fmt: skip


def no_rows(place: str, field: str) -> LabError:
    """Return the error that a file of rows has none."""
    return refuse(place, field, "holds no rows", "It needs one question and answer per line.")


def digest(uri: str, field: str = "dataset") -> str:
    """Return the sha256 of a data set's bytes as they lie there.

    Raises:
        LabError: BAD_DATA, it cannot be read.
    """
    with opened(locate(uri, field), field) as file:
        return _sha256(file)
