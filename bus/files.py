"""Private files: written in one step, read with an error that names them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from protocol.errors import Code, LabError


def write_private(path: Path, text: str | bytes, *, mode: int = 0o600) -> None:
    """Replace a file that only its owner may read, in one step."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # the file may be there since an interrupted call, or the umask take bits away
        file.write(text.encode() if isinstance(text, str) else text)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object; a file that is not there is an empty one.

    Raises:
        LabError: CONFIGURATION when it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise LabError(
            Code.CONFIGURATION, f"{path} is damaged: {error}.",
            advice="Delete it; what it held is made anew at the next start.", file=str(path),
        ) from error  # fmt: skip
