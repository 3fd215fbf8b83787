"""A job's process before there is one: a zygote may import for longer than a lease lasts."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from agents.gguf_factory.launcher import Launcher
from agents.gguf_factory.process import JobProcess


class Slow(Launcher):
    """Never comes to forking."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.asked, self.given_up = asyncio.Event(), False

    async def start(self, *_: Any, **__: Any) -> Any:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up = True
            raise


async def test_a_job_that_is_being_started_counts_as_working_and_is_stopped_at_once(tmp_path: Path) -> None:
    statuses: list[int] = []

    async def heard(line: dict[str, Any]) -> None:
        raise AssertionError(line)

    async def ended(status: int) -> None:
        statuses.append(status)

    launcher = Slow(tmp_path)
    process = JobProcess(tmp_path, 1, heard, ended, launcher=launcher)
    assert not process.working()
    running = asyncio.create_task(process.run())
    await launcher.asked.wait()
    assert process.working()
    await process.stop(60)
    await running
    assert statuses == [-signal.SIGTERM] and launcher.given_up and not process.working()
