"""The stop file of a home: the cost monitor writes it, the orchestrator looks at it, with the bus or without.

It is there exactly while paid work is frozen. It is not looked at by the clock: a home whose cost monitor is dead stays frozen,
because nobody could reserve money there either.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bus.files import write_private
from protocol.money import Freeze

FILE = "freeze.json"


def read_freeze(home: Path) -> Freeze | None:
    """Return why paid work is frozen, or None where it is not.

    A file that cannot be read is a freeze as well, which says so: stopping too much costs time, stopping too little money.
    """
    path = home / FILE
    try:
        return Freeze.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} errors"
        note = f"{path} cannot be read ({why}); delete it where the budget is not used up"
        return Freeze(
            period=None, since=None, until=None, spent_micros=0, reserved_micros=0, cap_micros=0, at=None, note=note
        )


def write_freeze(home: Path, freeze: Freeze | None) -> None:
    """Write the stop file in one step, or remove it.

    Raises:
        OSError: the home cannot be written; the file is as it was.
    """
    if freeze is None:
        (home / FILE).unlink(missing_ok=True)
    else:
        write_private(home / FILE, freeze.model_dump_json() + "\n")
