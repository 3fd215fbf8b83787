"""One supervised process: its log, its restarts, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bus.broker import die_with_parent, open_log
from protocol import Code, LabError

BACKOFF = (0.5, 10.0)
"""Seconds before a restart: first and longest; doubles in between. The first is below a lease's 30 s by far."""
HEALTHY_SECONDS = 30.0
"""A process that lived this long starts its backoff anew."""
REFUSED = 2
"""Exit code of an agent that refuses its configuration: starting it again cannot help."""
TAIL_LINES = 12
"""Lines of a log that are shown with an error."""


class Child:
    """A process that is started again when it ends, until `stop`.

    Args:
        name: for messages and the log's name.
        command: program and arguments.
        environment: the process's whole environment.
        log: file that takes its output.
        tell: takes sentences about restarts.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.log = log
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self._command = list(command)
        self._environment = dict(environment)
        self._tell = tell
        self._stopping = asyncio.Event()
        self._log_start = 0

    async def keep(self, *, restarts: int | None = None, settled: asyncio.Event | None = None) -> None:
        """Run the process, again and again.

        Args:
            restarts: give up after so many in a row while `settled` is not set; None: never.
            settled: set when the whole lab was up once.

        Raises:
            LabError: CONFIGURATION when the process refuses its configuration; INTERNAL when it does not stay up.
        """
        loop = asyncio.get_running_loop()
        pause = BACKOFF[0]
        in_a_row = 0
        while not self._stopping.is_set():
            began = loop.time()
            await self._start()
            assert self.process is not None
            code = await self.process.wait()
            if self._stopping.is_set():
                return
            if code == REFUSED:
                raise LabError(
                    Code.CONFIGURATION, f"{self.name} refuses to start: {self.last_words()}", file=str(self.log)
                )
            if loop.time() - began >= HEALTHY_SECONDS:
                pause, in_a_row = BACKOFF[0], 0
            in_a_row += 1
            if restarts is not None and in_a_row > restarts and not (settled and settled.is_set()):
                raise LabError(
                    Code.INTERNAL, f"{self.name} does not stay up ({_ending(code)}): {self.last_words()}",
                    advice=f"See {self.log}.", file=str(self.log),
                )  # fmt: skip
            self.restarts += 1
            self._tell(f"{self.name} {_ending(code)}; started again in {pause:g} s (log: {self.log})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, BACKOFF[1])

    async def _start(self) -> None:
        log = open_log(self.log)
        try:
            self._log_start = os.fstat(log).st_size
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone, which keeps the order
                preexec_fn=die_with_parent,  # SIGKILL: agents are safe against it, and nothing may outlive `up`
            )  # fmt: skip
        finally:
            os.close(log)

    def last_words(self) -> str:
        """Return the last lines that the process wrote since its last start."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
            return "\n".join(lines[-TAIL_LINES:])
        return ""

    async def stop(self, grace: float) -> None:
        """Ask the process to end, and kill it when it has not after `grace` seconds."""
        self._stopping.set()
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await process.wait()
            except TimeoutError:
                self._tell(f"{self.name} did not end within {grace:g} s and was killed (log: {self.log})")
                process.kill()
        await process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._stopping.set()
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
