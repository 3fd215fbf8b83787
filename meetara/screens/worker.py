"""`meetara worker`: lend this machine to a lab, and see what it does with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from bus import workers
from bus.broker import die_with_parent, open_log
from configs import Settings
from meetara import show
from meetara.door import INTERRUPTED, OK, emit, tell
from protocol import Code, ErrorBody, LabError

MODULE = "agents.gguf_factory.worker"
LINE_LIMIT = 4 * 1024 * 1024
"""Bytes of one line; a finished job tells its artefacts."""
SHUTDOWN = "MEETARA_SHUTDOWN"
"""Environment: the command that turns this machine off, e.g. `shutdown -h now`; run when the worker has ended, however it did."""
SHUTDOWN_S = 120.0
"""More than any vendor's tool takes; a machine that is turned off ends this process anyway."""
REFRESH = 4
QUIET_STEP = 0.1
"""A line per tenth of a stage where no terminal shows a bar."""


class View:
    """What the worker has told, as a picture."""

    def __init__(self) -> None:
        self.machine = "starting"
        self.state = ""
        self.jobs: dict[str, dict[str, Any]] = {}

    def take(self, line: Mapping[str, Any]) -> str | None:
        """Remember a line and return what a person should read of it, where no picture is shown."""
        match line["kind"]:
            case "worker":
                self.machine = f"{line['worker']}  {_machine(line['device'])}"
                return f"{self.machine}, {line['provider']}, lab {line['lab']} at {line['broker']}"
            case "online":
                self.state = "online"
                return "online; waits for jobs" if not line["jobs"] else "online again"
            case "offline" | "over":
                self.state = f"{line['kind']}: {line['reason']}"
                return self.state
            case kind:
                return self._job(kind, line)

    def _job(self, kind: str, line: Mapping[str, Any]) -> str | None:
        job = self.jobs.setdefault(line["job"], {"tenth": 0})
        fresh = {name: value for name, value in line.items() if name not in ("kind", "job")}
        if kind in ("lease", "stage_started"):
            job.update(tenth=0, step=None, loss=None, tokens_per_s=None, eta_s=None, note=None)
        job.update(fresh, state=kind)
        if kind == "lease":
            return f"{line['job']}  leased: {line['domain']} on {line['base']}, attempt {line['attempt']}"
        if kind == "progress":
            tenth = int((_share(job) or 0.0) / QUIET_STEP + 1e-9)
            if tenth <= job["tenth"]:
                return None
            job["tenth"] = tenth
        if kind in ("done", "failed", "stopped"):
            self.jobs.pop(line["job"])
        words = [line["job"], job.get("stage") or "", kind.replace("_", " ") if kind != "progress" else "", *_facts(job)]
        return "  ".join(word for word in words if word)

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for name, job in self.jobs.items():
            bar = ProgressBar(total=1.0, completed=_share(job) or 0.0, width=24)
            table.add_row(escape(show.shortened(name, 24)), job.get("stage") or "starting", bar, escape("  ".join(_facts(job))))
        return Group(f"[bold]{escape(self.machine)}[/bold]", escape(self.state), table)


def _machine(device: Mapping[str, Any]) -> str:
    gpu = f"{device['gpu']} ({show.size(device['gpu_memory_bytes'])})" if device["gpu"] else "no GPU"
    return f"{gpu}, {device['cores']} cores, {show.size(device['memory_bytes'])} memory, {show.size(device['disk_free_bytes'])} free"


def _share(job: Mapping[str, Any]) -> float | None:
    step, steps = job.get("step"), job.get("steps")
    return min(1.0, step / steps) if step is not None and steps else None


def _facts(job: Mapping[str, Any]) -> list[str]:
    found = []
    if job.get("step") is not None:
        found.append(f"step {job['step']}/{job['steps']}" if job.get("steps") else f"step {job['step']}")
    if job.get("loss") is not None:
        found.append(f"loss {job['loss']:.3f}")
    if job.get("tokens_per_s") is not None:
        found.append(f"{job['tokens_per_s']:,.0f} tokens/s")
    if job.get("eta_s") is not None:
        found.append(f"{show.duration(job['eta_s'])} left")
    if job.get("error"):
        found.append(str(job["error"].get("message", "")))
    return found


async def worker(
    broker: str, token: str | None, *, home: Path | None, options: Sequence[str], as_json: bool, console: Console
) -> int:
    """Run a worker until its token is over; SIGINT and SIGTERM let it checkpoint and say goodbye.

    Args:
        broker: mqtts://HOST:PORT.
        token: as the lab gave it; None: MEETARA_TOKEN.
        home: where it works; None: a folder of its own in the user's data directory.
        options: further ones of `python -m agents.gguf_factory.worker`.

    Raises:
        LabError: what must be corrected first, or why it ended.
    """
    try:
        text = token or os.environ.get(workers.VARIABLE, "")
        read = workers.Token.read(text)
        folder = (home or Settings.read().home / "workers" / read.worker).expanduser().absolute()
        command = [sys.executable, "-m", MODULE, "--broker", broker, "--home", str(folder), *options]
        environment = {**os.environ, workers.VARIABLE: text, "PYTHONUNBUFFERED": "1"}
        return await _run(command, environment, folder / "logs" / "worker.log", as_json=as_json, console=console)
    finally:
        _shut_down()


async def _run(command: Sequence[str], environment: Mapping[str, str], log: Path, *, as_json: bool, console: Console) -> int:
    try:
        descriptor = open_log(log)
    except OSError as error:
        raise LabError(
            Code.CONFIGURATION, f"{log} cannot be written: {error.strerror}.", advice="Choose another place with --home.",
            file=str(log),
        ) from error  # fmt: skip
    with os.fdopen(descriptor, "ab") as words:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, limit=LINE_LIMIT,
            start_new_session=True,  # Ctrl-C is for this process, which then asks that one to end
            preexec_fn=_end_with_parent,
        )  # fmt: skip
    asked: list[int] = []

    def ask(number: int) -> None:
        asked.append(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL if len(asked) > 2 else signal.SIGTERM)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    try:
        wrong = await _show(process, as_json=as_json, console=console)
        code = await process.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if process.returncode is None:
            process.kill()
            await process.wait()
    if wrong is not None:
        raise wrong
    if asked and code >= 0:
        return INTERRUPTED if asked[0] == signal.SIGINT else OK
    if code == OK:
        return OK
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise LabError(
        Code.INTERNAL, f"the worker {how}: {_last_words(log) or 'it said nothing'}.",
        advice=f"Its log says more: {log}. Started again with the same token and home it goes on.", file=str(log),
    )  # fmt: skip


async def _show(process: asyncio.subprocess.Process, *, as_json: bool, console: Console) -> LabError | None:
    """Show what the worker tells until it ends; return the error that it told."""
    view, wrong = View(), None
    pictured = console.is_terminal and sys.stdout.isatty() and not as_json  # notebooks claim to be terminals
    live = Live(view, console=console, refresh_per_second=REFRESH) if pictured else nullcontext()
    assert process.stdout is not None
    with live:
        async for raw in process.stdout:
            line = json.loads(raw)
            if line["kind"] == "error":
                wrong = LabError.from_body(ErrorBody.model_validate(line["error"]))
            elif as_json:
                emit(line)
            elif (sentence := view.take(line)) is not None and not pictured:
                print(sentence, flush=True)
    return wrong


def _last_words(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:])


def _end_with_parent() -> None:
    die_with_parent(signal.SIGTERM)  # it checkpoints then; SIGKILL would lose what was trained since


def _shut_down() -> None:
    """Run the command that turns this machine off, where there is one; its failure is told, there is nothing else to do."""
    command = os.environ.get(SHUTDOWN)
    if not command:
        return
    try:
        subprocess.run(shlex.split(command), timeout=SHUTDOWN_S, check=True, stdin=subprocess.DEVNULL, stdout=2)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        tell(f"{SHUTDOWN} failed, so this machine may go on costing money: {error}")
