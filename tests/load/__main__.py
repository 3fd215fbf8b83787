"""Publish many requests at once and account for every one of them.

    python -m tests.load [--jobs 200] [--slots 2] [--seed 1] [--results FILE.json]   # and FILE.md

Real processes, real training on a tiny random base. Exit code 1 when a job is lost, doubled, stuck or failed, or when
one got a slot before another that should have had it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from bus import Client
from protocol import JobSnapshot
from protocol.job import FINAL, EventsQuery, JobEvent, State
from tests.integration.lab import SHORT, Ground, RunningLab, processes_of, running
from tests.load.account import endings, overtaken, transitions
from tests.load.page import page

SAMPLE_S = 2.0
"""Between two looks at the agents' memory: a job takes several times as long."""
SILENCE_S = 600.0
"""Without any job ending for so long the rest is stuck: one job takes about ten seconds."""


def memory(home: Path) -> dict[str, int]:
    """Return the resident bytes of each agent and the broker."""
    found = {}
    for process in processes_of(home):
        try:
            words = process.cmdline()
            if "--agent" in words and "--home" in words:  # a job's process names its agent too, but no home
                found[words[words.index("--agent") + 1]] = process.memory_info().rss
            elif words and "mosquitto" in words[0]:
                found["broker"] = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


async def publish(lab: RunningLab, bodies: list[dict[str, Any]]) -> None:
    """Hand all requests to the broker in one go, as a person does who has nothing but Mosquitto's tools."""
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", "-V", "5", "-h", "127.0.0.1", "-p", str(lab.port), "-q", "1", "-l",
        "-t", lab.topics.of("call", role="router", method="train.submit"), stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await process.communicate("".join(json.dumps(body) + "\n" for body in bodies).encode())
    if process.returncode:
        raise SystemExit(f"mosquitto_pub ended with {process.returncode}")


async def follow(client: Client, jobs: set[str], tell: bool) -> None:
    """Return when all jobs have ended, or none has for SILENCE_S."""
    ended: set[str] = set()
    start = time.monotonic()
    async with client.subscription("job_state", job="+") as states:
        while ended != jobs:
            try:
                async with asyncio.timeout(SILENCE_S):
                    _, payload = await anext(states)
            except TimeoutError:
                return
            try:
                snapshot = JobSnapshot.model_validate_json(payload)
            except ValidationError:  # a cleared state
                continue
            if snapshot.state in FINAL and snapshot.job in jobs and snapshot.job not in ended:
                ended.add(snapshot.job)
                if tell:
                    print(f"{time.monotonic() - start:7.1f} s  {len(ended):3}  {snapshot.job}  {snapshot.state.value}"
                          f"  {snapshot.reason or ''}", flush=True)  # fmt: skip


async def all_events(client: Client, jobs: set[str]) -> dict[str, list[JobEvent]]:
    """Ask the conductor for every fact about every job."""
    return {job: (await client.call("job.events", EventsQuery(job=job), timeout=60)).events for job in sorted(jobs)}


async def measure(lab: RunningLab, ground: Ground, count: int, seed: int) -> dict[str, Any]:
    """Publish `count` requests at once, wait for their ends, and return everything that was measured."""
    chance = random.Random(seed)
    jobs = {f"load-{number:03}": chance.choice((1, 1, 1, 2, 3)) for number in range(count)}
    bodies = [
        {"id": job, "domain": "time_management", "dataset": ground.rows.as_uri(), "priority": priority, "parameters": SHORT,
         "use_cache": False}
        for job, priority in jobs.items()
    ]
    samples: dict[str, list[tuple[float, int]]] = defaultdict(list)

    async def watch_memory() -> None:
        while True:
            for agent, size in memory(lab.home).items():
                samples[agent].append((time.time(), size))
            await asyncio.sleep(SAMPLE_S)

    idle = memory(lab.home)
    async with lab.client() as client:
        watching = asyncio.create_task(watch_memory())
        following = asyncio.create_task(follow(client, set(jobs), tell=True))
        await asyncio.sleep(0.5)  # the subscription; a retained state would come anyhow
        published = time.time()
        await publish(lab, bodies)
        accepted = time.time()
        await following
        ended = time.time()
        watching.cancel()
        listed = await lab.cli("jobs", "--json")
        events = await all_events(client, set(jobs))
    moves = transitions(events)
    groups: dict[str, list[float]] = defaultdict(list)
    for move in moves:
        groups[f"{move.before} → {move.after}"].append(move.seconds)
    messages = [move for move in moves if move.after in ("routed", "quoted", "reserved", "provisioning")]
    slowest = max(messages, key=lambda move: move.seconds)
    return {
        "jobs": count, "seed": seed, "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "publish_s": round(accepted - published, 3), "total_s": round(ended - published, 1),
        "jobs_per_hour": round(count / (ended - published) * 3600, 1),
        "endings": dict(endings(events)), "overtaken": overtaken(events, jobs),
        "listed": len(listed.json["jobs"]),
        "transitions": {
            name: {"p50_s": statistics.median(some), "p99_s": sorted(some)[int(0.99 * (len(some) - 1))], "max_s": max(some)}
            for name, some in groups.items()
        },
        "slowest": {"job": slowest.job, "from": slowest.before, "to": slowest.after, "seconds": slowest.seconds},
        "memory_mb": {
            agent: {
                "idle": round(idle.get(agent, 0) / 1e6, 1), "most": round(max(size for _, size in some) / 1e6, 1),
                "last": round(some[-1][1] / 1e6, 1),
                "after_a_fifth": round(_at(some, published + (ended - published) / 5) / 1e6, 1),
            }
            for agent, some in sorted(samples.items())
        },
    }  # fmt: skip


def _at(samples: list[tuple[float, int]], when: float) -> int:
    return next((size for at, size in samples if at >= when), samples[-1][1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meetara-load-") as folder:
        ground = Ground.make(Path(folder))
        with running(Path(folder) / "home", ground.configs, MEETARA_SLOTS=str(options.slots)) as lab:
            found = asyncio.run(measure(lab, ground, options.jobs, options.seed))
    found["slots"] = options.slots
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if options.results is not None:
        options.results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        options.results.with_suffix(".md").write_text(page(found), encoding="utf-8")
    good = found["endings"] == {State.DONE.value: options.jobs} and not found["overtaken"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
