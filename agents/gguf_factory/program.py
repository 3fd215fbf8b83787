"""A program of the factory: a module of the project or a Python script, started by an interpreter or in a forked process."""

from __future__ import annotations

import importlib
import runpy
import sys
from dataclasses import dataclass

# prctl(PR_SET_PDEATHSIG, SIGKILL) in the program itself: preexec_fn is unsafe beside torch's threads.
_BOOT = """
import ctypes, os, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]): sys.exit(1)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Program:
    """What to run.

    Args:
        target: a module that has `main(arguments) -> exit code`, or the path of a script.
        arguments: its arguments.
        script: whether `target` is a path.
        forked: whether a warm process may be forked for it; otherwise it always gets a fresh interpreter.
    """

    target: str
    arguments: tuple[str, ...] = ()
    script: bool = False
    forked: bool = False

    def command(self, parent: int) -> list[str]:
        """Return the command for a fresh interpreter; a script then dies with the process `parent`, a module sees to that."""
        if self.script:
            return [sys.executable, "-P", "-c", _BOOT, str(parent), self.target, *self.arguments]
        return [sys.executable, "-m", self.target, *self.arguments]

    def words(self) -> list[str]:
        """Return what a list of processes shows of a forked one: the same program without the interpreter's path."""
        return ["python", *([] if self.script else ["-m"]), self.target, *self.arguments]

    def call(self) -> int:
        """Run the program in this process and return its exit code."""
        sys.argv = [self.target, *self.arguments]
        if self.script:
            runpy.run_path(self.target, run_name="__main__")
            return 0
        return int(importlib.import_module(self.target).main(list(self.arguments)))
