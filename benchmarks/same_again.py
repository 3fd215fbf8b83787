"""The same request again: from its publication to `done` with the finished model's name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from agents.gguf_factory.cache import Cache
from agents.gguf_factory.fingerprint import fingerprint, key
from benchmarks.cluster import Up, lab_up
from benchmarks.result import PROJECT, Goal, Series
from bus import BrokerAddress, Client
from configs import Settings, load
from protocol import JobSnapshot, State, TrainRequest
from protocol.job import Gate, Plan, Route, RunRequest

TITLE = "The same request again"
METHOD = """\
A running lab with one factory, the starter base and {rows} rows. A file of {size} MB is laid into the store and remembered as what the request
would make, with gates that pass, so that no training is needed to measure what comes after it. The clock begins when the request is
published under a new id and ends when the job's retained state says `done` and names the job that made the model: router, conductor,
the factory's look (it reads and hashes base, rows and the whole file) and the messages between them. The first request also finds the
factory without the modules that looking needs."""

ROUNDS = 10
ROWS = 1800
SIZE = 8_000_000
SECONDS = 60.0
GOAL_S = 1.0


def request_of(data: Path) -> TrainRequest:
    return TrainRequest(domain="time_management", dataset=data.as_uri(), tier="starter")


def write_rows(path: Path) -> None:
    """Write ROWS different rows of the project's own data."""
    lines = (PROJECT / "data" / "time_management.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[number % len(lines)]) for number in range(ROWS)]
    path.write_text("".join(json.dumps({**row, "number": number}) + "\n" for number, row in enumerate(rows)), encoding="utf-8")


def remember(home: Path, request: TrainRequest) -> None:
    """Lay a file into the store and its entry into the cache."""
    lab = load(Settings.read(home=home))
    tier, domain = lab.tiers["starter"], lab.domains["time_management"]
    route = Route(
        domain=domain.name, category=domain.category, tier=tier.name, base=tier.base, voice=domain.voice, empathy=domain.empathy,
        quality_floor=domain.quality_floor, safety_critical=domain.safety_critical,
    )  # fmt: skip
    content = os.urandom(SIZE)
    digest = hashlib.sha256(content).hexdigest()
    file = home / "artefacts" / digest / "time_management-Q4_K_M.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    plan = Plan(
        rows=ROWS, held_out_rows=1, tokens=1, steps=1, parameters={}, base_parameters=1, file_bytes=SIZE, disk_bytes=1,
        memory_bytes=1, seconds_p50=1, seconds_p90=1,
    )  # fmt: skip
    run = RunRequest(
        job="first", request=request, route=route, plan=plan, lease="", fence=1, attempt=1, price_micros_per_hour=0
    )
    gates: dict[str, Gate] = {
        name: rule.judge(name, rule.threshold if rule.level == "fail" else None) for name, rule in tier.gates.items()
    }
    outcome = {
        "artefacts": [{"kind": "gguf", "uri": file.as_uri(), "sha256": digest, "bytes": SIZE}],
        "gates": {name: gate.model_dump(mode="json") for name, gate in gates.items()}, "results": {},
    }  # fmt: skip
    cache = Cache(home, lab.storage)
    facts = fingerprint(request, route, lab.tiers, cache.hashes)
    cache.keep(key(facts), run, outcome, facts)


async def one(up: Up, request: TrainRequest, number: int) -> float:
    """Send the request under a new id and return the seconds until its state is `done`."""
    job = f"again-{number}"
    loop = asyncio.get_running_loop()
    async with (
        Client(BrokerAddress(up.host, up.port), name="bench") as client,
        client.subscription("job_state", job=job) as states,
        asyncio.timeout(SECONDS),
    ):
        began = loop.time()
        asked = asyncio.create_task(client.call("train.submit", request, id=job, timeout=SECONDS))
        async for _, payload in states:
            snapshot = JobSnapshot.model_validate_json(payload)
            if snapshot.state is State.DONE:
                assert snapshot.cached_from == "first", snapshot
                break
            assert snapshot.state is State.ROUTED, snapshot
        seconds = loop.time() - began
        await asked
    return seconds


async def measure(rounds: int) -> list[Series]:
    async with lab_up() as up:
        data = up.home / "rows.jsonl"
        write_rows(data)
        request = request_of(data)
        remember(up.home, request)
        found = [await one(up, request, number) for number in range(rounds + 1)]
    goal = Goal(kind="at most", value=GOAL_S)
    return [
        Series(name="the first", unit="s", values=found[:1], goal=goal),
        Series(name="later ones", unit="s", values=found[1:], goal=goal),
    ]


def method() -> str:
    return METHOD.format(rows=f"{ROWS:,}", size=SIZE // 10**6)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    return asyncio.run(measure(rounds))
