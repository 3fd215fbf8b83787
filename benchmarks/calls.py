"""Calls through the bus against plain aiomqtt on the same broker."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.callee import PLAIN_TOPIC
from benchmarks.result import Goal, Series, percentile, ratios
from benchmarks.wire import running_broker, running_module
from bus import Answer, BaseAgent, BrokerAddress, Client, Wiring
from protocol import MCPMessage, TrainRequest, uuid7

TITLE = "Calls against plain aiomqtt"
METHOD = """\
A training request of {bytes} bytes goes from a client to a callee in another process and its reply comes back, everything at QoS 1.
The lab's callee is an agent: it checks the envelope and the parameters, writes the call and its reply to SQLite (WAL,
synchronous=NORMAL) and acknowledges after the commit; its client is `bus.Client`. The peer is what one writes with aiomqtt alone:
it parses the JSON and answers to the response topic with the correlation data, up to 32 replies under way at once; it checks
nothing, keeps nothing, acknowledges on arrival, and loses what it had when it is killed. "From an outbox" is a call that the
caller keeps in a store of its own as well, as agents call each other. Throughput: {calls} calls, {outstanding} of them outstanding.
Latency: 100 calls a second, from the time a call is due to its reply. Both use the same broker, in rounds of shuffled order; a ratio
is made within a round. Everything is measured twice: on the broker as the lab configures it, which writes its database after each
change so that `kill -9` loses nothing, and on one that keeps its messages in memory. The goals are those of the lab's configuration."""

OUTSTANDING = 32
CALLS = 600
RATE = 100.0
LATENCY_CALLS = 150
ROUNDS = 7

Call = Callable[[], Awaitable[object]]
REQUEST = TrainRequest(domain="sleep", dataset="file:///data/lab/sleep/conversations-2026-11.jsonl", tier="starter")


class Asker(BaseAgent):
    """Calls from its outbox."""

    role = "conductor"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.online = asyncio.Event()
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.reply_handlers["train.submit"] = lambda answer, tx: tx.after_commit(lambda: self.wake(answer))

    async def started(self) -> None:
        self.online.set()

    def wake(self, answer: Answer) -> None:
        self.waiting.pop(answer.call_id).set_result(None)

    async def ask(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.transaction() as tx:
            self.waiting[tx.call("train.submit", REQUEST)] = done
        await done


class PlainCaller:
    """A request and its reply with aiomqtt alone."""

    def __init__(self, client: aiomqtt.Client, name: str) -> None:
        self.client = client
        self.topic = f"plain/reply/{name}"
        self.waiting: dict[bytes, asyncio.Future[object]] = {}

    async def listen(self) -> None:
        async for message in self.client.messages:
            self.waiting.pop(message.properties.CorrelationData).set_result(json.loads(message.payload))

    async def ask(self) -> None:
        identity = uuid7()
        body = {"jsonrpc": "2.0", "id": identity, "method": "train.submit", "params": REQUEST.model_dump(mode="json")}
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = self.topic, identity.encode()
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.waiting[identity.encode()] = reply
        await self.client.publish(PLAIN_TOPIC, json.dumps(body), qos=1, properties=properties)
        await reply


async def throughput(call: Call, calls: int = CALLS, outstanding: int = OUTSTANDING) -> float:
    """Return calls per second with so many outstanding."""
    left = iter(range(calls))

    async def keep_calling() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(keep_calling() for _ in range(outstanding)))
    return calls / (time.perf_counter() - began)


async def latencies(call: Call, calls: int = LATENCY_CALLS, rate: float = RATE) -> list[float]:
    """Return milliseconds from when each call was due to its reply, at a steady rate."""
    found: list[float] = []
    began = time.perf_counter()

    async def one(due: float) -> None:
        await asyncio.sleep(due - time.perf_counter())
        await call()
        found.append((time.perf_counter() - due) * 1000)

    await asyncio.gather(*(one(began + number / rate) for number in range(calls)))
    return found


@asynccontextmanager
async def callers(folder: Path, address: BrokerAddress) -> AsyncIterator[dict[str, Call]]:
    """Start both callees and connect a caller of each kind."""
    async with AsyncExitStack() as stack:
        for kind in ("agent", "plain"):
            await stack.enter_async_context(
                running_module("benchmarks.callee", kind, str(address.port), str(folder / "callee"))
            )
        client = await stack.enter_async_context(Client(address))
        asker = Asker(Wiring("conductor-1", folder / "caller", address))
        asking = asyncio.create_task(asker.run())
        await asker.online.wait()
        plain = await stack.enter_async_context(
            aiomqtt.Client(address.host, address.port, protocol=aiomqtt.ProtocolVersion.V5)
        )
        caller = PlainCaller(plain, "bench")
        await plain.subscribe(caller.topic, qos=1)
        listening = asyncio.create_task(caller.listen())
        try:
            yield {
                "the lab": lambda: client.call("train.submit", REQUEST, timeout=60),
                "the lab, from an outbox": asker.ask,
                "plain aiomqtt": caller.ask,
            }
        finally:
            listening.cancel()
            asking.cancel()
            await asyncio.gather(listening, asking, return_exceptions=True)


async def measure(rounds: int, order: random.Random) -> list[Series]:
    """Measure on both configurations of the broker."""
    found: list[Series] = []
    for autosave in (True, False):
        where = "the lab's broker" if autosave else "broker in memory"
        with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
            folder = Path(name)
            async with running_broker(folder, autosave=autosave) as address, callers(folder, address) as calls:
                found += await _rounds(calls, where, rounds, order, goals=autosave)
    return found


async def _rounds(
    calls: dict[str, Call], where: str, rounds: int, order: random.Random, *, goals: bool
) -> list[Series]:
    rate: dict[str, list[float]] = {kind: [] for kind in calls}
    p50: dict[str, list[float]] = {kind: [] for kind in calls}
    p99: dict[str, list[float]] = {kind: [] for kind in calls}
    for call in calls.values():
        await throughput(call, 50)  # connections, caches and statements are warm
    for _ in range(rounds):
        for kind in order.sample(sorted(calls), len(calls)):
            rate[kind].append(await throughput(calls[kind]))
        for kind in order.sample(sorted(calls), len(calls)):
            times = await latencies(calls[kind])
            p50[kind].append(percentile(times, 50))
            p99[kind].append(percentile(times, 99))
    peer = "plain aiomqtt"
    found = []
    for label, unit, values in (("throughput", "calls/s", rate), ("p50", "ms", p50), ("p99", "ms", p99)):
        for kind, measured in values.items():
            found.append(
                Series(name=f"{label}, {kind}", unit=unit, values=measured, group=f"{label}, {where}", peer=kind == peer)
            )
    goal = {"throughput": Goal(kind="at least", value=0.6), "p50": Goal(kind="at most", value=2.0)}
    for label, values in (("throughput", rate), ("p50", p50)):
        for kind in calls:
            if kind != peer:
                found.append(
                    Series(
                        name=f"{label} of {kind} ÷ plain aiomqtt, {where}", unit="×", values=ratios(values[kind], values[peer]),
                        goal=goal[label] if goals and kind == "the lab" else None, group=f"ratio, {where}",
                    )
                )  # fmt: skip
    return found


def method() -> str:
    size = len(MCPMessage(type="train.submit", data=REQUEST.model_dump(mode="json")).body())
    return METHOD.format(bytes=size, calls=CALLS, outstanding=OUTSTANDING)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    return asyncio.run(measure(rounds, random.Random(seed)))
