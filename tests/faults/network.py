"""Bad networks between an agent and its broker: one direction cut, everything repeated, a line that is too slow."""

from __future__ import annotations

import asyncio

import psutil

from bus import Client
from protocol import Code, LabError
from protocol.job import JobQuery
from tests.faults.cluster import BROKER, Cluster
from tests.faults.proxy import REPEATED, Direction, Rule
from tests.faults.scenario import MIDDLE, Arena, scenario
from tests.integration.lab import LIMIT

CUT_SECONDS = (3.0, 40.0)
"""From less than the time in which a lost acknowledgement is noticed (10 s) to more than a lease (30 s)."""
SLOW_BYTES = 12_000.0
"""Bytes per second towards a slow agent: a call of about 500 bytes takes 40 ms."""
FLOOD = 300
"""Calls at once to a slow agent: ten times what it may have unacknowledged."""
GROWTH_BYTES = 64_000_000
"""What broker and agent may grow by in a flood of 150 kB; a queue without a bound grows by more in a longer one."""
ON_THE_WAY = ("conductor", "gguf_factory", "gpu_orchestrator", "cost_monitor", "router")
"""Agents that a training request needs."""


async def cut(arena: Arena, way: Direction) -> None:
    """Cut one direction of two seeded agents while a job goes its way."""

    async def bad_time(role: str, begins: float, lasts: float) -> None:
        proxy = arena.cluster.proxies[f"{role}-1"]
        await asyncio.sleep(begins)
        proxy.rules[way] = Rule(cut=True)
        await asyncio.sleep(lasts)
        proxy.heal()

    async with arena.cluster.client() as client, arena.accepted(client, "cut", MIDDLE) as one:
        await asyncio.gather(*(
            bad_time(role, arena.random.uniform(0, 5), arena.random.uniform(*CUT_SECONDS))
            for role in arena.random.sample(ON_THE_WAY, 2)
        ))  # fmt: skip
        await arena.finish(client, one)
        async with arena.accepted(client, "after-cut") as next_one:
            await arena.finish(client, next_one)


@scenario("cut-up", "what two agents send does not reach the broker for 3-40 s, what it sends reaches them")
async def cut_up(arena: Arena) -> None:
    await cut(arena, Direction.UP)


@scenario("cut-down", "what the broker sends does not reach two agents for 3-40 s, what they send reaches it")
async def cut_down(arena: Arena) -> None:
    await cut(arena, Direction.DOWN)


@scenario("reset", "every agent's connection breaks every 1-3 s while a job goes its way")
async def reset(arena: Arena) -> None:
    async with arena.cluster.client() as client, arena.accepted(client, "reset", MIDDLE) as one:

        async def shake() -> None:
            while True:
                await asyncio.sleep(arena.random.uniform(1, 3))
                arena.cluster.proxies[f"{arena.random.choice(ON_THE_WAY)}-1"].reset()

        shaking = asyncio.create_task(shake())
        try:
            await arena.finish(client, one)
        finally:
            shaking.cancel()


@scenario("duplicates", "30 % of all QoS 1 publications arrive twice, to and from every agent")
async def duplicates(arena: Arena) -> None:
    proxies = arena.cluster.proxies.values()
    before = sum(proxy.count[f"repeated {way}"] for proxy in proxies for way in Direction)
    for proxy in proxies:
        proxy.set(repeat=REPEATED)
    try:
        async with (
            arena.cluster.client() as client, arena.accepted(client, "twice") as one, arena.accepted(client, "twice") as two,
        ):  # fmt: skip
            await asyncio.gather(arena.finish(client, one), arena.finish(client, two))
    finally:
        for proxy in proxies:
            proxy.heal()
    repeated = sum(proxy.count[f"repeated {way}"] for proxy in proxies for way in Direction) - before
    arena.tally.expect(repeated >= 10, f"{repeated} publications were repeated")


@scenario("slow-consumer", f"{FLOOD} calls at once to a conductor that gets {SLOW_BYTES:.0f} bytes/s; memory stays bounded")
async def slow_consumer(arena: Arena) -> None:
    lab = arena.cluster
    proxy = lab.proxies["conductor-1"]
    async with lab.client() as client, arena.accepted(client, "slow") as one:
        before = await memory(lab)
        proxy.rules[Direction.DOWN] = Rule(bytes_per_second=SLOW_BYTES)
        most = dict(before)

        async def watch() -> None:
            while True:
                for part, size in (await memory(lab)).items():
                    most[part] = max(most[part], size)
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        try:
            answers = await asyncio.gather(*(ask(client, f"nobody-{number}") for number in range(FLOOD)))
        finally:
            watching.cancel()
            proxy.heal()
        arena.tally.count("lost", "calls in the flood got no answer", answers.count(None))
        for part, size in most.items():
            grown = size - before[part]
            arena.tally.expect(grown < GROWTH_BYTES, f"{part} grew by {grown / 1e6:.0f} MB in the flood")
        await arena.finish(client, one)


async def memory(lab: Cluster) -> dict[str, int]:
    """Return the resident bytes of the conductor and of the broker."""
    return {part: max(_resident(process) for process in await lab.there(part)) for part in ("conductor", BROKER)}


def _resident(process: psutil.Process) -> int:
    size: int = process.memory_info().rss
    return size


async def ask(client: Client, job: str) -> Code | None:
    """Ask for a job that does not exist; returns the code of the answer, None without one (busy is asked again)."""
    while True:
        try:
            await client.call("job.get", JobQuery(job=job), timeout=LIMIT)
        except LabError as error:
            if error.code is not Code.BUSY:
                return None if error.code is Code.EXPIRED else error.code
            await asyncio.sleep(float(error.data.get("retry_after", 1)))
