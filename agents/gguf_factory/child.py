"""Run one program beside a stage: its output goes to a file, it ends when the stage is told to, and never outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agents.gguf_factory.job import Stopped
from protocol import Code, LabError

POLL_S = 0.1  # a stop is seen within this; cancelling has 3 s in all
GRACE_S = 1.0  # between SIGTERM and SIGKILL
TAIL_LINES = 8  # of a failed program's output that go into the error

# prctl(PR_SET_PDEATHSIG, SIGKILL) in the program itself: preexec_fn is unsafe beside torch's threads.
_BOOT = """
import ctypes, os, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]): sys.exit(1)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(path: Path, *arguments: str | Path) -> list[str]:
    """Return the command that runs a Python script which dies with its parent."""
    return [sys.executable, "-P", "-c", _BOOT, str(os.getpid()), str(path), *map(str, arguments)]


def module(name: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs a module of the project; it calls `lifeline.die_with_parent` itself."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def run(
    command: Sequence[str],
    *,
    output: Path,
    stop: Callable[[], bool],
    what: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        command: program and arguments.
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
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        while (code := process.poll()) is None:
            if stop():
                raise Stopped(f"{what} was stopped")
            time.sleep(POLL_S)
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


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program that still runs: SIGTERM, then SIGKILL after a second."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
