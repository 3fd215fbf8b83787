"""The artefact store's files, through fsspec. Imports no torch: plans are made without it."""

from __future__ import annotations

from typing import Any

import fsspec


def filesystem(uri: str) -> tuple[Any, str]:
    """Return fsspec's file system and path, with nothing of earlier listings remembered: others write there too."""
    files, root = fsspec.core.url_to_fs(uri)
    files.invalidate_cache()
    return files, root
