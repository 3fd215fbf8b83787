"""Starts the factory's processes: forked off a warm one where the system allows it, else each with an interpreter of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from agents.gguf_factory import zygote
from agents.gguf_factory.forked import ask
from agents.gguf_factory.program import Program

QUIET_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other sleep instead of spinning: on shared cores a training step took 2.9 s instead of
10.6 s. OpenMP reads it when torch is loaded, so it must be in the environment before."""
WARM = sys.platform.startswith("linux")
"""Elsewhere a fork of a process that has loaded the system's frameworks may crash (macOS), and nothing tells a forked
process of its parent's end."""
ZYGOTES = 2
"""Zygotes that are asked for one process: the first may be stale, or end for want of work in the same moment."""
FORK_S = 120.0
"""Longest time until a zygote has forked: importing takes 5 s, and a busy machine may need ten times as long."""

log = structlog.get_logger()


class Started(Protocol):
    """A process that was started; asyncio's own has these too."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...


class Fork:
    """A process that a zygote has forked. It dies with its zygote, and counts as killed then.

    Args:
        pid: its process id.
        told: lines about it.
        returncode: its exit status, where it has ended already.
    """

    def __init__(self, pid: int, told: asyncio.StreamReader, returncode: int | None = None) -> None:
        self.pid = pid
        self.returncode = returncode
        self._told = told
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> int:
        if self.returncode is None:
            kind, status = await line(self._told)
            self.returncode = status if kind == "ended" else -signal.SIGKILL
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._listening)


class Launcher:
    """Keeps a zygote from the first process on, and replaces one that is stale, idle or dead.

    Args:
        home: MEETARA_HOME; the zygote's command line names it.
        warm: whether to fork at all.
        zygote_command: starts a zygote, without its arguments.
    """

    def __init__(
        self, home: Path, *, warm: bool = WARM,
        zygote_command: Sequence[str] = (sys.executable, "-m", zygote.__name__),
    ) -> None:  # fmt: skip
        self.home = home
        self.warm = warm
        self.zygote_command = zygote_command
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The zygote's process id, while there is one."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def start(
        self, program: Program, environment: Mapping[str, str], *, stdout: int, stderr: int, stdin: int | None = None,
        session: bool = False,
    ) -> Started:  # fmt: skip
        """Start a program.

        Args:
            program: a module that may be forked.
            environment: added to this process's own.
            stdout, stderr, stdin: descriptors, which stay the caller's own; without stdin it reads nothing.
            session: whether it becomes the leader of a session.

        Raises:
            OSError: the system starts no more processes.
        """
        whole = {**QUIET_WAITING, **os.environ, **environment}
        for _ in range(ZYGOTES if self.warm else 0):
            control = await self._ready()
            try:
                status = ask(
                    control, program, whole, stdout=stdout, stderr=stderr, stdin=stdin, session=session
                )
            except OSError as error:
                await self._replace(control, f"takes no request: {error}")
                continue
            told, pipe = await open_pipe(status)
            try:
                async with asyncio.timeout(FORK_S):
                    kind, number = await line(told)
            except TimeoutError:
                pipe.close()
                await self._replace(control, "does not answer", kill=True)
                continue
            except BaseException:
                pipe.close()  # the process cannot tell its id then, and ends before it begins
                raise
            if kind in ("pid", "ended"):
                return Fork(number, told) if kind == "pid" else Fork(0, told, number)
            await self._replace(control, "is stale" if kind == "stale" else "is gone")
        if self.warm:
            log.warning("no process could be forked; starting one afresh", program=program.target)
        return await asyncio.create_subprocess_exec(
            *program.command(os.getpid()), stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=stdout,
            stderr=stderr, env=whole, start_new_session=session,
        )  # fmt: skip

    async def _ready(self) -> socket.socket:
        """Return where requests go, of a new zygote where there is none."""
        async with self._starting:
            if self._control is not None and self.pid is not None:
                return self._control
            await self._let_go()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)  # a zygote that imports for a while does not read; its buffer holds dozens
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *self.zygote_command, str(theirs.fileno()), str(self.home),
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True,
                    env={**QUIET_WAITING, **os.environ},
                )  # fmt: skip
            self._control = ours
            return ours

    async def _replace(self, control: socket.socket, why: str, *, kill: bool = False) -> None:
        """Ask this zygote for nothing more; it ends after its last process."""
        async with self._starting:
            if control is not self._control:
                return  # another start has seen it too
            log.info("the warm process is replaced", reason=why)
            if kill and self._process is not None:
                _kill(self._process)
            await self._let_go()

    async def _let_go(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control = self._process = None

    async def close(self) -> None:
        """End the zygote, and whatever was forked off it."""
        process = self._process
        await self._let_go()
        if process is not None:
            _kill(process)
            await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        process.kill()


async def line(told: asyncio.StreamReader) -> tuple[str, int]:
    """Return what a zygote tells in one line, and its number; empty and 0 when it is gone."""
    kind, _, number = (await told.readline()).decode("ascii").strip().partition(" ")
    return kind, int(number or 0)


async def open_pipe(descriptor: int, limit: int = 4096) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """Return a reader of a pipe, which is closed at its end or before by the transport; `limit` is the most bytes of a line."""
    reader = asyncio.StreamReader(limit=limit)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport
