"""A sign of life for whoever watches an agent's process from outside: a file whose age tells whether the agent works.

The file is written anew every BEAT seconds, only while the agent is connected to the broker and its store can be
written. So a check needs no Python and no connection of its own, it compares the file's age with the clock:

    find "$MEETARA_HOME/run/router-1.alive" -newermt '-20 seconds' | grep -q .
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

BEAT = 5.0
"""Seconds between two signs. Costs one small file; checks every 5-10 s see each of them."""
STALE = 20.0
"""Seconds after which a sign is too old: three beats may be late, as on a machine under full load."""


class SignOfLife:
    """The file `run/<agent>.alive` in the agent's home.

    Args:
        home: the agent's MEETARA_HOME.
        agent: the agent's id.
    """

    def __init__(self, home: Path, agent: str) -> None:
        self.path = home / "run" / f"{agent}.alive"

    def show(self, now: datetime) -> None:
        """Write the file anew, in one step.

        Raises:
            OSError: the home cannot be written, for instance because the disk is full.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(now.isoformat() + "\n", encoding="ascii")
        new.replace(self.path)

    def end(self) -> None:
        """Remove the file: nobody is alive here (any more)."""
        self.path.unlink(missing_ok=True)
