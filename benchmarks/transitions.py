"""The conductor's transitions and hops, against a library for durable workflows on the same disk."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from agents.conductor.agent import ConductorAgent
from benchmarks.result import Goal, Series, percentile, ratios
from benchmarks.wire import quiet, running_broker, running_module
from benchmarks.world import CALLER, HAPPENINGS, TOPICS, Said, World
from bus import BrokerAddress, Wiring
from bus.session import RECEIVE_MAXIMUM, Incoming, Session

TITLE = "The conductor's transitions against DBOS"
METHOD = """\
A transition is one message that moves a job on (a job has {happenings}: routed, planned, quoted, reserved, leased, every stage begun and
done, done), handled and committed by the real conductor: facts, snapshot, calls and answers in one SQLite transaction at
synchronous=FULL. "On its store": the agent in this process, given batches of {batch} as its session takes them, with everything that it
sends encoded and marked as sent, but no broker; {jobs} jobs go through it side by side, and only the time inside the agent counts.
"Over the broker": the conductor as a process of its own behind the lab's broker settings, and everything else in the lab answering
at once from one other process, {wire_jobs} jobs side by side; counted from the first request to the end of the last job. A hop is the time from the reply that
one agent publishes to the next call's arrival at the other, through broker, conductor and its disk, one job at a time. The peer is
DBOS {dbos} on SQLite with its own settings: a transition is a step of a durable workflow that returns a dictionary, {peer_jobs} workflows
side by side (more gained nothing); a hop is `DBOS.send` until `DBOS.recv` returns, which polls. DBOS has no broker in its path."""

JOBS = 64
PEER_JOBS = 8
WIRE_JOBS = {True: 12, False: 48}
"""Jobs side by side: with the lab's broker settings, and in memory."""
HOP_JOBS = 4
ROUNDS = 4


class Recorder:
    """A publisher that acknowledges at once."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.set_result(None)

    def publish(self, topic: str, payload: bytes, **_: Any) -> Awaitable[None]:
        self.published.append((topic, payload))
        return self._done


async def on_store(folder: Path, jobs: int) -> float:
    """Return transitions per second of the agent alone."""
    agent = ConductorAgent(Wiring("conductor-1", folder, BrokerAddress("127.0.0.1", 1)))
    world, line = World(), Recorder()
    waiting = deque(world.submit(f"j{number}") for number in range(jobs))
    spent = 0.0
    while world.done < jobs:
        batch = [_incoming(waiting.popleft()) for _ in range(min(len(waiting), RECEIVE_MAXIMUM))]
        line.published.clear()
        began = time.perf_counter()
        agent.take_in(batch)
        while await agent.send_due(line):
            pass
        spent += time.perf_counter() - began
        for topic, body in line.published:
            waiting += world.hears(topic, body)
    agent.store.close()
    return jobs * HAPPENINGS / spent


async def over_broker(session: Session, world: World, jobs: Sequence[str]) -> tuple[float, list[float]]:
    """Send jobs through a conductor's process; returns transitions per second and each hop's milliseconds."""
    target = world.done + len(jobs)
    replied: dict[str, float] = {}
    hops: list[float] = []
    began = time.perf_counter()
    for job in jobs:
        _publish(session, world.submit(job))
    while world.done < target:
        for incoming in await session.receive():
            now = time.perf_counter()
            job = json.loads(incoming.payload)["id"].partition(":")[0]
            if "/call/" in incoming.topic and job in replied:
                hops.append((now - replied.pop(job)) * 1000)
            for said in world.hears(incoming.topic, incoming.payload):
                if "/reply/" in said.topic:
                    replied[job] = time.perf_counter()
                _publish(session, said)
            session.ack(incoming)
    return len(jobs) * HAPPENINGS / (time.perf_counter() - began), hops


def _publish(session: Session, said: Said) -> None:
    session.publish(
        said.topic, said.body, properties=said.properties, response_topic=said.response_topic, correlation=said.correlation
    )


def _incoming(said: Said) -> Incoming:
    return Incoming(said.topic, said.body, said.properties, said.response_topic, said.correlation, False, False, 1, 0)


async def measure(rounds: int, order: random.Random) -> list[Series]:
    """Measure all in shuffled rounds."""
    store: list[float] = []
    steps: list[float] = []
    dbos_hops: list[float] = []
    rates: dict[bool, list[float]] = {True: [], False: []}
    hops: dict[bool, list[float]] = {True: [], False: []}

    async def one_store() -> None:
        with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
            store.append(await on_store(Path(name), JOBS))

    async def one_peer() -> None:
        with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
            rate, hop = await _peer(Path(name))
            steps.append(rate)
            dbos_hops.append(hop)

    async def one_wire(autosave: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
            rate, hop = await _wire(Path(name), autosave)
            rates[autosave].append(rate)
            hops[autosave].append(hop)

    for _ in range(rounds):
        round_ = [one_store, one_peer, lambda: one_wire(True), lambda: one_wire(False)]
        for work in order.sample(round_, len(round_)):
            await work()
    least, most = Goal(kind="at least", value=1000), Goal(kind="at most", value=10)
    return [
        Series(name="conductor on its store", unit="transitions/s", values=store, goal=least, group="throughput"),
        Series(name="conductor over the broker in memory", unit="transitions/s", values=rates[False], group="throughput"),
        Series(name="conductor over the lab's broker", unit="transitions/s", values=rates[True], group="throughput"),
        Series(name="DBOS on SQLite", unit="transitions/s", values=steps, group="throughput", peer=True),
        Series(name="conductor on its store ÷ DBOS", unit="×", values=ratios(store, steps)),
        Series(name="hop over the broker in memory, p50", unit="ms", values=hops[False], goal=most, group="hop"),
        Series(name="hop over the lab's broker, p50", unit="ms", values=hops[True], goal=most, group="hop"),
        Series(name="DBOS send to receive, p50", unit="ms", values=dbos_hops, group="hop", peer=True),
    ]


async def _wire(folder: Path, autosave: bool) -> tuple[float, float]:
    async with running_broker(folder, autosave=autosave) as address:
        started = running_module("benchmarks.transitions", str(address.port), str(folder / "home"))
        async with Session.connect(address, "bench-world", durable=False) as session, started:
            await session.subscribe(TOPICS.of("call", role="+", method="+"))
            await session.subscribe(TOPICS.of("direct", role="+", agent="+", method="+"))
            await session.subscribe(TOPICS.of("reply", client=CALLER))
            world = _Others()
            await over_broker(session, world, ["warm"])
            found: list[float] = []
            for number in range(HOP_JOBS):
                _, more = await over_broker(session, world, [f"h{number}"])
                found += more
            rate, _ = await over_broker(session, world, [f"j{number}" for number in range(WIRE_JOBS[autosave])])
            return rate, percentile(found, 50)


class _Others(World):
    """A world that overhears the calls to the conductor, its own ones, and leaves them alone."""

    def hears(self, topic: str, body: bytes) -> list[Said]:
        return [] if "/call/conductor/" in topic else super().hears(topic, body)


async def _peer(folder: Path) -> tuple[float, float]:
    async with running_module("benchmarks.workflows", str(folder / "dbos.sqlite"), str(PEER_JOBS), str(HAPPENINGS)) as process:
        assert process.stdout is not None
        found = json.loads(await process.stdout.readline())
    return found["steps_per_second"], percentile(found["hops_ms"], 50)


def method() -> str:
    from importlib.metadata import version

    return METHOD.format(happenings=HAPPENINGS, batch=RECEIVE_MAXIMUM, jobs=JOBS, wire_jobs=f"{WIRE_JOBS[False]} (lab's broker settings: {WIRE_JOBS[True]})", peer_jobs=PEER_JOBS, dbos=version("dbos"))


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    quiet()
    return asyncio.run(measure(rounds, random.Random(seed)))


def main() -> None:
    """The conductor as a process that says `ready` when it is on the bus."""
    port, home = sys.argv[1:]
    quiet()

    class Ready(ConductorAgent):
        async def started(self) -> None:
            await super().started()
            print("ready", flush=True)

    async def serve() -> None:
        await Ready(Wiring("conductor-1", Path(home), BrokerAddress("127.0.0.1", int(port)))).run()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
