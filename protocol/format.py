"""The format of the JSON files of a home (run/up.json, manifests): a number that says which program can read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import Code, LabError

FORMAT = 1
"""Raised when a file changes so that an older program would misread it; a field that is merely new does not raise it."""


def check_format(facts: Mapping[str, Any], file: object) -> None:
    """Make sure that this program may read a file's content. Files from before there was a format have none, and are 1.

    Raises:
        LabError: CONFIGURATION, a newer program wrote it; names both formats.
    """
    found = facts.get("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise LabError(
            Code.CONFIGURATION, f"{file} has format {found}, this program knows {FORMAT}: a newer meetara wrote it.",
            advice="Upgrade this program, or use another MEETARA_HOME.", file=str(file),
        )  # fmt: skip
