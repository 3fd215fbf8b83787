"""`meetara up` and `meetara down`: start a lab and keep it alive; end one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from bus import BrokerAddress
from configs import Settings, load
from meetara.door import OK, emit, tell
from meetara.home import lock_owner, running
from meetara.lab import Lab
from meetara.supervise import Supervisor, supervised
from protocol import Code, JobSnapshot, LabError, Retry
from protocol.job import FINAL

DOWN_SECONDS = 90.0
"""More than all graces of `up` together (factories, agents, broker)."""
ASK_SECONDS = 5.0
"""A lab that does not tell its jobs within this time is stopped without asking."""


async def up(flags: dict[str, Any], *, port: int | None, factories: int, as_json: bool) -> int:
    """Run a lab until SIGINT, SIGTERM or SIGHUP; a second signal kills the agents instead of waiting for them."""
    settings = Settings.read(**flags, port=port or None)
    load(settings)  # a bad file in configs/ is refused before any process starts
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    current: list[Supervisor] = []

    def asked() -> None:
        if stop.is_set():
            for supervisor in current:
                supervisor.kill()
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, asked)
    work = asyncio.create_task(_run(settings, port, factories, as_json, stop, current))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not (current and current[0].ready.is_set()):
            work.cancel()  # while starting; once it runs, it looks at `stop` itself
        try:
            await work
        except asyncio.CancelledError:
            tell("stopped before it was ready.")
    finally:
        stopped.cancel()
        for number in numbers:
            loop.remove_signal_handler(number)
    return OK


async def _run(
    settings: Settings, port: int | None, factories: int, as_json: bool, stop: asyncio.Event, current: list[Supervisor]
) -> None:
    async with supervised(settings, port=port, factories=factories, tell=tell, made=current.append) as lab:
        if as_json:
            emit({
                "ready": True, "host": lab.address.host, "port": lab.address.port, "lab": settings.lab,
                "home": str(settings.home), "pid": os.getpid(), "agents": sorted(lab.agents), "listen": lab.listening,
            })  # fmt: skip
        else:
            elsewhere = f"\nfrom elsewhere {lab.listening}" if lab.listening else ""
            print(f"broker {lab.address}{elsewhere}\nready", flush=True)
        failing = asyncio.create_task(lab.failure())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([failing, stopped], return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                await failing
            tell("stopping: factories first, then the other agents, then the broker")
        finally:
            failing.cancel()
            stopped.cancel()
            await asyncio.gather(failing, stopped, return_exceptions=True)


def down(flags: dict[str, Any], *, yes: bool, as_json: bool) -> int:
    """End the lab of a home; asks first when jobs run, because they stop until the next `meetara up`."""
    home = Settings.read(**flags).home
    pid = lock_owner(home)
    if not pid:
        if as_json:
            emit({"stopped": False, "home": str(home), "reason": "not running"})
        else:
            print(f"No lab runs on the home {home}.")
        return OK
    active = [] if yes else asyncio.run(_active(home))
    if active and not _agreed(active, as_json=as_json):
        return OK
    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(DOWN_SECONDS)
    except psutil.NoSuchProcess:
        pass  # it went by itself
    except psutil.AccessDenied as error:
        raise LabError(
            Code.CONFIGURATION, f"this user may not end pid {pid}, which runs the lab.",
            advice="Run `meetara down` as the user who ran `meetara up`.",
        ) from error  # fmt: skip
    except psutil.TimeoutExpired as error:
        raise LabError(
            Code.BUSY, f"the lab (pid {pid}) was asked to end and still runs after {DOWN_SECONDS:.0f} s.",
            advice=f"See {home / 'logs'}; `kill -9 {pid}` ends it, its jobs go on from their last checkpoints.",
            retry=Retry.LATER,
        ) from error  # fmt: skip
    if as_json:
        emit({"stopped": True, "home": str(home), "pid": pid, "interrupted": [job.job for job in active]})
    else:
        print("stopped")
    return OK


async def _active(home: Path) -> list[JobSnapshot]:
    """Return the jobs that would be interrupted; none where the lab does not answer (then asking makes no sense)."""
    up = running(home)
    if up is None or not up.ready:
        return []
    address = BrokerAddress(up.host, up.port)
    try:
        async with Lab(home=home, host=address.host, port=address.port, lab=up.lab, name="down") as lab:
            return [job for job in await lab.jobs(timeout=ASK_SECONDS) if job.state not in FINAL]
    except LabError as error:
        tell(f"The lab did not tell its jobs: {error}")
        return []


def _agreed(active: list[JobSnapshot], *, as_json: bool) -> bool:
    names = ", ".join(f"{job.job} ({job.state.value})" for job in active)
    if as_json or not sys.stdin.isatty():
        raise LabError(
            Code.BUSY, f"{len(active)} of the lab's jobs are not finished: {names}.",
            advice="Give --yes to stop nevertheless; they are checkpointed and go on at the next `meetara up`.",
            retry=Retry.LATER, jobs=[job.job for job in active],
        )  # fmt: skip
    print(f"Not finished: {names}.\nThey are checkpointed and go on at the next `meetara up`.", file=sys.stderr)
    try:
        return input("Stop the lab? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
