"""Training checkpoints on disk: tensors and a JSON meta, hashed, complete or absent.

A checkpoint is a folder that appears by one rename after everything in it was written and synced, so a kill leaves
the old ones or the new one. Loading believes nothing: every file's sha256 is compared, and a damaged checkpoint is
passed over for the one before it. Knows nothing of models or optimisers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS = "state.safetensors"
META = "meta.json"
PREFIX = "checkpoint-"
KEEP = 2  # the newest, and one to fall back on when the disk damaged it


@dataclass
class Checkpoint:
    """What was saved. `meta` is plain JSON."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass
class Found:
    """The newest sound checkpoint, if any, and what was wrong with newer ones."""

    checkpoint: Checkpoint | None = None
    damaged: list[str] = field(default_factory=list)


def save(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int = KEEP) -> Path:
    """Write a checkpoint as the newest in `folder` and remove all but the newest `keep`.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(leftover)
    existing = numbered(folder)
    number = existing[-1][0] + 1 if existing else 1
    target = folder / f"{PREFIX}{number:06d}"
    temporary = folder / f".{target.name}"
    temporary.mkdir()
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / TENSORS)
    content = {"meta": dict(meta), "sha256": {TENSORS: sha256(temporary / TENSORS)}}
    seal = hashlib.sha256(canonical(content)).hexdigest()
    (temporary / META).write_text(json.dumps({**content, "seal": seal}), encoding="utf-8")
    for path in (temporary / TENSORS, temporary / META, temporary):
        sync(path)
    temporary.rename(target)
    sync(folder)
    for _, old in existing[: max(0, len(existing) + 1 - keep)]:
        shutil.rmtree(old)
    return target


def load(folder: Path) -> Found:
    """Return the newest checkpoint whose hashes agree, with a sentence about each newer one that is damaged."""
    found = Found()
    for _, path in reversed(numbered(folder)):
        try:
            found.checkpoint = read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            found.damaged.append(f"{path.name} is damaged ({error})")
            continue
        break
    return found


def read(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        OSError, ValueError, KeyError, TypeError, SafetensorError: a file is missing, cut or changed.
    """
    content = json.loads((path / META).read_text(encoding="utf-8"))
    seal = content.pop("seal")
    if hashlib.sha256(canonical(content)).hexdigest() != seal:
        raise ValueError(f"the hash of {META} differs")
    for name, wanted in content["sha256"].items():
        if sha256(path / name) != wanted:
            raise ValueError(f"the hash of {name} differs")
    return Checkpoint(load_file(path / TENSORS), content["meta"])


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Return number and folder of each finished checkpoint, oldest first."""
    pairs = [(path.name.removeprefix(PREFIX), path) for path in folder.glob(f"{PREFIX}*")]
    return sorted((int(number), path) for number, path in pairs if number.isdigit())


def canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file or a folder's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
