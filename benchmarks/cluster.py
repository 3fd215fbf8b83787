"""A whole lab as `meetara up` starts it: time to `ready`, and the memory of each agent that waits for work."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.result import Goal, Series

TITLE = "Start and memory of the whole lab"
METHOD = """\
`meetara up --port 0` on an empty home, in a process of its own: the broker and the agents {agents}. Ready is when it prints `ready`: every
agent has connected, subscribed and announced itself, and users are let in. "Last agent" is when the last of them logged that it is
online. {settle:.0f} seconds later each agent's memory is read: USS is what would be free if it ended, PSS shares what several map by
their number, RSS counts that fully, and is what the goal is about. Other caches are warm: the first start after an installation
also compiles and reads every file from the disk."""

ROUNDS = 5
SETTLE_SECONDS = 4.0
START_SECONDS = 120.0
READY_GOAL = 5.0
RSS_GOAL = 80.0


@dataclass(frozen=True)
class Up:
    """A running lab: what it said when it was ready, and how many seconds that took."""

    home: Path
    host: str
    port: int
    agents: list[str]
    process: psutil.Process
    seconds: float
    began: float


@asynccontextmanager
async def lab_up() -> AsyncIterator[Up]:
    """Start a lab on a home of its own, and end it on leaving."""
    with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MEETARA_BROKER")}
        began = time.time()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meetara.cli", "up", "--port", "0", "--json", "--home", name,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
            if not line:
                raise RuntimeError(f"meetara up ended with {await process.wait()} before it was ready")
            said = json.loads(line)
            yield Up(
                Path(name), said["host"], said["port"], said["agents"], psutil.Process(process.pid), time.time() - began, began
            )
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def online(home: Path, agent: str) -> float:
    """Return when an agent logged that it is online, in Unix seconds."""
    for line in (home / "logs" / f"{agent}.log").read_text(encoding="utf-8").splitlines():
        if '"event": "online"' in line:
            return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
    raise RuntimeError(f"{agent} did not log that it is online")


def memory(up: Up) -> dict[str, tuple[float, float, float]]:
    """Return USS, PSS and RSS in MB of each agent, of the broker and of `meetara up` itself."""
    found = {}
    for process in [up.process, *up.process.children(recursive=True)]:
        words = process.cmdline()
        name = words[words.index("--agent") + 1] if "--agent" in words else Path(words[0]).name
        if process == up.process:
            name = "meetara up"
        elif "--agent" not in words and "mosquitto" not in name:
            continue
        full = process.memory_full_info()
        found[name] = (full.uss / 1e6, getattr(full, "pss", full.rss) / 1e6, full.rss / 1e6)
    return found


async def measure(rounds: int) -> list[Series]:
    ready: list[float] = []
    last: list[float] = []
    sizes: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        async with lab_up() as up:
            ready.append(up.seconds)
            last.append(max(online(up.home, agent) for agent in up.agents) - up.began)
            await asyncio.sleep(SETTLE_SECONDS)
            for name, size in memory(up).items():
                sizes.setdefault(name, []).append(size)
            names = up.agents
    goal = Goal(kind="at most", value=RSS_GOAL)
    found = [
        Series(name="ready", unit="s", values=ready, goal=Goal(kind="at most", value=READY_GOAL), group="start"),
        Series(name="last agent online", unit="s", values=last, group="start"),
    ]
    for place, kind in enumerate(("USS", "PSS", "RSS")):
        for name, measured in sorted(sizes.items()):
            wanted = goal if kind == "RSS" and name in names else None
            found.append(
                Series(
                    name=f"{name}, {kind}", unit="MB", values=[size[place] for size in measured], goal=wanted,
                    group="memory of idle processes, RSS" if kind == "RSS" else "", label=name,
                )
            )  # fmt: skip
    return found


def method() -> str:
    from meetara.supervise import ROLES

    return METHOD.format(agents=", ".join(ROLES), settle=SETTLE_SECONDS)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:

    return asyncio.run(measure(rounds))
