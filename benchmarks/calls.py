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

from benchmarks.callee import TUNED
from benchmarks.result import Goal, Series, percentile, ratios
from benchmarks.wire import quiet, running_broker, running_module
from bus import Answer, BaseAgent, BrokerAddress, Client, Wiring
from protocol import MCPMessage, TrainRequest, uuid7

TITLE = "Calls against plain aiomqtt"
METHOD = """\
A training request of {bytes} bytes goes from a client to a callee in another process and its reply comes back, everything at QoS 1.
The lab's callee is an agent: it checks the envelope and the parameters, writes the call and its reply to SQLite (WAL,
synchronous=NORMAL) and acknowledges after the commit; its client is `bus.Client`. "From an outbox" is a call that the caller keeps
in a store of its own as well, as agents call each other. The peer is what one writes with aiomqtt alone: it parses the JSON and
answers to the response topic with the correlation data, up to {outstanding} replies under way at once; it checks nothing, keeps nothing,
acknowledges on arrival, and loses what it had when it is killed. As it is, aiomqtt lets small packets wait for the acknowledgement
of the last one, up to 40 ms; the tuned peer is the same with TCP_NODELAY, and the goals are set against that one. Throughput: {calls}
calls, {outstanding} of them outstanding. Latency: from the time at which a call is due to its reply, at a steady rate. All use the same
broker, in rounds of shuffled order; a ratio is made within a round. Everything is measured twice: on a broker that keeps its
messages in memory, at 100 calls a second, and on one with the lab's settings, at 10: that one writes its database to the disk after
each change, so that `kill -9` loses nothing, which makes it carry few messages, whoever sends them. The goal of the latency is that
of the broker in memory: with the lab's settings not even the peer gets through 100 calls a second everywhere."""

OUTSTANDING = 32
CALLS = {True: 100, False: 600}
"""Calls of a round: with the lab's broker settings, and in memory."""
RATES = {True: 10.0, False: 100.0}
"""Calls a second for the latency: with the lab's broker settings, and in memory."""
LATENCY_SECONDS = 2.0
PEER = "tuned aiomqtt"
ROUNDS = 5

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

    def __init__(self, client: aiomqtt.Client, kind: str) -> None:
        self.client = client
        self.topic = f"{kind}/reply"
        self.call_topic = f"{kind}/call"
        self.waiting: dict[bytes, asyncio.Future[object]] = {}

    async def listen(self) -> None:
        async for message in self.client.messages:
            assert message.properties is not None
            self.waiting.pop(message.properties.CorrelationData).set_result(json.loads(message.payload))  # type: ignore[attr-defined]

    async def ask(self) -> None:
        identity = uuid7()
        body = {"jsonrpc": "2.0", "id": identity, "method": "train.submit", "params": REQUEST.model_dump(mode="json")}
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = self.topic, identity.encode()
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.waiting[identity.encode()] = reply
        await self.client.publish(self.call_topic, json.dumps(body), qos=1, properties=properties)
        await reply


async def throughput(call: Call, calls: int, outstanding: int = OUTSTANDING) -> float:
    """Return calls per second with so many outstanding."""
    left = iter(range(calls))

    async def keep_calling() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(keep_calling() for _ in range(outstanding)))
    return calls / (time.perf_counter() - began)


async def latencies(call: Call, calls: int, rate: float) -> list[float]:
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
        for kind in ("agent", "plain", "tuned"):
            await stack.enter_async_context(
                running_module("benchmarks.callee", kind, str(address.port), str(folder / "callee"))
            )
        client = await stack.enter_async_context(Client(address))
        asker = Asker(Wiring("conductor-1", folder / "caller", address))
        tasks = [asyncio.create_task(asker.run())]
        await asker.online.wait()
        peers = {}
        for kind in ("plain", "tuned"):
            plain = await stack.enter_async_context(
                aiomqtt.Client(
                    address.host, address.port, protocol=aiomqtt.ProtocolVersion.V5,
                    socket_options=TUNED if kind == "tuned" else (),
                )
            )  # fmt: skip
            plain.pending_calls_threshold = 2 * OUTSTANDING
            peers[kind] = PlainCaller(plain, kind)
            await plain.subscribe(peers[kind].topic, qos=1)
            tasks.append(asyncio.create_task(peers[kind].listen()))
        try:
            yield {
                "the lab": lambda: client.call("train.submit", REQUEST, timeout=60),
                "the lab, from an outbox": asker.ask,
                "plain aiomqtt": peers["plain"].ask,
                PEER: peers["tuned"].ask,
            }
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def measure(rounds: int, order: random.Random) -> list[Series]:
    """Measure on both configurations of the broker."""
    found: list[Series] = []
    for autosave in (False, True):
        with tempfile.TemporaryDirectory(prefix="meetara-bench-") as name:
            folder = Path(name)
            async with running_broker(folder, autosave=autosave) as address, callers(folder, address) as calls:
                found += await _rounds(calls, rounds, order, autosave=autosave)
    return found


async def _rounds(calls: dict[str, Call], rounds: int, order: random.Random, *, autosave: bool) -> list[Series]:
    where = "lab's broker settings" if autosave else "broker in memory"
    rate: dict[str, list[float]] = {kind: [] for kind in calls}
    p50: dict[str, list[float]] = {kind: [] for kind in calls}
    p99: dict[str, list[float]] = {kind: [] for kind in calls}
    for call in calls.values():
        await throughput(call, 50)  # connections, caches and statements are warm
    for _ in range(rounds):
        for kind in order.sample(sorted(calls), len(calls)):
            rate[kind].append(await throughput(calls[kind], CALLS[autosave]))
        for kind in order.sample(sorted(calls), len(calls)):
            times = await latencies(calls[kind], int(RATES[autosave] * LATENCY_SECONDS), RATES[autosave])
            p50[kind].append(percentile(times, 50))
            p99[kind].append(percentile(times, 99))
    found = []
    at = f"at {RATES[autosave]:.0f} calls/s"
    for label, unit, values in (("throughput", "calls/s", rate), (f"p50 {at}", "ms", p50), (f"p99 {at}", "ms", p99)):
        for kind, measured in values.items():
            group = f"{label}, {where}"
            peer = "aiomqtt" in kind
            found.append(Series(name=f"{label}, {kind}", unit=unit, values=measured, group=group, label=kind, peer=peer))
    goals = {"throughput": Goal(kind="at least", value=0.6)}
    if not autosave:
        goals[f"p50 {at}"] = Goal(kind="at most", value=2.0)
    for label, values in (("throughput", rate), (f"p50 {at}", p50)):
        for kind in ("the lab", "the lab, from an outbox"):
            found.append(
                Series(
                    name=f"{label}: {kind} ÷ {PEER}", unit="×", values=ratios(values[kind], values[PEER]),
                    goal=goals.get(label) if kind == "the lab" else None,
                )
            )  # fmt: skip
    for series in found:
        series.name += f" ({where})"
    return found


def method() -> str:
    size = len(MCPMessage(type="train.submit", data=REQUEST.model_dump(mode="json")).body())
    return METHOD.format(bytes=size, calls=f"{CALLS[False]} (lab's broker settings: {CALLS[True]})", outstanding=OUTSTANDING)


def run(rounds: int = ROUNDS, seed: int = 0) -> Sequence[Series]:
    quiet()
    return asyncio.run(measure(rounds, random.Random(seed)))
