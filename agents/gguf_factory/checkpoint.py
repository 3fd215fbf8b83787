"""Training checkpoints: one file each, whose name tells its order and the hash of its bytes; complete or absent.

A checkpoint appears by one rename after it was written, hashed and synced, so a kill leaves the old ones or the new one.
Loading believes nothing: a file whose bytes do not have the hash of its name is passed over for the one before it.
Knows nothing of models or optimisers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.gguf_factory.hashes import file_sha256

KEEP = 2  # the newest, and one to fall back on when the disk damaged it
NAME = re.compile(r"checkpoint-(\d{6,})(-pinned)?-([0-9a-f]{64})\.safetensors")
TEMPORARY = ".checkpoint"  # one at a time: a folder belongs to one process


@dataclass(frozen=True)
class Name:
    """What a checkpoint's file name says. A pinned one is kept until a newer one is pinned."""

    number: int
    pinned: bool
    sha256: str

    def __str__(self) -> str:
        return f"checkpoint-{self.number:06d}{'-pinned' if self.pinned else ''}-{self.sha256}.safetensors"

    @property
    def short(self) -> str:
        return f"checkpoint-{self.number:06d}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the name's parts, None for the name of another file."""
        found = NAME.fullmatch(text)
        return cls(int(found[1]), found[2] is not None, found[3]) if found else None


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


def save(
    folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, pinned: bool = False, keep: int = KEEP
) -> Path:
    """Write a checkpoint as the newest in `folder`; of the others the newest `keep` - 1 and the newest pinned one stay.

    Raises:
        OSError, SafetensorError: the disk is full or not writable; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    existing = names(folder)
    temporary = folder / TEMPORARY
    temporary.unlink(missing_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata={"meta": json.dumps(dict(meta))})
    sync(temporary)
    name = Name(existing[-1].number + 1 if existing else 1, pinned, file_sha256(temporary))
    target = temporary.replace(folder / str(name))
    sync(folder)
    for old in outdated([*existing, name], keep):
        (folder / str(old)).unlink()
    return target


def load(folder: Path, *, pinned: bool = False) -> Found:
    """Return the newest checkpoint whose hash agrees, with a sentence about each newer one that is damaged.

    Args:
        pinned: look at pinned ones only.
    """
    found = Found()
    for name in reversed([name for name in names(folder) if name.pinned or not pinned]):
        try:
            found.checkpoint = read(folder / str(name), name.sha256)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            found.damaged.append(f"{name.short} is damaged ({error})")
            continue
        break
    return found


def read(path: Path, wanted: str) -> Checkpoint:
    """Read one checkpoint whose bytes must have the sha256 `wanted`.

    Raises:
        OSError, ValueError, KeyError, TypeError, SafetensorError: the file is missing, cut or changed.
    """
    if file_sha256(path) != wanted:
        raise ValueError("its hash differs")
    with safe_open(path, "pt") as file:
        meta = json.loads((file.metadata() or {})["meta"])
    return Checkpoint(load_file(path), meta)


def names(folder: Path) -> list[Name]:
    """Return the names of the finished checkpoints in a folder, oldest first."""
    found = [Name.read(path.name) for path in folder.glob("checkpoint-*")]
    return sorted((name for name in found if name is not None), key=lambda name: name.number)


def outdated(kept: list[Name], keep: int = KEEP) -> list[Name]:
    """Return which of the checkpoints, oldest first, are neither of the newest `keep` nor the newest pinned one."""
    pinned = next((name for name in reversed(kept) if name.pinned), None)
    return [name for name in kept[: max(0, len(kept) - keep)] if name != pinned]


def sync(path: Path) -> None:
    """Make a file or a folder's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
