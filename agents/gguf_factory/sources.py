"""The files that a process's code came from, and whether they are still the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def module_files() -> dict[str, tuple[int, ...]]:
    """Return path to identity of the interpreter and of each imported module's file."""
    paths = {sys.executable, *(file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None)))}
    return {path: found for path in paths if (found := _identity(path))}


def changed(files: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file is no longer what it was (13 ms for the 3,400 modules of torch, transformers and peft)."""
    return any(_identity(path) != known for path, known in files.items())


def _identity(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116 - of thousands of files at each fork
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)
