"""Read a data set by path or URI. A broken row refuses the whole: a person wants to know, with file and line.

URIs are fsspec's: plain paths, file://, and with their packages installed hf://datasets/<owner>/<name>/<file> (hub
data sets), s3://, gs://, https://. A relative path must exist as the factory's process sees it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from agents.gguf_factory.formats import ACCEPTED, Messages, RowError, messages
from protocol import Code, LabError

SHOWN = 5  # broken rows listed in an error; more would bury the first
WINDOWS = re.compile(r"(?:file:/*)?[A-Za-z]:[\\/]|\\\\")  # C:\\data\\x.jsonl, file:///C:/data/x.jsonl, \\\\server\\share
CSV_FIELD_BYTES = 16 * 1024 * 1024  # the csv module's own limit of 128 KiB refuses long answers


@dataclass(frozen=True)
class Row:
    """One conversation and the line (parquet: the row) of the file it came from, counted from 1."""

    line: int
    messages: Messages

    @property
    def question(self) -> str:
        """The first user turn."""
        return next(turn["content"] for turn in self.messages if turn["role"] == "user")

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Dataset:
    """A data set as read. `sha256` is of the file as it lies there; `duplicates` rows were dropped."""

    uri: str
    sha256: str
    rows: list[Row]
    duplicates: int


def locate(uri: str, field: str = "dataset") -> str:
    """Return the absolute path of a local data set, or the URI unchanged.

    Raises:
        LabError: BAD_DATA, the local file does not exist or is not a file.
    """
    if uri.startswith("file:"):
        plain = "/" + uri.removeprefix("file:").lstrip("/")
        path = Path(plain) if Path(plain).exists() else Path(unquote(plain))
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//|:)", uri):
        return uri
    else:
        path = Path(uri).expanduser()
    try:
        if path.is_file():
            return str(path.resolve())
        if WINDOWS.match(uri):
            raise _refuse(
                uri, field, "is named by a Windows path, which this machine does not have",
                "Give the path as the factory's machine sees it; WSL has C: at /mnt/c.",
            )  # fmt: skip
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
    except (OSError, ValueError) as error:  # a name too long, a NUL, a folder that may not be searched
        raise _refuse(uri, field, f"cannot be looked up ({error})", "Check the name and the permissions.") from error
    advice = "Give one file of rows." if path.is_dir() else "Check the name"
    if not path.is_absolute():
        advice = "Give the absolute path: a relative one is looked up where the factory runs."
    elif not path.is_dir():
        advice = "Check the name, and that the file lies on the machine that trains."
    raise _refuse(uri, field, what, advice)


def read(uri: str, field: str = "dataset") -> Dataset:
    """Read, check and de-duplicate a data set.

    Args:
        uri: path or URI of jsonl, json, csv or parquet, also .gz or .zst.
        field: the request's field that named it, for the error.

    Raises:
        LabError: BAD_DATA with field, file, and line where known.
    """
    place = locate(uri, field)
    raw = _bytes(place, field)
    if not raw.strip():
        raise _refuse(place, field, "is empty", "It needs one question and answer per line.")
    rows = _rows(place, field, raw)
    if not rows:
        raise _refuse(place, field, "holds no rows", "It needs one question and answer per line.")
    seen: set[tuple[str, ...]] = set()
    kept = []
    for row in rows:
        key = tuple(part for turn in row.messages for part in (turn["role"], " ".join(turn["content"].split())))
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return Dataset(place, hashlib.sha256(raw).hexdigest(), kept, len(rows) - len(kept))


def digest(uri: str, field: str = "dataset") -> str:
    """Return the sha256 of a data set's bytes as they lie there.

    Raises:
        LabError: BAD_DATA, it cannot be read.
    """
    return hashlib.sha256(_bytes(locate(uri, field), field)).hexdigest()


def _bytes(place: str, field: str) -> bytes:
    try:
        if place.startswith("/"):
            return Path(place).read_bytes()
        import fsspec

        with fsspec.open(place, "rb") as file:
            return bytes(file.read())
    except (OSError, ValueError, ImportError) as error:
        # ValueError: fsspec knows no such protocol; ImportError: its package is not installed
        raise _refuse(place, field, f"cannot be read ({error})", "Check the address and the permissions.") from error


def _rows(place: str, field: str, raw: bytes) -> list[Row]:
    name, raw = _unpacked(place, field, raw)
    records = _parquet(place, field, raw) if raw[:4] == b"PAR1" else _text_records(place, field, name, raw)
    rows: list[Row] = []
    broken: list[tuple[int, RowError]] = []
    count = 0
    for line, record in records:
        count += 1
        try:
            if isinstance(record, RowError):
                raise record
            rows.append(Row(line, messages(record)))
        except RowError as error:
            broken.append((line, error))
    if broken:
        listed = "; ".join(f"line {line} {error.reason}" for line, error in broken[:SHOWN])
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        column = broken[0][1].column
        raise _refuse(
            place, field, f"has {len(broken)} of {count} rows that cannot be used: {listed}{more}",
            f"Mend or remove these lines. Rows have one of these forms: {' | '.join(ACCEPTED)}.",
            line=broken[0][0], bad_rows=len(broken), **({"column": column} if column else {}),
        )  # fmt: skip
    return rows


def _unpacked(place: str, field: str, raw: bytes) -> tuple[str, bytes]:
    """Return the name without a compression's ending, and the bytes uncompressed (by their magic number)."""
    name = place.lower()
    try:
        if raw[:2] == b"\x1f\x8b":
            return name.removesuffix(".gz"), gzip.decompress(raw)
        if raw[:4] == b"\x28\xb5\x2f\xfd":
            return name.removesuffix(".zst"), _zstandard(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise _refuse(place, field, f"is not a whole compressed file ({error})", "Compress or copy it again.") from error
    return name, raw


def _zstandard(raw: bytes) -> bytes:
    """Decompress all frames; zstandard's stream reader would take a cut file for a short one."""
    import zstandard

    parts = []
    while raw:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(raw))
        except zstandard.ZstdError as error:
            raise OSError(error) from error
        if not frame.eof:
            raise EOFError("it ends within a frame")
        raw = frame.unused_data
    return b"".join(parts)


Record = tuple[int, object]  # a line number, and what stands there (a RowError where it could not be parsed)


def _text_records(place: str, field: str, name: str, raw: bytes) -> Iterator[Record]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refuse(
            place, field, f"is not UTF-8 text: byte {raw[error.start]:#04x} in line {line}", "Save it as UTF-8.", line=line
        ) from error
    if name.endswith((".csv", ".tsv")):
        return _csv(text)
    if text.lstrip()[:1] == "[":
        return _array(place, field, text)
    if text.lstrip()[:1] == "{" or name.endswith((".jsonl", ".json", ".ndjson")):
        return _lines(text)
    raise _refuse(place, field, "is of no known form", "Give jsonl, json, csv or parquet, plain or as .gz or .zst.")


def _lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): JSON text may hold U+2028
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, RowError(f"is not JSON: {error.msg} (column {error.colno})")
            except RecursionError:
                yield number, RowError("is nested too deeply")


def _array(place: str, field: str, text: str) -> Iterator[Record]:
    """Read a JSON list row by row, so that each row has a line; a broken one ends it, for what follows is guesswork."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[\s]*")
    position = space.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]  # matches always
    while text[position : position + 1] != "]":
        line = text.count("\n", 0, position) + 1
        try:
            record, position = decoder.raw_decode(text, position)
            position = space.match(text, position).end()  # type: ignore[union-attr]
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:
            raise _refuse(
                place, field, f"is broken JSON in line {error.lineno}, column {error.colno}: {error.msg}",
                "Mend that place.", line=error.lineno,
            ) from error  # fmt: skip
        yield line, record
        if text[position] == ",":
            position = space.match(text, position + 1).end()  # type: ignore[union-attr]


def _csv(text: str) -> Iterator[Record]:
    csv.field_size_limit(CSV_FIELD_BYTES)
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)  # spreadsheets of some languages write ; and .tsv has tabs
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError(f"is broken CSV: {error}")
            return
        if names is None:
            names = [cell.strip() for cell in cells]
        elif cells and len(cells) != len(names):
            yield line, RowError(f"has {len(cells)} cells, but the header names {len(names)}")
        elif cells:
            yield line, dict(zip(names, cells, strict=True))
        line = reader.line_num + 1


def _parquet(place: str, field: str, raw: bytes) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(raw))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise _refuse(place, field, f"is not a whole parquet file ({error})", "Write or copy it again.") from error
    yield from enumerate(table.to_pylist(), 1)


def _refuse(place: str, field: str, what: str, advice: str, **data: Any) -> LabError:
    return LabError(Code.BAD_DATA, f"The data set {place} {what}.", advice=advice, field=field, file=place, **data)
