"""Ending tasks and waits reliably.

Python 3.11's wait_for, which aiomqtt uses inside, can swallow a cancellation when its future completes in the same
turn of the loop; a task that was cancelled once may therefore go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable


async def within(work: Awaitable[object], seconds: float | None) -> None:
    """Await at most so many seconds; returns quietly when they are over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended; their exceptions are dropped."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.05)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()
