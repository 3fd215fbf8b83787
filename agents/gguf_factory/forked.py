"""A process that a zygote is asked for, as the one who asks sees it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict

from agents.gguf_factory.program import Program

MESSAGE_BYTES = 128 * 1024
"""Of one request; an environment takes a few kB, and a socket's buffer holds 208 kB."""

def ask(
    control: socket.socket, program: Program, environment: Mapping[str, str], *, stdout: int, stderr: int,
    stdin: int | None = None, session: bool = False,
) -> int:  # fmt: skip
    """Ask a zygote for a process and return the reading end of its status pipe.

    Args:
        control: the requests' socket.
        program: what it shall run.
        environment: its whole environment.
        stdout, stderr, stdin: descriptors, which stay the caller's own; without stdin it reads nothing.
        session: whether it becomes the leader of a session (and so of a group that can be killed as one).

    Raises:
        OSError: nobody reads from the socket any more, or the environment is too large for it.
    """
    message = {"program": asdict(program), "environment": dict(environment), "session": session}
    text = json.dumps(message).encode()
    if len(text) > MESSAGE_BYTES:
        raise OSError(errno.EMSGSIZE, f"a request of {len(text)} bytes")
    reading, writing = os.pipe()
    try:
        socket.send_fds(control, [text], [stdout, stderr, writing, *([] if stdin is None else [stdin])])
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return reading


class Forked:
    """A process that a zygote was asked for, as `subprocess.Popen` shows it: what a stage needs of that."""

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self._text = b""
        self.returncode: int | None = None
        self.pid = 0

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended within `timeout` seconds.
        """
        while self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
            self._read()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def _read(self) -> None:
        new = self._status.read(4096)
        self._text += new
        for line in self._text.decode("ascii").splitlines():
            kind, _, number = line.partition(" ")
            if kind == "pid":
                self.pid = int(number)
            elif kind == "ended":
                self.returncode = int(number)
        if not new and self.returncode is None:
            self.returncode = -signal.SIGKILL  # whom it was forked from is gone, and took it along
        if self.returncode is not None:
            self._status.close()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is None and self.pid:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                os.kill(self.pid, number)
