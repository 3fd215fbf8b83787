"""A job's process as the factory sees it: started, listened to, stopped, and what it means when it ends without a word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

from agents.gguf_factory.launcher import Launcher, Started, open_pipe
from agents.gguf_factory.program import Program
from bus import trace
from protocol.job import PlanRequest

WORK = "agents.gguf_factory.work"
LINE_LIMIT = 4 * 1024 * 1024
"""Bytes of one line from the process; the final line carries all results and samples, far less than this."""
CANCEL_GRACE = 1.5
"""Seconds between SIGTERM and SIGKILL when a job is cancelled: the whole cancel must take under 5 s."""
CHECKPOINT_GRACE = 20.0
"""Seconds a job may take to save when the factory stops; one training step of the largest starter batch takes 3 s."""


class JobProcess:
    """`python -m agents.gguf_factory.work` on one job folder, in a session of its own.

    Args:
        folder: the job's folder, with job.json in it.
        slots: how many jobs share this machine's cores.
        heard: takes each JSON line of the process.
        ended: called once with the exit status (negative: killed by that signal).
        launcher: starts the process.
        agent: the factory's id, for the process's log.
    """

    def __init__(
        self, folder: Path, slots: int, heard: Callable[[dict[str, Any]], Awaitable[None]],
        ended: Callable[[int], Awaitable[None]], *, launcher: Launcher, agent: str = "gguf_factory",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.agent = agent
        self.slots = slots
        self.heard = heard
        self.ended = ended
        self.launcher = launcher
        self._process: Started | None = None
        self._starting = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start the process and listen until it has ended; one that was stopped before is never started."""
        if self._stopping.is_set():
            await self.ended(-signal.SIGTERM)
            return
        reading, writing = os.pipe()
        said, _ = await open_pipe(reading, LINE_LIMIT)
        program = Program(WORK, (str(self.folder), "--agent", self.agent), forked=True)
        self._starting = True
        try:
            with (self.folder / "log.txt").open("ab") as log:
                self._process = await self._unless_stopped(
                    self.launcher.start(program, self._told(), stdout=writing, stderr=log.fileno(), session=True)
                )
        finally:
            self._starting = False
            os.close(writing)
        if self._process is None:
            await self.ended(-signal.SIGTERM)
            return
        process = self._process
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        try:
            async for line in said:
                await self.heard(json.loads(line))
            status = await process.wait()
        except BaseException:
            self._signal(signal.SIGKILL)
            raise
        await self.ended(status)

    async def _unless_stopped(self, start: Coroutine[Any, Any, Started]) -> Started | None:
        """Return what is started, or None where a stop comes first: a zygote may import for seconds before it forks."""
        starting, stopping = asyncio.create_task(start), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            return await starting if starting.done() else None
        finally:
            for task in (starting, stopping):
                task.cancel()

    def _told(self) -> dict[str, str]:
        traceparent = trace.current()
        told = {trace.VARIABLE: traceparent} if traceparent is not None else {}
        return {"MEETARA_SLOTS": str(self.slots), **told}

    async def stop(self, grace: float) -> None:
        """Ask the process to save and end; after `grace` seconds kill it and everything it started."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await process.wait()

    def working(self) -> bool:
        """Tell whether the process exists and is not held by a SIGSTOP (a held one must lose its lease).

        One that is being started counts: a zygote may import for longer than a lease lasts.
        """
        if self._process is None:
            return self._starting
        if self._process.returncode is not None:
            return False
        try:
            return psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                os.killpg(self._process.pid, number)


async def make_plan(request: PlanRequest, home: Path, launcher: Launcher) -> dict[str, Any]:
    """Plan in a process of its own (reading data sets and tokenizers would hold up the agent).

    Returns:
        {"plan": …} or {"error": …}, or {"crash": the last words} when the process said neither.
    """
    with TemporaryFile() as asked, TemporaryFile() as answer, TemporaryFile() as words:
        asked.write(request.model_dump_json().encode())
        asked.seek(0)
        process = await launcher.start(
            Program(WORK, ("--plan",), forked=True), {"MEETARA_HOME": str(home)},
            stdout=answer.fileno(), stderr=words.fileno(), stdin=asked.fileno(),
        )  # fmt: skip
        try:
            status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(process.pid, signal.SIGKILL)
            raise
        for file in (answer, words):
            file.seek(0)
        try:
            found: dict[str, Any] = json.loads(answer.read())
        except json.JSONDecodeError:
            last = words.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            return {"crash": f"the planning process ended with status {status}: {' '.join(last)}"}
        return found
