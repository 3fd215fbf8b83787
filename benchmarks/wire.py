"""A broker for measurements: the lab's own settings without its logins, so that a peer can use it as well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging import WARNING
from pathlib import Path

import structlog

from bus import BrokerAddress
from bus.broker import free_port
from bus.mosquitto import find_mosquitto, logging, storage

AUTOSAVE = ("autosave_on_changes", "autosave_interval")
"""The settings that write the database after each change."""


@asynccontextmanager
async def running_broker(folder: Path, *, autosave: bool) -> AsyncIterator[BrokerAddress]:
    """Run a Mosquitto configured as `meetara up` does it, open to everyone on loopback.

    Args:
        folder: for its database and log; it exists.
        autosave: as in the lab (the database is written after each change), or Mosquitto's default of half an hour.
    """
    port = free_port()
    kept = [line for line in storage(f"{folder}/") if autosave or line.split(" ")[0] not in AUTOSAVE]
    root = ["user root"] if os.geteuid() == 0 else []
    lines = [*root, f"listener {port} 127.0.0.1", "allow_anonymous true", *kept, "sys_interval 0", *logging("stderr")]
    file = folder / "mosquitto.conf"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (folder / "broker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(str(find_mosquitto()), "-c", str(file), stderr=log)
    try:
        async with asyncio.timeout(10):
            while not _listens(port):
                await asyncio.sleep(0.02)  # no event to await: another process opens a socket
        yield BrokerAddress("127.0.0.1", port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def quiet() -> None:
    """Log warnings only: what a benchmark prints is its result."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(WARNING))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def running_module(name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module as a process of its own; returns when it has printed its first line, ends it on leaving."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", name, *arguments, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} ended before it was ready (exit code {await process.wait()})")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
