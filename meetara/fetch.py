"""A model that was made elsewhere: brought from the artefact store into this home, and compared with its hashes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from protocol import Code, LabError, Retry
from protocol.job import PRODUCTS, Artefact

SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[\w.+-]{1,200}")
"""What a file's name in the store may be; it is made by a machine that may be a stranger's."""
CHUNK = 1 << 20


def fetch(artefacts: Sequence[Artefact], home: Path) -> list[Path]:
    """Bring a job's files into the home's artefact store; those that are there already are not read again.

    Args:
        artefacts: as the job's snapshot has them, with the product among them.
        home: MEETARA_HOME.

    Returns:
        Where each lies now, in their order.

    Raises:
        LabError: UNREACHABLE, the store cannot be read; BAD_DATA, a file is not what the job said, or has no plain name.
    """
    product = next(artefact for artefact in artefacts if artefact.kind in PRODUCTS)
    return [_one(artefact, artefact if artefact.kind == "base" else product, home) for artefact in artefacts]


def _one(artefact: Artefact, owner: Artefact, home: Path) -> Path:
    name = artefact.uri.rpartition("/")[2]
    if not SHA256.fullmatch(owner.sha256) or not NAME.fullmatch(name) or name.startswith("."):
        raise LabError(Code.BAD_DATA, f"the artefact {artefact.uri} has no plain name or hash.", uri=artefact.uri)
    target = home / "artefacts" / owner.sha256 / name
    if target.is_file() and _sha256(target) == artefact.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    coming = target.with_name(f".{name}.{os.getpid()}")
    try:
        _copy(artefact.uri, coming)
        if (real := _sha256(coming)) != artefact.sha256:
            raise LabError(
                Code.BAD_DATA, f"{artefact.uri} is not what the job made: its hash is {real[:12]}…, not {artefact.sha256[:12]}….",
                advice="Train it again: the store has lost or changed it.", uri=artefact.uri,
            )  # fmt: skip
        coming.replace(target)
    finally:
        coming.unlink(missing_ok=True)
    return target


def _copy(uri: str, target: Path) -> None:
    import fsspec

    try:
        with fsspec.open(uri, "rb") as source, target.open("wb") as file:
            while part := source.read(CHUNK):
                file.write(part)
    except Exception as error:  # each file system raises its own client's errors; they share no base
        if isinstance(error, MemoryError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LabError(
            Code.UNREACHABLE, f"the artefact store cannot be read at {uri} ({reason}).",
            advice="Check the network and the permissions, and that what reads it is installed: `pip install 'meetara-lab[s3]'` for s3.",
            retry=Retry.LATER, uri=uri,
        ) from error  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
