"""A job's process as the factory sees it: started, listened to, stopped, and what it means when it ends without a word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from bus import trace
from protocol.job import PlanRequest

QUIET_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other sleep instead of spinning: on shared cores a training step took 2.9 s instead of
10.6 s. OpenMP reads it when torch is loaded, so it must be in the environment before."""
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
        agent: the factory's id, for the process's log.
    """

    def __init__(
        self, folder: Path, slots: int, heard: Callable[[dict[str, Any]], Awaitable[None]],
        ended: Callable[[int], Awaitable[None]], *, agent: str = "gguf_factory",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.agent = agent
        self.slots = slots
        self.heard = heard
        self.ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start the process and listen until it has ended; one that was stopped before is never started."""
        if self._stopping.is_set():
            await self.ended(-signal.SIGTERM)
            return
        with (self.folder / "log.txt").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agents.gguf_factory.work", str(self.folder), "--agent", self.agent,
                stdout=asyncio.subprocess.PIPE, stderr=log, stdin=asyncio.subprocess.DEVNULL, limit=LINE_LIMIT,
                start_new_session=True, env=self._environment(),
            )  # fmt: skip
        process = self._process
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                await self.heard(json.loads(line))
            status = await process.wait()
        except BaseException:
            self._signal(signal.SIGKILL)
            raise
        await self.ended(status)

    def _environment(self) -> dict[str, str]:
        traceparent = trace.current()
        told = {trace.VARIABLE: traceparent} if traceparent is not None else {}
        return {**QUIET_WAITING, **os.environ, "MEETARA_SLOTS": str(self.slots), **told}

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
        """Tell whether the process exists and is not held by a SIGSTOP (a held one must lose its lease)."""
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            return psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                os.killpg(self._process.pid, number)


async def make_plan(request: PlanRequest, home: Path) -> dict[str, Any]:
    """Plan in a process of its own (reading data sets and tokenizers would hold up the agent).

    Returns:
        {"plan": …} or {"error": …}, or {"crash": the last words} when the process said neither.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agents.gguf_factory.work", "--plan",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MEETARA_HOME": str(home)},
    )  # fmt: skip
    try:
        out, words = await process.communicate(request.model_dump_json().encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            process.kill()
        raise
    try:
        answer: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError:
        last = words.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"crash": f"the planning process ended with status {process.returncode}: {' '.join(last)}"}
    return answer
