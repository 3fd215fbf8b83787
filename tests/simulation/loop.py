"""An event loop without time of its own: it runs what is due when the world says so, and can be dropped like a killed process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol

from tests.simulation.disk import Killed

TURNS = 20_000
"""Callbacks that may run at one moment of virtual time; more means that a process spins without ever waiting."""


class Spinning(AssertionError):
    """A process runs for ever without waiting for anything."""


class Clock(Protocol):
    """What a loop needs of the world."""

    now: float

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a moment of virtual time (seconds)."""


class Loop(asyncio.AbstractEventLoop):
    """The loop of one process. `dead`: nothing of it ever runs again. `paused`: nothing runs until `resume`.

    Args:
        clock: the world's.
        owner: whatever simulated code wants to find by `asyncio.get_running_loop().owner`.
    """

    def __init__(self, clock: Clock, owner: Any) -> None:
        self.clock = clock
        self.owner = owner
        self.dead = False
        self.paused = False
        self.signals: dict[int, Callable[[], None]] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._running = False
        self._awake = False

    # what asyncio asks of a loop

    def time(self) -> float:
        return self.clock.now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        self._wake()
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        return self.call_at(self.clock.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def due() -> None:
            if not handle.cancelled():
                self._ready.append(handle)
                self._wake()

        self.clock.at(when, due)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer stays in the world's list and does nothing there."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None) -> asyncio.Task[Any]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)
        if len(self.tasks) > 200:
            self.tasks = [known for known in self.tasks if not known.done()]
        return task

    def add_signal_handler(self, number: int, callback: Any, *args: Any) -> None:
        self.signals[number] = lambda: callback(*args)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self.dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not self.dead:
            raise error

    # what the world does with it

    def _wake(self) -> None:
        if not self._awake and not self._running:
            self._awake = True
            self.clock.at(self.clock.now, self.run)

    def run(self) -> None:
        """Run everything that is ready."""
        self._awake = False
        if self.dead or self.paused or not self._ready:
            return
        self._running = True
        asyncio._set_running_loop(self)
        try:
            for _ in range(TURNS):
                if not self._ready or self.dead or self.paused:
                    return
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
            raise Spinning(f"{self.owner} runs without waiting")
        finally:
            asyncio._set_running_loop(None)
            self._running = False

    def resume(self) -> None:
        """Go on after a pause; what became due meanwhile is late."""
        self.paused = False
        self._wake()

    def kill(self) -> None:
        """Never run again; not even what tasks would do when they are cancelled."""
        self.dead = True
        self._ready.clear()

    def bury(self) -> None:
        """Close the coroutines of a dead loop, once nobody can be harmed by what their `finally` does."""
        self.dead = True
        asyncio._set_running_loop(self)
        try:
            for task in self.tasks:
                for _ in range(3):
                    try:
                        task.get_coro().close()
                    except (Exception, GeneratorExit, asyncio.CancelledError, Killed):  # noqa: BLE001 - whatever the dead say
                        continue
                    break
        finally:
            asyncio._set_running_loop(None)
        self.tasks.clear()
