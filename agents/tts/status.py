"""What the synthesiser's process says by its exit status; the process and the agent share nothing else."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Exit statuses beside 0 (fine) and 1 (a defect); 2 is Python's for wrong arguments."""

    SILENT = 3
    """Nothing in the text can be heard."""
    TOO_LONG = 4
    """The speech is longer than half an hour."""
    NO_ENGINE = 5
    """espeak-ng or its voice does not load."""
    NO_SPACE = 6
    """The audio cannot be written."""
