"""Run one program beside a stage: its output goes to a file, it ends when the stage is told to, and never outlives it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agents.gguf_factory import zygote
from agents.gguf_factory.forked import Forked, ask
from agents.gguf_factory.job import Stopped
from agents.gguf_factory.program import Program
from protocol import Code, LabError

POLL_S = 0.1  # a stop is seen within this; cancelling has 3 s in all
GRACE_S = 1.0  # between SIGTERM and SIGKILL
TAIL_LINES = 8  # of a failed program's output that go into the error

_branch: socket.socket | None = None
"""Where this process asks for forks of itself as it was before it computed anything; None: programs start afresh."""

Process = subprocess.Popen[bytes] | Forked


def script(path: Path, *arguments: str | Path) -> Program:
    """Return the program that is a Python script; it dies with its parent."""
    return Program(str(path), tuple(map(str, arguments)), script=True, forked=True)


def module(name: str, *arguments: str | Path, forked: bool = False) -> Program:
    """Return the program that is a module of the project; it calls `lifeline.die_with_parent` itself.

    Args:
        name: the module.
        arguments: its arguments.
        forked: whether it may run in a fork of this process; it must have `main(arguments) -> exit code` then.
    """
    return Program(name, tuple(map(str, arguments)), forked=forked)


@contextmanager
def forking(*private: int) -> Iterator[None]:
    """Within this block, programs that may be forked are: off this process, as it was when the block was entered.

    Args:
        private: descriptors that such programs are not to have.
    """
    global _branch
    with zygote.branched(private) as _branch:
        try:
            yield
        finally:
            _branch = None


def run(
    program: Program,
    *,
    output: Path,
    stop: Callable[[], bool],
    what: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        program: made by `script` or `module`.
        output: file for its stdout and stderr.
        stop: asked every tenth of a second; true ends the program.
        what: the program in an error message, e.g. "the converter".
        environment: variables added to this process's own.

    Raises:
        Stopped: `stop` was true, and the program is gone.
        LabError: TOOLCHAIN, the program failed; the message has its last lines.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        process = start(program, file, {**os.environ, **(environment or {})})
    try:
        while (code := _waited(process)) is None:
            if stop():
                raise Stopped(f"{what} was stopped")
    finally:
        end(process)
    text = output.read_text(encoding="utf-8", errors="replace")
    if code != 0 and stop():  # the SIGTERM that asks for the stop goes to the whole group
        raise Stopped(f"{what} was stopped")
    if code != 0:
        tail = "\n".join(text.strip().splitlines()[-TAIL_LINES:])
        raise LabError(
            Code.TOOLCHAIN, f"{what} failed (exit {code}): {tail}",
            advice=f"The whole output is in {output}.", file=str(output),
        )  # fmt: skip
    return text


def start(program: Program, output: BinaryIO, environment: Mapping[str, str]) -> Process:
    """Start a program whose stdout and stderr go to a file."""
    if program.forked and _branch is not None:
        return Forked(
            ask(_branch, program, environment, stdout=output.fileno(), stderr=output.fileno())
        )
    return subprocess.Popen(
        program.command(os.getpid()), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    )


def _waited(process: Process) -> int | None:
    try:
        return process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None


def end(process: Process) -> None:
    """End a program that still runs: SIGTERM, then SIGKILL after a second."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
