"""Where a data set lies, and how its bytes get here: a path, an fsspec URI, a file in a zip, or a data set of a hub."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from protocol import Code, LabError

LIMIT = "MEETARA_DATA_LIMIT_BYTES"
LIMIT_BYTES = 4 * 2**30  # unpacked: rows are kept in memory, and the proven 846 steps see a thousandth of this
HUB_S = 10.0  # for the list of a data set's files; a person waits for it
SPOOL_BYTES = 64 * 2**20  # of a file from elsewhere are kept in memory, more on the disk
WINDOWS = re.compile(r"(?:file:/*)?[A-Za-z]:[\\/]|\\\\")  # C:\\data\\x.jsonl, file:///C:/data/x.jsonl, \\\\server\\share
URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?://|:)")
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ENDINGS = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|tab|parquet)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE)
NO_ROWS = re.compile(r"(^|/)(dataset_infos?|config|metadata|package)\.json$|(^|/)[._]")
EXTRAS = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp requests", "https": "aiohttp requests",
    "abfs": "adlfs", "az": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol",
    "github": "requests", "webhdfs": "requests", "dropbox": "dropboxdrivefs", "oss": "ossfs", "oci": "ocifs",
    "webdav": "webdav4", "hdfs": "pyarrow",
}  # fmt: skip
"""Package that gives fsspec a protocol; fsspec names some of them only in prose."""


def package_of(uri: str) -> str:
    """Return the package that reads a URI's protocol."""
    match = URI.match(uri)
    protocol = match[1].lower() if match else "file"
    return EXTRAS.get(protocol, "fsspec" if protocol in ("file", "memory") else protocol)


def locate(uri: str, field: str = "dataset") -> str:
    """Return the absolute path of a local data set, or the URI under which it can be opened.

    `owner/name` that is no local file is a data set of a hub: its file in the local hub cache, else its URI there.

    Raises:
        LabError: BAD_DATA, there is no such file, or the hub has none that can be chosen.
    """
    if uri.startswith("file:"):
        plain = "/" + uri.removeprefix("file:").lstrip("/")
        path = Path(plain) if Path(plain).exists() else Path(unquote(plain))
    elif URI.match(uri):
        return uri
    else:
        path = Path(uri).expanduser()
    try:
        if path.is_file():
            return str(path.resolve())
        if HUB.fullmatch(uri) and not path.exists() and not ENDINGS.search(uri):
            return _hub(uri, field)
        if WINDOWS.match(uri):
            raise refuse(
                uri, field, "is named by a Windows path, which this machine does not have",
                "Give the path as the factory's machine sees it; WSL has C: at /mnt/c.",
            )  # fmt: skip
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
    except (OSError, ValueError) as error:  # a name too long, a NUL, a folder that may not be searched
        raise refuse(uri, field, f"cannot be looked up ({error})", "Check the name and the permissions.") from error
    advice = "Give one file of rows." if path.is_dir() else "Check the name"
    if not path.is_absolute():
        advice = "Give the absolute path: a relative one is looked up where the factory runs."
    elif not path.is_dir():
        advice = "Check the name, and that the file lies on the machine that trains."
    raise refuse(uri, field, what, advice)


def _hub(name: str, field: str) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # not in the cache, or no possible name: ask the hub
    else:
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        return str(folder / choose(files, name, field))
    try:
        files = [file.rfilename for file in HfApi().dataset_info(name, timeout=HUB_S).siblings or []]
    except Exception as error:  # what the hub's HTTP client raises without a network shares no base with the rest
        if isinstance(error, MemoryError):
            raise
        raise refuse(
            name, field, f"is no file on this machine and cannot be asked of the hub ({_first_line(error)})",
            "Give a file; or fetch the data set where there is a network, with"
            f" `hf download {name} --repo-type dataset`, and HF_TOKEN where it is not public.",
        ) from error  # fmt: skip
    return f"hf://datasets/{name}/{choose(files, name, field)}"


def choose(files: Sequence[str], name: str, field: str) -> str:
    """Return the one file of rows among a data set's or an archive's files; the one of the training split if there are more.

    Raises:
        LabError: BAD_DATA, there is none, or more than one.
    """
    rows = [file for file in files if ENDINGS.search(file) and not NO_ROWS.search(file)]
    chosen = [file for file in rows if re.search(r"(^|[/_.-])train", file)] or rows
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise refuse(name, field, "holds no jsonl, json, csv or parquet file", "Give a file of rows.")
    form = f"zip://{{}}::{name}" if name.startswith("/") or "://" in name else f"hf://datasets/{name}/{{}}"
    shown = ", ".join(form.format(file) for file in chosen[:5]) + (" …" if len(chosen) > 5 else "")
    raise refuse(name, field, f"has {len(chosen)} files of rows", f"Name one: {shown}.", files=len(chosen))


@contextmanager
def opened(place: str, field: str = "dataset") -> Iterator[BinaryIO]:
    """Open a located data set as a file that can be sought in; one from elsewhere is copied to a temporary file first.

    Raises:
        LabError: BAD_DATA, it cannot be read or is larger than allowed; NO_SPACE, the copy does not fit.
    """
    if place.startswith("/"):
        try:
            file = Path(place).open("rb")  # noqa: SIM115  # closed below; `with` here would catch the caller's errors too
        except OSError as error:
            raise _unreadable(place, field, error) from error
        with file:
            yield file
        return
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as copy:
        _fetch(place, field, copy)
        copy.seek(0)
        yield copy  # type: ignore[misc]  # it has all that BinaryIO has


def _fetch(place: str, field: str, copy: Any) -> None:
    import fsspec

    limit = limit_bytes()
    try:
        with fsspec.open(place, "rb") as source:
            while part := source.read(2**20):
                copy.write(part)
                if copy.tell() > limit:
                    raise too_large(place, field, limit)
    except LabError:
        raise
    except Exception as error:  # each file system raises its own client's errors; they share no base
        if isinstance(error, MemoryError):
            raise
        raise _unreadable(place, field, error) from error


def _unreadable(place: str, field: str, error: Exception) -> LabError:
    match = URI.match(place)
    protocol = match[1].lower() if match else ""
    what = f"cannot be read ({_first_line(error)})"
    if isinstance(error, ImportError):
        return refuse(place, field, what, f"Install what reads it: `pip install {EXTRAS.get(protocol, protocol)}`.")
    if isinstance(error, RuntimeError) and "password" in str(error):
        return refuse(place, field, "is encrypted", "Decrypt it first.")
    if not protocol:
        return refuse(place, field, what, "Check the address and the permissions.")
    return refuse(place, field, what, "Check the address, the network and the permissions; or copy the file here and give its path.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def zipped(place: str, file: BinaryIO, field: str) -> str:
    """Return the URI of the file of rows inside a zip archive.

    Raises:
        LabError: BAD_DATA, it is a workbook, damaged, or has none or several.
    """
    try:
        names = zipfile.ZipFile(file).namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise refuse(place, field, f"is not a whole zip archive ({error})", "Pack or copy it again.") from error
    if "[Content_Types].xml" in names:
        raise refuse(place, field, "is an Excel workbook or another Office document", "Save it as csv (UTF-8).")
    return f"zip://{choose(names, place, field)}::{place}"


def limit_bytes() -> int:
    """Return the most bytes of an unpacked data set: MEETARA_DATA_LIMIT_BYTES, or 4 GiB.

    Raises:
        LabError: CONFIGURATION, it is not a whole number.
    """
    told = os.environ.get(LIMIT, "")
    if not told:
        return LIMIT_BYTES
    if not told.isdecimal():
        raise LabError(
            Code.CONFIGURATION, f"{LIMIT} is not a whole number of bytes.",
            advice="Correct or unset the environment variable.", field=LIMIT,
        )  # fmt: skip
    return int(told)


def too_large(place: str, field: str, limit: int) -> LabError:
    """Return the error that a data set has more bytes than are allowed."""
    return refuse(place, field, f"is more than {limit:,} bytes", f"Split it, or allow more with {LIMIT}.")


def refuse(place: str, field: str, what: str, advice: str, **data: Any) -> LabError:
    """Return the error that a data set cannot be used."""
    return LabError(Code.BAD_DATA, f"The data set {place} {what}.", advice=advice, field=field, file=place, **data)
