"""Records out of a data set's bytes, one after another with the line where each begins. Knows nothing of what they mean."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from agents.gguf_factory.formats import RowError, known

HEAD_BYTES = 64 * 1024  # what a file is told by; a first row longer than this is still read, as what its name says
ROW_BYTES = 16 * 1024 * 1024  # of one row: a line without an end must not fill the memory
DELIMITERS = (",", ";", "\t", "|")  # spreadsheets of some languages write ;
SEPARATOR = re.compile(r"sep=(.)")  # a first line by which Excel is told the delimiter
CSV_ENDINGS = (".csv", ".tsv", ".tab")
JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
PARQUET_ROWS = 256  # decoded at once


class Record(NamedTuple):
    """What stands in a line (parquet: a row), counted from 1: a value, or a RowError where it could not be read."""

    line: int
    value: object


class FileError(Exception):
    """A file that cannot be read as rows at all. `reason` goes on after the file's name."""

    def __init__(self, reason: str, advice: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.line = line


Reader = Callable[[BinaryIO], Iterator[Record]]

STRANGERS: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xfe", "is UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`, or save it as UTF-8."),
    (b"\xfe\xff", "is UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`, or save it as UTF-8."),
    (b"PARE", "is an encrypted parquet file", "Write it without encryption."),
    (b"ARROW1", "is an Arrow file", "Write it as parquet or jsonl."),
    (b"Obj\x01", "is an Avro file", "Write it as parquet or jsonl."),
    (b"SQLite format 3\0", "is an SQLite database", "Export the rows as jsonl or csv."),
    (b"%PDF", "is a PDF document", "Make questions and answers of it, one per line of jsonl."),
    (b"\xd0\xcf\x11\xe0", "is an old Office document", "Save it as csv."),
    (b"Salted__", "is encrypted (openssl)", "Decrypt it first."),
    (b"age-encryption.org/", "is encrypted (age)", "Decrypt it first."),
    (b"-----BEGIN PGP", "is encrypted (PGP)", "Decrypt it first."),
    (b"-----BEGIN AGE", "is encrypted (age)", "Decrypt it first."),
    (b"version https://git-lfs.github.com/spec/", "is a Git LFS pointer, not the file itself", "Run `git lfs pull`."),
    (b"<!doctype html", "is a web page", "Download the file itself, not the page that shows it."),
    (b"<html", "is a web page", "Download the file itself, not the page that shows it."),
    (b"\x80\x04", "is a pickle, which could run a program", "Write the rows as jsonl or parquet."),
)  # fmt: skip
"""Files that are no data sets of ours, by their first bytes (lower case for text): what they are, and what to do."""


def reader(head: bytes, name: str) -> tuple[str, Reader]:
    """Tell what a file is by its content, and by its name where the content leaves it open.

    Args:
        head: its first bytes, uncompressed.
        name: its name, lower case, without a compression's ending.

    Returns:
        What it is in a word, and the function that reads it from its beginning.

    Raises:
        FileError: it holds no rows.
    """
    if head.startswith(b"PAR1"):
        return "parquet", parquet
    _refuse_strangers(head)
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    start = text.lstrip()
    if not start:
        raise FileError("begins with nothing but white space", "Remove it, or look whether the file was damaged.")
    first = start.split("\n", 1)[0]
    if start[0] == "[" and not name.endswith(CSV_ENDINGS):
        return ("jsonl", lines) if _several_lists(start) else ("json", listed)
    if start[0] == "{" and _value(first) is None and _begins_value(start):
        return "json", values
    if start[0] == "{":
        alone = "\n" not in start.rstrip() and len(head) < HEAD_BYTES
        return ("json", values) if alone and isinstance(_value(start), dict) else ("jsonl", lines)
    if name.endswith(CSV_ENDINGS) or known(_cells(first)) is not None:
        return ("tsv" if _delimiter(first) == "\t" else "csv"), table
    if name.endswith(JSON_ENDINGS):
        return "jsonl", lines
    raise FileError("is of no known form", "Give jsonl, json, csv or parquet, plain or as .gz or .zst.")


def _refuse_strangers(head: bytes) -> None:
    lowered = head[:64].lstrip().lower()
    for magic, what, advice in STRANGERS:
        if head.startswith(magic) or lowered.startswith(magic):
            raise FileError(what, advice)
    if head[257:262] == b"ustar":
        raise FileError("is a tar archive", "Unpack it, or name a file in it: tar://rows.jsonl::FILE.")
    zeros = head[:1024].count(0)
    if zeros * 3 > len(head[:1024]) and b"\0\0\0" not in head[:1024]:  # every second byte of Latin text is zero
        _, what, advice = STRANGERS[0]
        raise FileError(f"{what} without a mark", advice.replace("UTF-16 ", "UTF-16LE ", 1))


def _several_lists(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return isinstance(_value(first), list) and rest.lstrip()[:1] == "["


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _begins_value(text: str) -> bool:
    """Whether a JSON object over several lines begins here: what follows its brace is a key, or its own line."""
    inner = text[1:].lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return "\n" in text[: error.pos] and error.pos >= len(text) - 1 and inner[:1] == '"'
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def texts(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends.

    Raises:
        FileError: a line is not UTF-8 or has no end within ROW_BYTES.
    """
    number = 0
    while raw := file.readline(ROW_BYTES + 1):
        number += 1
        if len(raw) > ROW_BYTES:
            raise FileError(f"has more than {ROW_BYTES:,} bytes in line {number}", "Split that row.", number)
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(error, number) from error
        yield number, text


def _not_utf8(error: UnicodeDecodeError, line: int) -> FileError:
    return FileError(
        f"is not UTF-8 text: byte {error.object[error.start]:#04x} in line {line}",
        "Save it as UTF-8; what Windows programs write becomes it with `iconv -f WINDOWS-1252 -t UTF-8`.", line,
    )  # fmt: skip


def lines(file: BinaryIO) -> Iterator[Record]:
    """Read JSON lines. Not by str.splitlines: JSON text may hold U+2028."""
    for number, line in texts(file):
        if not line.strip():
            continue
        if not line.strip("\0\r\n "):
            advice = "The disk was full or the machine went down while it was written: write it again."
            yield Record(number, RowError("holds nothing but NUL bytes", advice=advice))
            continue
        try:
            yield Record(number, json.loads(line))
        except json.JSONDecodeError as error:
            yield Record(number, RowError(f"is not JSON: {error.msg} (column {error.colno})"))
        except ValueError as error:  # a number of more than 4,300 digits
            yield Record(number, RowError(f"is not JSON: {error}"))
        except RecursionError:
            yield Record(number, RowError("is nested too deeply"))


def listed(file: BinaryIO) -> Iterator[Record]:
    """Read the elements of one JSON list; a broken one ends it, for what follows is guesswork."""
    text = _Text(file)
    text.at = text.text.index("[") + 1
    if text.peek() != "]":
        while True:
            yield text.record()
            if (separator := text.peek()) == "]":
                break
            if separator != ",":
                raise text.broken("Expecting ',' or ']'")
            text.at += 1
    text.at += 1
    if text.peek():
        raise text.broken("Something follows the end of the list")


def values(file: BinaryIO) -> Iterator[Record]:
    """Read JSON values that stand one after another over several lines each, as `jq` prints them."""
    text = _Text(file)
    only: Record | None = None
    while text.peek():
        if only is not None:
            yield only
        only = text.record()
    if only is None:
        return
    if text.records == 1 and isinstance(only.value, dict):
        columns = all(isinstance(field, dict) for field in only.value.values())
        if (columns or known(only.value) is None) and (told := _one_object(only.value, columns=columns)):
            raise told
    yield only


def _one_object(value: dict[str, Any], *, columns: bool) -> FileError | None:
    """Tell what to do with a file that is one object: rows in a field of it, or pandas' columns."""
    for name, field in value.items():
        if isinstance(field, list) and field and isinstance(field[0], dict):
            return FileError(
                f"is one object, whose field {name} seems to hold the rows",
                f"Write that list alone: jq -c '.{name}[]' FILE > rows.jsonl.",
            )
    if value and columns:
        return FileError(
            "is one object with an object for each column, as pandas' to_json() writes it",
            'Write it with to_json(path, orient="records", lines=True).',
        )
    return None


class _Text:
    """A window over JSON text that grows until the next value is whole."""

    SPACE = re.compile(r"\s*")

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._done = 0  # line ends in what was dropped
        self._json = json.JSONDecoder()
        self.text = ""
        self.at = 0
        self.records = 0
        self._more(HEAD_BYTES)
        self.text = self.text.removeprefix("\ufeff")

    def _more(self, size: int) -> bool:
        raw = self._file.read(size)
        try:
            self.text += self._decode.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.line(len(self.text)) + error.object[: error.start].count(b"\n")
            raise _not_utf8(error, line) from error
        return bool(raw)

    def line(self, at: int) -> int:
        return self._done + self.text.count("\n", 0, at) + 1

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            self.at = self.SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches always
            if self.at < len(self.text) or not self._more(HEAD_BYTES):
                return self.text[self.at : self.at + 1]

    def record(self) -> Record:
        self.peek()
        if self.at >= HEAD_BYTES:
            self._done += self.text.count("\n", 0, self.at)
            self.text = self.text[self.at :]
            self.at = 0
        line = self.line(self.at)
        while True:
            try:
                value, self.at = self._json.raw_decode(self.text, self.at)
                self.records += 1
                return Record(line, value)
            except json.JSONDecodeError as error:
                held = len(self.text) - self.at
                if held > ROW_BYTES:
                    raise FileError(f"has a row of more than {ROW_BYTES:,} characters in line {line}", "Split that row.", line) from error
                # a fault well before the window's end is one; the rest of a number or escape has at most 12 characters
                if error.pos + 12 < len(self.text) and not error.msg.startswith("Unterminated string"):
                    raise self.broken(error.msg, error.pos) from error
                if not self._more(max(HEAD_BYTES, held)):
                    raise self.broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise FileError(f"is nested too deeply in line {line}", "Mend that place.", line) from error
            except ValueError as error:  # a number of more than 4,300 digits
                raise FileError(f"is broken JSON in line {line}: {error}", "Mend that place.", line) from error

    def broken(self, what: str, at: int | None = None) -> FileError:
        at = self.at if at is None else at
        line = self.line(at)
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        return FileError(f"is broken JSON in line {line}, column {column}: {what}", "Mend that place.", line)


def table(file: BinaryIO) -> Iterator[Record]:
    """Read csv or tsv whose first line names the fields. A quoted cell may hold line ends; a row's line is its first."""
    csv.field_size_limit(ROW_BYTES)  # the module's own limit of 128 KiB refuses long answers
    numbered = texts(file)
    header = next(((number, text) for number, text in numbered if text.strip()), None)
    if header is not None and (told := SEPARATOR.fullmatch(header[1].strip())):
        delimiter = told[1]
        header = next(numbered, None)
    elif header is not None:
        delimiter = _delimiter(header[1])
    if header is None:
        return
    last = header[0] - 1

    def source() -> Iterator[str]:
        nonlocal last
        for number, text in itertools.chain([header], numbered):
            last = number
            yield text

    rows = csv.reader(source(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        line = last + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            advice = "Close the quotation marks; one within a cell is written twice."
            yield Record(line, RowError(f"is broken CSV: {error}", advice=advice))
            return
        if names is None:
            names = [cell.strip() for cell in cells]
        elif cells and len(cells) != len(names):
            yield Record(line, RowError(f"has {len(cells)} cells, but the header names {len(names)}"))
        elif cells:
            yield Record(line, dict(zip(names, cells, strict=True)))


def _cells(line: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.strip().split(_delimiter(line))]


def _delimiter(line: str) -> str:
    """Return the delimiter by which a header names a known form, or the one that occurs most."""
    for delimiter in DELIMITERS:
        if known(cell.strip().strip('"') for cell in line.strip().split(delimiter)) is not None:
            return delimiter
    return max(DELIMITERS, key=line.count)


def parquet(file: BinaryIO) -> Iterator[Record]:
    """Read parquet in batches; of a known form only the columns that mean something.

    Raises:
        FileError: pyarrow is not installed, or the file is not whole.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FileError(
            "is parquet, and pyarrow is not installed", "Install it with `pip install 'meetara-lab[parquet]'`."
        ) from error
    row = 0
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        form = known(names)
        columns = None if form is None else [name for name in names if name in (*form.fields, *form.optional)]
        for batch in opened.iter_batches(PARQUET_ROWS, columns=columns):
            for value in batch.to_pylist():
                row += 1
                yield Record(row, value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f" after row {row}" if row else ""
        raise FileError(f"is not a whole parquet file{place} ({error})", "Write or copy it again.") from error
