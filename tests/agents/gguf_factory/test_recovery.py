"""Each entry of the table, met by an error as it really comes."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from agents.gguf_factory import recovery
from agents.gguf_factory.job import Stopped
from agents.gguf_factory.recovery import RETRY, TABLE, Action, Diverged, NoSpace
from protocol import Code, LabError, Retry

HUGE = 1 << 58  # bytes that no address space has


def full_disk() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")


def nobody_listens() -> None:
    with socket.socket() as taken, socket.socket() as caller:
        taken.bind(("127.0.0.1", 0))
        caller.connect(taken.getsockname())


def damaged_file(folder: Path) -> None:
    (folder / "x").write_bytes(b"damaged file")
    load_file(folder / "x")


def raises(error: Exception) -> Callable[[Path], None]:
    def throw(_: Path) -> None:
        raise error

    return throw


REAL: dict[str, tuple[Callable[[Path], object], type[BaseException]]] = {
    "torch's allocator": (lambda _: torch.empty(HUGE, dtype=torch.uint8), MemoryError),
    "numpy's allocator": (lambda _: numpy.empty(HUGE, dtype=numpy.uint8), MemoryError),
    "python's allocator": (lambda _: bytearray(HUGE), MemoryError),
    "mmap": (lambda _: mmap.mmap(-1, HUGE), MemoryError),
    "a GPU": (raises(torch.OutOfMemoryError("CUDA")), MemoryError),
    "a GPU's library": (raises(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")), MemoryError),
    "C++": (raises(RuntimeError("std::bad_alloc")), MemoryError),
    "oneDNN": (raises(RuntimeError("could not create a primitive")), MemoryError),
    "a full disk": (lambda _: full_disk(), NoSpace),
    "a quota": (raises(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), NoSpace),
    "a full disk in safetensors' words": (raises(SafetensorError("I/O error: No space left on device (os error 28)")), NoSpace),
    "a full disk in the converter's words": (raises(LabError(Code.TOOLCHAIN, "x: No space left on device")), NoSpace),
    "divergence": (raises(Diverged(Code.INTERNAL, "the loss became nan.")), Diverged),
    "an error that knows its cause": (raises(LabError(Code.BAD_DATA, "line 3: No space left on device")), LabError),
    "no network": (lambda _: nobody_listens(), ConnectionError),
    "a slow network": (raises(TimeoutError("timed out")), TimeoutError),
    "a missing file": (lambda folder: (folder / "x").read_bytes(), OSError),
    "a broken disk": (raises(OSError(errno.EIO, os.strerror(errno.EIO))), OSError),
    "a missing package": (lambda _: __import__("no_such_package"), ImportError),
    "a failed program": (lambda _: subprocess.run([sys.executable, "-c", "1/0"], check=True, stderr=-3), subprocess.SubprocessError),
    "a damaged file": (damaged_file, SafetensorError),
    "arithmetic": (lambda _: 1 / 0, ArithmeticError),
    "an assertion": (raises(AssertionError()), AssertionError),
    "an attribute": (lambda _: object().x, AttributeError),  # type: ignore[attr-defined]
    "a key": (lambda _: {}["x"], LookupError),
    "a name": (raises(NameError("x")), NameError),
    "a gap": (raises(NotImplementedError()), NotImplementedError),
    "a type": (lambda _: len(1), TypeError),  # type: ignore[arg-type]
    "anything else": (raises(RuntimeError("shapes do not match")), Exception),
    "a value": (raises(ValueError("x")), Exception),
}  # fmt: skip


def caught(cause: Callable[[Path], object], folder: Path) -> Exception:
    with pytest.raises(Exception) as caught:
        cause(folder)
    return caught.value


@pytest.mark.parametrize("name", REAL)
def test_an_error_is_served_by_the_nearest_entry_on_its_mro(tmp_path: Path, name: str) -> None:
    cause, entry = REAL[name]
    assert recovery.rule(recovery.kind(caught(cause, tmp_path))) is TABLE[entry]


def test_each_entry_is_met_above_and_each_action_leaves_the_conductor_something_to_do() -> None:
    assert {entry for _, entry in REAL.values()} == set(TABLE)
    assert set(RETRY) == set(Action) - {Action.AS_TOLD}


ADVISED = [(MemoryError("x"), Code.NO_CAPACITY, Retry.OTHER_WORKER, "larger|smaller|more memory"),
           (OSError(errno.ENOSPC, "full"), Code.NO_SPACE, Retry.OTHER_WORKER, "Free some space"),
           (ConnectionResetError("x"), Code.UNREACHABLE, Retry.LATER, "network"),
           (PermissionError("x"), Code.INTERNAL, Retry.OTHER_WORKER, "permissions"),
           (ModuleNotFoundError("x"), Code.TOOLCHAIN, Retry.OTHER_WORKER, "meetara doctor"),
           (KeyError("x"), Code.INTERNAL, Retry.NEVER, "report it"),
           (RuntimeError("x"), Code.INTERNAL, Retry.LATER, "log.txt")]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "retry", "advice"), ADVISED, ids=lambda item: type(item).__name__)
def test_the_explanation_names_stage_error_log_and_cure(error: Exception, code: Code, retry: Retry, advice: str) -> None:
    told = recovery.explain(error, stage="merge", log="/jobs/j/log.txt", free_bytes=10**9)
    assert (told.code, told.retry) == (code, retry)
    for word in ("The stage merge failed", type(error).__name__, "see /jobs/j/log.txt"):
        assert word in told.message
    assert any(word in str(told) for word in advice.split("|"))


def test_an_error_that_says_what_to_do_is_passed_on_as_it_is() -> None:
    for error in (LabError(Code.BAD_DATA, "x", retry=Retry.LATER), Diverged(Code.INTERNAL, "the loss became nan.")):
        assert recovery.explain(error, stage="train", log="l", free_bytes=10**9) is error


def test_with_a_full_disk_an_error_without_a_cause_is_the_disks() -> None:
    told = recovery.explain(ValueError("cut"), stage="merge", log="l", free_bytes=1000)
    assert told.code is Code.NO_SPACE and "ValueError: cut" in told.message and "0.0 MB are free" in told.message
    known = LabError(Code.GATE_MISSED, "x")
    assert recovery.explain(known, stage="validate", log="l", free_bytes=1000) is known


def test_a_stop_is_no_entry_of_its_own() -> None:
    assert recovery.action(Stopped()) is Action.HERE  # who asks for a stop catches it first


@pytest.mark.parametrize(("status", "retry", "said"), [
    (1, Retry.LATER, "ended with status 1"), (-signal.SIGKILL, Retry.LATER, "SIGKILL (so ends a process that takes"),
    (-signal.SIGTERM, Retry.LATER, "killed by SIGTERM without"), (-signal.SIGILL, Retry.OTHER_WORKER, "SIGILL"),
    (-signal.SIGSEGV, Retry.OTHER_WORKER, "SIGSEGV"), (-200, Retry.LATER, "killed by 200"),
])  # fmt: skip
def test_a_process_that_ends_without_a_word_is_told_of_by_its_status(status: int, retry: Retry, said: str) -> None:
    reason, told = recovery.ended(status, "/j/log.txt")
    assert said in reason and "see /j/log.txt" in reason and told is retry
