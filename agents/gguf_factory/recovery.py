"""What is done about an error of a job: one table, looked up by the error's class and its bases.

The training loop acts on HALVE and LOWER_RATE by itself; what it cannot mend, and the errors of all other stages, end the
process with an error that tells the conductor whether and where another attempt can help.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from safetensors import SafetensorError

from protocol import Code, LabError, Retry


class Action(StrEnum):
    """What an error calls for."""

    HALVE = "halve the micro-batch"
    LOWER_RATE = "go back to the last good checkpoint with half the learning rate"
    HERE = "try again, here or elsewhere"
    ELSEWHERE = "try again on another worker"
    GIVE_UP = "give up"
    AS_TOLD = "what the error itself says"


RETRY: Mapping[Action, Retry] = {
    Action.HALVE: Retry.OTHER_WORKER,  # one row does not fit, or the stage has no micro-batch
    Action.LOWER_RATE: Retry.NEVER,  # it was lowered, and that did not help
    Action.HERE: Retry.LATER,
    Action.ELSEWHERE: Retry.OTHER_WORKER,
    Action.GIVE_UP: Retry.NEVER,
}
"""What is left to the conductor once an action was taken, or cannot be."""


class Diverged(LabError):
    """The loss or the gradient is no number, or the loss exploded."""


class NoSpace(OSError):
    """The disk is full, in whoever's words."""


@dataclass(frozen=True)
class Rule:
    """One entry: the action, and the code and the advice of the error that people see."""

    action: Action
    code: Code = Code.INTERNAL
    advice: str = ""


DEFECT = Rule(Action.GIVE_UP, advice="It would fail again in the same way: report it with the log.")

TABLE: Mapping[type[BaseException], Rule] = {
    LabError: Rule(Action.AS_TOLD),
    Diverged: Rule(Action.LOWER_RATE),
    MemoryError: Rule(
        Action.HALVE, Code.NO_CAPACITY,
        "Choose a smaller base, lower parameters.sequence_length, or a machine with more memory.",
    ),
    NoSpace: Rule(
        Action.ELSEWHERE, Code.NO_SPACE, "Free some space; the job goes on from its last finished stage."
    ),
    ConnectionError: Rule(Action.HERE, Code.UNREACHABLE, "Check the network and the address."),
    TimeoutError: Rule(Action.HERE, Code.UNREACHABLE, "Check the network and the address."),
    OSError: Rule(Action.ELSEWHERE, advice="Check the disk and the permissions of this machine."),
    ImportError: Rule(Action.ELSEWHERE, Code.TOOLCHAIN, "Run `meetara doctor` on this machine."),
    subprocess.SubprocessError: Rule(Action.HERE, Code.TOOLCHAIN, "Run `meetara doctor` on this machine."),
    SafetensorError: Rule(Action.HERE, advice="A file was damaged; what cannot be read is made anew."),
    **dict.fromkeys(
        (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError), DEFECT
    ),
    Exception: Rule(Action.HERE),
}  # fmt: skip
"""The last entry is the last resort. A class that is not here is served by the nearest of its bases."""

SPACE_WORDS = (os.strerror(errno.ENOSPC).lower(), os.strerror(errno.EDQUOT).lower())
"""Also in safetensors' errors and in the converter's last words."""
MEMORY_WORDS = (
    os.strerror(errno.ENOMEM).lower(),  # torch's CPU allocator quotes it, mmap raises it
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",
    "out of memory",  # CUDA's own
    "bad_alloc",  # C++ without a translation
    "alloc_failed",  # cuBLAS, cuDNN
    "unable to mmap",  # torch's file storage
    "could not create a primitive",  # oneDNN has no other word for it
)
FULL_BYTES = 1_000_000  # with less than this left, whatever failed failed for want of space


def kind(error: BaseException) -> type[BaseException]:
    """Return the class to look an error up by: its own, or the one that its words stand for."""
    text = str(error).lower()
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace
    if vague(error) and any(words in text for words in SPACE_WORDS):
        return NoSpace
    if isinstance(error, RuntimeError | OSError | SafetensorError) and any(words in text for words in MEMORY_WORDS):
        return MemoryError
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):  # torch's, without importing torch
        return MemoryError
    return type(error)


def vague(error: BaseException) -> bool:
    """Tell whether an error may be another's consequence: one that names its cause is believed."""
    return not isinstance(error, LabError) or error.code in (Code.INTERNAL, Code.TOOLCHAIN)


def rule(cls: type[BaseException]) -> Rule:
    """Return the table's entry for a class, or for the first of its bases that has one."""
    return next((TABLE[base] for base in cls.__mro__ if base in TABLE), TABLE[Exception])


def action(error: BaseException) -> Action:
    """Return what an error calls for."""
    return rule(kind(error)).action


def explain(error: BaseException, *, stage: str, log: str, free_bytes: int) -> LabError:
    """Return the error as people and the conductor get to see it.

    Args:
        error: what ended the job's process.
        stage: the stage that it ended.
        log: where the whole story is.
        free_bytes: what is left on the disk of the job: a library may have no word for that.
    """
    found = kind(error)
    if free_bytes < FULL_BYTES and vague(error):
        found = NoSpace
    if isinstance(error, LabError) and found is not NoSpace:
        return error
    told = rule(found)
    message = error.message if isinstance(error, LabError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    problem = f"The stage {stage} failed: {message.rstrip('.')}; see {log}."
    if found is NoSpace:
        problem += f" {free_bytes / 1e6:.1f} MB are free on the disk."
    return LabError(told.code, problem, advice=told.advice, retry=RETRY[told.action])


BROKEN = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
"""What native code ends with that is broken or was built for another processor."""


def ended(status: int, log: str) -> tuple[str, Retry]:
    """Tell why a process ended without a word, by its exit status (negative: the signal), and where to try again."""
    if status >= 0:
        return f"the job's process ended with status {status} without a word; see {log}.", Retry.LATER
    name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
    hint = " (so ends a process that takes the machine's last memory)" if -status == signal.SIGKILL else ""
    retry = Retry.OTHER_WORKER if -status in BROKEN else Retry.LATER
    return f"the job's process was killed by {name}{hint} without a word; see {log}.", retry
