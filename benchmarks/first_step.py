"""From a published request to the first step of its training, and where that time goes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cluster import Up, lab_up
from benchmarks.result import PROJECT, Series
from bus import BrokerAddress, Client
from protocol import Progress, TrainRequest
from protocol.job import EventsQuery, JobEvents, JobQuery

TITLE = "From a published request to the first training step"
METHOD = """\
A running lab with one factory is sent a request for the starter tier with {rows} rows of the project's own data; the clock begins when the
request is published and ends when the progress of the first step arrives. The parts are between the facts that the conductor
numbers: "planned" is a process that reads and tokenises the data, "begun" is the job's process from its start to its first
word, "train" loads torch and the base and makes one step. The job is cancelled then. The first job on a lab finds no caches of its
own; the later ones show what repetition saves."""

ROUNDS = 3
ROWS = 40
SECONDS = 240.0
PARTS = ("routed", "planned", "quoted", "reserved", "leased", "begun", "data", "train", "first step")


async def one(up: Up, number: int, data: Path) -> dict[str, float]:
    """Send one request; returns the seconds at which each part ended, counted from the publication."""
    job = f"bench-{number}"
    loop = asyncio.get_running_loop()
    async with Client(BrokerAddress(up.host, up.port), name="bench") as client:
        async with client.subscription("job_progress", job=job) as progress:
            request = TrainRequest(domain="time_management", dataset=data.as_uri(), tier="starter")
            began, clock = loop.time(), _utc()
            submitting = asyncio.create_task(client.call("train.submit", request, id=job, timeout=SECONDS))
            async with asyncio.timeout(SECONDS):
                async for _, payload in progress:
                    if payload and (Progress.model_validate_json(payload).step or 0) >= 1:
                        break
            ended = loop.time() - began
            await submitting
        told: JobEvents = await client.call("job.events", EventsQuery(job=job, since=0))
        await client.call("job.cancel", JobQuery(job=job), timeout=60)
    times: dict[str, float] = {}
    for event in told.events:
        name = event.type
        if name == "stage_started":
            name = {"plan": "begun", "data": "data begun", "train": "data"}.get(event.data["stage"], "")
        times.setdefault(name, event.at.timestamp() - clock)
    return {**{name: times[name] for name in PARTS if name in times}, "first step": ended}


def _utc() -> float:
    from time import time

    return time()


async def measure(rounds: int) -> list[Series]:
    found: dict[str, list[float]] = {}
    async with lab_up() as up:
        data = up.home / "rows.jsonl"
        source = PROJECT / "data" / "time_management.jsonl"
        with source.open(encoding="utf-8") as lines:
            data.write_text("".join(itertools.islice(lines, ROWS)), encoding="utf-8")
        for number in range(rounds):
            ends = await one(up, number, data)
            found.setdefault("whole", []).append(ends["first step"])
            before = 0.0
            for name, end in sorted(ends.items(), key=lambda item: item[1]):
                found.setdefault(name, []).append(end - before)
                before = end
    order = ["whole", *PARTS]
    return [
        Series(name=name, unit="s", values=found[name], group="whole" if name == "whole" else "parts")
        for name in order
        if name in found
    ]


def method() -> str:
    return METHOD.format(rows=ROWS)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    return asyncio.run(measure(rounds))
