"""Every process killed with SIGKILL at every stage; the broker with and without its memory; the supervisor itself."""

from __future__ import annotations

import asyncio
import signal

from bus import Client
from meetara.supervise import ROLES
from protocol import JobSnapshot
from protocol.job import Stage
from protocol.methods import METHODS
from protocol.voice import EmotionQuery, SpeechRequest
from tests.faults.cluster import BROKER, WORK, ZYGOTE
from tests.faults.proxy import REPEATED
from tests.faults.scenario import MIDDLE, Arena, Place, Request, scenario
from tests.integration import lab as integration
from tests.integration.lab import LIMIT, done_once, events_of, listening, submit

VICTIMS = (*ROLES, WORK, BROKER)
SUBMIT_SECONDS = 1.5
"""A request is routed, planned and reserved within this time on two quiet cores; the first kill comes within it."""


async def slay(arena: Arena, client: Client, victim: str) -> None:
    """Kill a part; one that no training asks is asked something at that moment, and must answer after all."""
    questions = {"emotion": ("emotion.analyse", EmotionQuery), "tts": ("speech.synthesise", SpeechRequest)}
    if victim in questions:
        method, params = questions[victim]
        asked = asyncio.create_task(client.call(method, params(text="We did it!"), timeout=LIMIT))
        await asyncio.sleep(arena.random.uniform(0, 0.05))
        await arena.cluster.kill(victim)
        arena.tally.expect(isinstance(await asked, METHODS[method].result), f"{victim} answered after its kill")
    else:
        await arena.cluster.kill(victim)


async def slay_early(arena: Arena, client: Client, victim: str) -> None:
    """Kill a part while a request is being submitted; the process that plans it is waited for."""
    if victim == WORK:
        await arena.cluster.there(WORK)
        await asyncio.sleep(arena.random.uniform(0, 0.3))
    else:
        await asyncio.sleep(arena.random.uniform(0, SUBMIT_SECONDS))
    await slay(arena, client, victim)


def kills(offset: int) -> None:
    """Put one diagonal of the table victims × stages into the matrix: in stage n the victim n + offset is killed."""
    order = [VICTIMS[(number + offset) % len(VICTIMS)] for number in range(len(Stage))]
    told = ", ".join(f"{victim} in {stage.value}" for stage, victim in zip(Stage, order, strict=True))

    @scenario(f"kill-{offset + 1}", f"kill -9 of {told}")
    async def run(arena: Arena) -> None:
        job = arena.cluster.name("kill")
        request = arena.ground.request(MIDDLE)
        async with arena.cluster.client() as client, listening(client, job) as ears:
            asked = asyncio.create_task(submit(client, job, request))
            await slay_early(arena, client, order[0])
            one = Request(job, request, ears, [await asked])
            for stage, victim in list(zip(Stage, order, strict=True))[1:]:
                await arena.in_stage(job, stage)
                await slay(arena, client, victim)
            await arena.finish(client, one)


for _offset in range(len(VICTIMS)):
    kills(_offset)


@scenario("mixed", "three seeded kills in seeded stages of one job, while 30 % of all publications arrive twice")
async def mixed(arena: Arena) -> None:
    stages = sorted(arena.random.sample([*Stage][1:], 3), key=[*Stage].index)
    for proxy in arena.cluster.proxies.values():
        proxy.set(repeat=REPEATED)
    try:
        async with arena.cluster.client() as client, arena.accepted(client, "mixed") as one:
            for stage, victim in zip(stages, arena.random.sample(VICTIMS, 3), strict=True):
                await arena.in_stage(one.job, stage)
                await slay(arena, client, victim)
            await arena.finish(client, one)
    finally:
        for proxy in arena.cluster.proxies.values():
            proxy.heal()


@scenario("zygote-killed", "what jobs are forked from is killed while one trains, and again in a seeded later stage")
async def zygote_killed(arena: Arena) -> None:
    async with arena.cluster.client() as client, arena.accepted(client, "zygote", MIDDLE) as one:
        for stage in (Stage.TRAIN, arena.random.choice([Stage.CONVERT, Stage.QUANTISE, Stage.VALIDATE])):
            await arena.in_stage(one.job, stage)
            await slay(arena, client, ZYGOTE)
        await arena.finish(client, one)


async def broker_killed(arena: Arena, *, forget: bool) -> None:
    async with arena.cluster.client() as client, arena.accepted(client, "broker", MIDDLE) as one:
        for stage in sorted(arena.random.sample([Stage.DATA, Stage.TRAIN, Stage.CONVERT, Stage.VALIDATE], 2)):
            await arena.in_stage(one.job, stage)
            await arena.cluster.kill_broker(forget=forget)
            await arena.cluster.opened()
        job = arena.cluster.name("broker")
        request = arena.ground.request()
        async with listening(client, job) as ears:  # and one that is submitted at the moment of the kill
            asked = asyncio.create_task(submit(client, job, request))
            await asyncio.sleep(arena.random.uniform(0, SUBMIT_SECONDS))
            await arena.cluster.kill_broker(forget=forget)
            second = Request(job, request, ears, [await asked])
            await arena.finish(client, one)
            await arena.finish(client, second)
    async with arena.cluster.client() as newcomer, listening(newcomer, one.job) as ears:
        async with asyncio.timeout(LIMIT):
            retained = await ears.first(JobSnapshot)
        arena.tally.expect(retained.state == "done", f"the broker retains how {one.job} ended: {retained.state}")


@scenario("broker-killed", "the broker is killed three times and keeps its database")
async def broker_keeps(arena: Arena) -> None:
    await broker_killed(arena, forget=False)


@scenario("broker-forgets", "the broker is killed three times and its database removed before it starts again")
async def broker_forgets(arena: Arena) -> None:
    await broker_killed(arena, forget=True)


@scenario("supervisor-killed", "`meetara up` itself is killed while a job trains, and started again", place=Place.OWN)
async def supervisor_killed(arena: Arena) -> None:
    home = arena.folder / "home"
    with integration.running(home, arena.ground.configs) as lab:
        pass  # a lab that went down in order leaves its stores
    lab = integration.start(home, arena.ground.configs)
    async with lab.client() as client, listening(client, "night") as ears:
        await submit(client, "night", arena.ground.request(MIDDLE))
        await ears.step(arena.random.randint(1, 8))
        lab.process.send_signal(signal.SIGKILL)
        lab.process.wait()
    async with asyncio.timeout(LIMIT):
        while left := integration.processes_of(home):
            await asyncio.sleep(0.05)  # they are told of its death by the system, one after the other
    arena.tally.expect(not left, "nothing outlives the supervisor")
    with integration.running(home, arena.ground.configs) as lab:
        async with lab.client() as client, listening(client, "night") as ears:
            final = await ears.end(client)
            arena.tally.expect(final.state == "done", f"the job is {final.state}: {final.reason}")
            done_once(await events_of(client, "night"))


