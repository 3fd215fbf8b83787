"""What a cloud can do wrong with one call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One way to fail. Those with AFTER, LOST and the unreadable ones happen after the call had its effect.

    EMPTY is of `listings` and `list` alone, SOLD_OUT of `launch`, IGNORED of `terminate`; other calls take no notice of them.
    """

    ERROR = "500, nothing was done"
    ERROR_AFTER = "500, though it was done"
    LOST = "it was done, the connection ends without an answer"
    CUT = "the connection ends before anything was done"
    HANG = "nothing is done and nothing is answered"
    HANG_AFTER = "it was done, nothing is answered"
    MALFORMED = "it was done, the answer is half a JSON text"
    HTML = "it was done, the answer is a page of a proxy with status 200"
    EMPTY = "the answer is 200 and lists nothing, though there is something"
    RATE_LIMIT = "429, nothing was done"
    SOLD_OUT = "nothing was done: somebody was faster"
    IGNORED = "the answer says that it was done, and nothing was"


@dataclass
class Planned:
    """A fault that waits for its call. `left` None: for every one."""

    call: str
    fault: Fault
    left: int | None


class Faults:
    """The faults that are planned, first come first served."""

    def __init__(self) -> None:
        self._planned: list[Planned] = []

    def plan(self, call: str, fault: Fault, times: int | None = 1) -> None:
        """Let the next calls of a name (`listings`, `launch`, `list`, `status`, `terminate`, `billed`, `*`) fail.

        Args:
            times: how many; None: until `clear`.
        """
        self._planned.append(Planned(call, fault, times))

    def clear(self) -> None:
        """Let nothing fail any more."""
        self._planned.clear()

    def due(self, call: str) -> Fault | None:
        """Return the fault of this call and use it up."""
        for planned in self._planned:
            if planned.call in (call, "*"):
                if planned.left is not None:
                    planned.left -= 1
                    if planned.left == 0:
                        self._planned.remove(planned)
                return planned.fault
        return None
