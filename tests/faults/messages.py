"""Messages that nobody should send, calls that come too late, and two processes under one name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import aiomqtt

from bus import BrokerAddress, Client
from bus.session import MAX_PACKET, Session
from meetara.supervise import ROLES
from protocol import MAX_BYTES, Code, Topics
from protocol.envelope import Reply
from protocol.ids import uuid7
from protocol.methods import served_by
from protocol.topics import OPERATOR
from tests.faults.cluster import Cluster, cluster
from tests.faults.proxy import Direction, Rule
from tests.faults.scenario import MIDDLE, Arena, Place, scenario
from tests.integration.lab import LIMIT, ROOT, Outcome, environment

POISONS = 24
"""Poisoned messages in one run, spread over all roles."""
TOPICS = Topics("lab")


def poison(random: Random) -> bytes:
    """Return a body that no handler can take: noise, deep or huge JSON, wrong types, half characters."""
    kind = random.randrange(8)
    if kind == 0:
        return random.randbytes(random.randint(1, 2000))
    if kind == 1:
        depth = random.randint(33, 5000)
        return b"[" * depth + b"]" * depth
    if kind == 2:
        return json.dumps({"x": "y" * MAX_BYTES}).encode()[: MAX_BYTES + random.randint(1, 500)]
    values: tuple[object, ...] = (None, [], "text", 3, -1, 1e308, True, {"a": [1]}, "\ud800", "x" * 70_000, 10**400)
    if kind == 3:
        return b'{"n": NaN, "i": Infinity, "job": 1e999}'
    if kind == 4:
        return json.dumps(random.choice(values)).encode()
    names = ("job", "domain", "dataset", "request", "lease", "fence", "amount_micros", "text", "jsonrpc", "params", "_meta")
    return json.dumps({name: random.choice(values) for name in random.sample(names, 4)}).encode()


@scenario("poison", f"{POISONS} messages of noise, deep JSON, wrong types and too many bytes to all roles, between good ones")
async def poisoned(arena: Arena) -> None:
    said = len(arena.cluster.said)
    async with (
        arena.cluster.client() as client, Client(arena.cluster.login(OPERATOR)) as operator,
        operator.subscription("dead", role="+") as letters,
    ):  # fmt: skip
        buried: list[bytes] = []

        async def read() -> None:
            async for _, payload in letters:
                buried.append(payload)

        reading = asyncio.create_task(read())
        async with arena.accepted(client, "good", MIDDLE) as one:
            for number in range(POISONS):
                role = ROLES[number % len(ROLES)]
                method = arena.random.choice(sorted(served_by(role)))
                await operator._publish(TOPICS.of("call", role=role, method=method), poison(arena.random))
                await asyncio.sleep(arena.random.uniform(0, 0.2))
            async with arena.accepted(client, "good") as two:
                await asyncio.gather(arena.finish(client, one), arena.finish(client, two))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(reading.cancel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    while len(buried) < POISONS:
                        await asyncio.sleep(0.1)  # nothing says that no more letters come
        arena.tally.expect(len(buried) == POISONS, f"{len(buried)} of {POISONS} poisoned messages became dead letters")
    arena.tally.expect(arena.cluster.said[said:] == [], f"no agent ended: {arena.cluster.said[said:]}")


@scenario("oversize", "messages just over a message's and over a packet's limit; the sender is told, others are unharmed")
async def oversize(arena: Arena) -> None:
    async with arena.cluster.client() as client, arena.accepted(client, "good", MIDDLE) as one:
        topic = TOPICS.of("call", role="router", method="train.submit")
        reply = await call(arena.cluster.lab.address, topic, b'{"domain": "' + b"x" * MAX_BYTES + b'"}')
        arena.tally.expect(reply and reply.error and str(MAX_BYTES) in reply.error.message, f"told of the limit: {reply}")
        with contextlib.suppress(TimeoutError):
            try:
                await call(arena.cluster.lab.address, topic, b"x" * (MAX_PACKET + arena.random.randint(1, 5000)), wait=10)
                arena.tally.expect(False, "a packet beyond the limit was taken")
            except aiomqtt.MqttError:
                pass  # the broker has ended the sender's connection, as MQTT 5 wants it
        await arena.finish(client, one)


async def call(address: BrokerAddress, topic: str, payload: bytes, *, wait: float = LIMIT, **more: object) -> Reply | None:
    """Publish a call once and return its reply; None if none came in time."""
    name = address.username or f"faults-{uuid7()}"
    async with Session.connect(address, f"faults-{uuid7()}", durable=False) as session:
        await session.subscribe(TOPICS.of("reply", client=name))
        mark = uuid7().encode()
        await session.publish(
            topic, payload, response_topic=TOPICS.of("reply", client=name), correlation=mark, **more  # type: ignore[arg-type]
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                async for incoming in session:
                    session.ack(incoming)
                    if incoming.correlation == mark:
                        return Reply.parse(incoming.payload)
    return None


@scenario("expired", "calls whose deadline passes while their callee is stopped: answered EXPIRED, never executed late")
async def expired(arena: Arena) -> None:
    lab = arena.cluster
    [process] = await lab.there("cost_monitor")
    address = lab.login(OPERATOR)
    topic = TOPICS.of("call", role="cost_monitor", method="budget.reserve")
    job = lab.name("late")

    def body(number: int, deadline: datetime | None) -> bytes:
        meta = {"deadline": deadline.isoformat()} if deadline else {}
        params = {"job": job, "amount_micros": 1, "provider": "local", "domain": "d", "priority": 1, "_meta": meta}
        return json.dumps({"jsonrpc": "2.0", "id": f"{job}:{number}", "params": params}).encode()

    seconds = arena.random.uniform(1, 3)
    lab.signal(process, signal.SIGSTOP)
    try:  # the message is in the agent's socket already: only its deadline can tell that it is late
        soon = datetime.now(UTC) + timedelta(seconds=seconds)
        late = asyncio.create_task(call(address, topic, body(1, soon)))
        good = asyncio.create_task(call(address, topic, body(2, None)))
        await asyncio.sleep(seconds + 1)
    finally:
        lab.signal(process, signal.SIGCONT)
    answer, granted = await late, await good
    arena.tally.expect(answer and answer.error and "deadline" in answer.error.message, f"answered EXPIRED: {answer}")
    proxy = lab.proxies["cost_monitor-1"]
    proxy.rules[Direction.DOWN] = Rule(cut=True)
    try:  # the message is with the broker: that counts its time and drops it
        counted = asyncio.create_task(call(address, topic, body(3, None), wait=seconds + 8, expiry=int(seconds)))
        await asyncio.sleep(seconds + 1)
    finally:
        proxy.heal()
        proxy.reset()
    dropped = await counted
    gone = dropped is None or (dropped.error is not None and dropped.error.code == Code.EXPIRED)
    arena.tally.expect(gone, f"dropped by the broker, or answered EXPIRED: {dropped}")
    executed = arena.ledger(job)
    arena.tally.count("doubled", f"executed late: {executed}", len(executed) - 1)
    arena.tally.count("lost", "the call without a deadline was not executed", 1 - min(1, len(executed)))
    if granted and granted.result:
        release = json.dumps({"reservation": granted.result["reservation"], "job": job}).encode()
        await call(address, TOPICS.of("call", role="cost_monitor", method="budget.release"), release)


@asynccontextmanager
async def twin(lab: Cluster, arena: Arena, home: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a second conductor-1 on the lab's broker, with the lab's own password."""
    login = lab.login("conductor-1")
    surroundings = {
        **environment(home, arena.ground.configs), "MEETARA_BROKER_USER": login.username or "",
        "MEETARA_BROKER_PASSWORD": login.password or "",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agents.conductor", "--home", home, "--port", str(login.port), cwd=ROOT, env=surroundings,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@scenario("twin-home", "a second conductor-1 on the same home is refused by the lock of the store")
async def twin_on_one_home(arena: Arena) -> None:
    async with arena.cluster.client() as client, arena.accepted(client, "twin") as one:
        async with twin(arena.cluster, arena, arena.cluster.home) as process:
            out, error = await asyncio.wait_for(process.communicate(), LIMIT)
            outcome = Outcome(process.returncode or 0, out.decode(), error.decode())
            refused = outcome.code == 2 and "in use by another process" in outcome.error
            arena.tally.expect(refused, f"the second is refused: {outcome}")
        await arena.finish(client, one)


@scenario("twin-name", "a second conductor-1 on another home: one of the two ends and says why", place=Place.OWN)
async def twin_on_another_home(arena: Arena) -> None:
    home = arena.folder / "home"
    async with cluster(home, arena.ground, arena.random) as lab, arena.on(lab):
        async with lab.client() as client, arena.accepted(client, "twin", MIDDLE) as one:
            await asyncio.sleep(arena.random.uniform(0, 3))
            async with twin(lab, arena, arena.folder / "other") as process:
                first = asyncio.create_task(lab.supervisor.failure())
                second = asyncio.create_task(process.communicate())
                done, _ = await asyncio.wait({first, second}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
                arena.tally.expect(len(done) == 1, "exactly one of the two ends")
                said = second.result()[1].decode() if second in done else str(first.exception())
                told = "another process has connected" in said and "another --agent" in said
                arena.tally.expect(told, f"it says why: {said}")
                await asyncio.sleep(5)
                arena.tally.expect(not (first.done() and second.done()), "the other one stays")
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
        connects = (home / "logs" / "broker.log").read_text().count(" as lab-conductor-1 ")
        arena.tally.expect(connects <= 6, f"conductor-1 connected {connects} times")
    async with cluster(home, arena.ground, arena.random) as lab, arena.on(lab), lab.client() as client:
        await arena.finish(client, one)


