"""The simulated world: virtual time, one broker, every agent of the lab with its real code, people, and faults.

One thread, no real time, no sockets. What runs in it is the lab's own code down to bus.session and sqlite3: below it are
`wire`, `broker` and `disk`; beside the factory is `factory` for the job's process. The same plan lives the same life.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import random
import secrets
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import structlog

import agents.gguf_factory.agent
import bus.agent
import bus.session
import bus.store
import protocol.ids
from agents.conductor.agent import ConductorAgent
from agents.cost_monitor.agent import CostMonitorAgent
from agents.gguf_factory import device, machine
from agents.gguf_factory.agent import FactoryAgent
from agents.gpu_orchestrator.agent import GpuOrchestratorAgent
from agents.gpu_orchestrator.clouds import Clouds
from agents.gpu_orchestrator.rentals.life import Limits
from agents.router.agent import RouterAgent
from bus import BaseAgent, BrokerAddress, Wiring, keys
from bus.health import SignOfLife
from configs import Configs, load
from protocol.errors import LabError, Retry
from protocol.job import Report
from tests.simulation import people, wire
from tests.simulation.broker import Broker, Message
from tests.simulation.cloud import Gate, Vendor
from tests.simulation.disk import Disk, Killed, Opened
from tests.simulation.factory import FORECAST, JobProcess, look_up, make_plan
from tests.simulation.invariants import Invariants
from tests.simulation.loop import Loop, Spinning
from tests.simulation.plan import FACTORIES, Fault, Mishap, Plan, Request

STARTS = {
    "noon": datetime(2026, 3, 4, 12, tzinfo=UTC),
    "midnight": datetime(2026, 3, 4, 23, 59, tzinfo=UTC),
    "month": datetime(2026, 5, 31, 23, 59, tzinfo=UTC),  # a Sunday: day, week and month end together
}
RESTART = 1.0
"""Seconds until the supervisor starts a process that has failed."""
PATIENCE = 600.0
"""Seconds after the last fault in which every job must have ended. Three attempts, each with a lost lease, take 300."""
LIMITS = Limits(boot=timedelta(minutes=3), dear=timedelta(minutes=2), bill=timedelta(seconds=20), bills=timedelta(minutes=2))
"""Of rentals: shorter than those of a real lab, so that a life of minutes sees their ends."""
LOOK = 5.0
"""Seconds between two looks whether everything has ended."""


class Violation(AssertionError):
    """An invariant does not hold."""


class Node:
    """One process and the machine that it runs on: its disk, its clock, its connection.

    Args:
        build: makes the agent; None for a person.
    """

    def __init__(self, world: World, name: str, build: Callable[[Wiring], BaseAgent] | None = None) -> None:
        self.world = world
        self.name = name
        self.build = build
        self.wiring = Wiring(name, world.home, BrokerAddress("broker", 1), now=self.clock)
        self.disk = Disk()
        self.skew = 0.0
        self.up_cut = self.down_cut = False
        self.lag = 0.0
        self.loop = Loop(world, self)
        self.agent: BaseAgent | None = None
        self.connection: wire.Connection | None = None
        self.processes: list[JobProcess] = []
        self.folders: dict[str, JobProcess] = {}
        self.trap: tuple[str, float] | None = None
        self.rest = RESTART
        self.dirty = False
        self._opened: Opened | None = None

    def __repr__(self) -> str:
        return self.name

    def clock(self) -> datetime:
        """The wall clock of this machine."""
        return self.world.start + timedelta(seconds=self.world.now + self.skew)

    @property
    def file(self) -> str:
        return f"{self.name}.db"

    # its life

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something on this node's loop."""
        self.loop.create_task(work)

    def boot(self) -> None:
        """Start the agent's process, unless it runs."""
        if self.agent is not None or self.build is None:
            return
        self.loop = Loop(self.world, self)
        self.world.loops.append(self.loop)
        self.world.booting = self
        try:
            agent = self.agent = self.build(self.wiring)
        except LabError as error:
            if error.retry is not Retry.LATER:
                raise
            self.failed(error)
            return
        loop = self.loop

        async def live() -> None:
            try:
                await agent.run()
            except Exception as error:  # noqa: BLE001 - the boundary of the process
                if loop.dead:
                    return  # it is being buried
                self.world.wrong(f"{self.name} crashed: {type(error).__name__}: {error}")
            else:
                self.kill(self.rest)  # it has ended as it was asked to

        loop.create_task(live())
        self.world.tell(self.name, "starts")

    def failed(self, error: Exception) -> None:
        """The process ended by itself with an error that a restart can mend."""
        self.world.tell(self.name, f"ends: {error}")
        self.world.counts["ended by an error"] += 1
        self.kill(RESTART)

    def kill(self, down: float | None) -> None:
        """End without a word; start again after `down` seconds."""
        self.loop.kill()
        if self.connection is not None:
            self.connection.gone(clean=False)
            self.connection = None
        if self._opened is not None:
            self._opened.die()
        if self.agent is not None:
            with suppress(OSError):  # it has closed its store itself
                self.agent.store.close()  # the operating system lets go of the lock
        self.agent = None
        self.processes.clear()
        self.folders.clear()
        self.trap = None
        if down is not None:
            self.world.at(self.world.now + down, self.boot)

    def open(self, path: Path, **_: Any) -> Opened:
        """What sqlite3.connect is to this process."""
        self._opened = self.disk.open(path, self.passing, self.committed)
        return self._opened

    def committed(self) -> None:
        self.dirty = True

    def passing(self, moment: str) -> None:
        """A place at which the process can be killed."""
        if self.trap is not None and self.trap[0] == moment:
            down = self.trap[1]
            self.world.tell(self.name, f"is killed at {moment}")
            self.world.counts[f"kill at {moment}"] += 1
            self.kill(down)
            raise Killed

    def read(self, sql: str) -> list[sqlite3.Row]:
        """Look into the node's store from outside."""
        return self.disk.read(self.file, sql)


@cache
def configuration(slots: int, affordable: int, cap_usd: float | None = None) -> Configs:
    """The shipped configuration with machines that cost something, and a budget for so many jobs at once."""
    shipped = load()
    local = shipped.providers.local.model_copy(update={"slots": slots, "price_usd_per_hour": 36.0})
    whole = (FORECAST["seconds_p90"] + local.provisioning_seconds + local.grace_seconds) * 0.01 * 1.1
    budget = shipped.budget.model_copy(
        update={"daily_usd": whole * affordable * 1.06, "weekly_usd": whole * affordable * 1.5, "monthly_usd": whole * max(20, affordable * 2)}
    )
    if cap_usd is not None:
        budget = budget.model_copy(update={"daily_usd": cap_usd, "weekly_usd": cap_usd, "monthly_usd": cap_usd})
    providers = shipped.providers.model_copy(update={"local": local})
    tiers = {name: tier.model_copy(update={"cap_usd": None}) for name, tier in shipped.tiers.items()}
    return replace(shipped, providers=providers, budget=budget, tiers=tiers)


class World:
    """One life. `run` lives it.

    Args:
        plan: what happens.
    """

    patience = PATIENCE
    limits = LIMITS

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.start = STARTS[plan.start]
        self.now = 0.0
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.trace: list[tuple[float, str, str]] = []
        self.loops: list[Loop] = []
        self.booting: Node | None = None
        self.broker_skew = 0.0
        self.broker = Broker(self.random, lambda: self.now + self.broker_skew, self.heard)
        self.said: list[Message] = []
        self.wishes: list[people.Wish] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._mishaps: dict[str, list[Mishap]] = {}
        self._violation: str | None = None
        self._over = False
        shared = Path("/dev/shm")
        self.home = Path(tempfile.mkdtemp(prefix="lab-", dir=shared if shared.is_dir() else None))
        configs = self.configs = configuration(plan.slots, plan.affordable, plan.cap_usd)
        self.healed = False
        self.tokens: dict[str, str] = {}
        self.replaced: frozenset[str] = frozenset()
        if plan.sellers:
            self.key = keys.make(self.home / "person")
            keys.trust(self.home / keys.FOLDER, "person", self.key.public)
        self.vendors = [Vendor(self, seller) for seller in plan.sellers]
        builders: dict[str, Callable[[Wiring], BaseAgent]] = {
            "router": partial(RouterAgent, configs=configs),
            "conductor": ConductorAgent,
            "gpu_orchestrator": self._orchestrator,
            "cost_monitor": partial(CostMonitorAgent, configs=configs),
        }
        for name in FACTORIES[: plan.factories]:
            builders[name] = partial(FactoryAgent, configs=configs)
        self.nodes = {name: Node(self, name, build) for name, build in builders.items()}
        self.invariants = Invariants(self, configs.budget.caps())

    def _orchestrator(self, wiring: Wiring) -> GpuOrchestratorAgent:
        providers = {vendor.seller.vendor: vendor.provider() for vendor in self.vendors}
        clouds = Clouds(providers, Gate(self), "worker", limits=self.limits, replaced=self.replaced) if providers else None
        return GpuOrchestratorAgent(wiring, self.configs, clouds)

    # time

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a moment of virtual time."""
        self._number += 1
        heapq.heappush(self._queue, (when if when > self.now else self.now, self._number, action))

    def latency(self, node: Node) -> float:
        """Seconds that a packet takes now."""
        dice = self.random.random()
        if node.lag:
            return node.lag * dice
        if dice < 0.9 or not self.plan.rough:
            return 0.001 + dice * 0.01
        return (dice - 0.9) * 20.0

    # what is seen

    def tell(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append((self.now, who, what))

    def heard(self, message: Message) -> None:
        """The broker accepted a message."""
        self.said.append(message)
        self.trace.append((self.now, "broker", f"{message.topic[15:]} {message.payload[:160]!r}"))

    def logged(self, _: Any, method: str, event: dict[str, Any]) -> Any:
        """What the agents write to their logs; a handler that crashes is a defect whatever comes of it."""
        exception = sys.exc_info()[1] if event.pop("exc_info", None) else None
        self.trace.append((self.now, str(event.get("job", "")), f"{event} {exception or ''}"))
        if exception is not None:
            self.wrong(f"an agent logs a crash: {event}\n{traceback.format_exc()}")
        raise structlog.DropEvent

    def wrong(self, what: str) -> None:
        """An invariant does not hold: the world ends here.

        Raises:
            Violation
        """
        if self._violation is None and not self._over:
            self._violation = what
            self.tell("VIOLATION", what)
        raise Violation(what)

    def story(self, last: int = 400) -> str:
        """The trace for people."""
        lines = [f"{at:10.3f} {who:16} {what}" for at, who, what in self.trace[-last:]]
        return "\n".join([f"plan: {self.plan!r}", *lines])

    # what the plan says

    def request_of(self, dataset: str) -> Request:
        """The request of the plan that has this data set."""
        number = int(dataset.removeprefix("/data/").split(".")[0])
        return self.plan.requests[number]

    def mishap(self, job: str) -> Mishap | None:
        """What goes wrong in the next run of a job's process."""
        left = self._mishaps.get(job)
        if left is None:
            left = self._mishaps[job] = list(self.request_of_job(job).mishaps)
        return left.pop(0) if left else None

    def request_of_job(self, job: str) -> Request:
        """The request of the plan that has become this job."""
        rows = self.nodes["conductor"].read(f"SELECT record FROM jobs WHERE job = '{job}'")
        return self.request_of(json.loads(rows[0]["record"])["request"]["dataset"])

    def ready(self) -> bool:
        """Whether the broker keeps requests for the router: `meetara up` lets nobody in before."""
        router = self.broker.sessions.get("lab-router")
        return router is not None and any(topic.startswith("$share/") for topic in router.filters)

    def rented(self, name: str, build: Callable[[Wiring], BaseAgent]) -> Node:
        """A machine that a provider has rented out boots."""
        node = self.nodes[name] = Node(self, name, build)
        node.boot()
        return node

    def returned(self, node: Node) -> None:
        """A rented machine is switched off."""
        node.kill(None)
        node.rest = math.inf
        self.nodes.pop(node.name, None)

    def person(self, name: str) -> Node:
        """A new person's process."""
        node = Node(self, name)
        self.loops.append(node.loop)
        return node

    # faults

    def strike(self, fault: Fault) -> None:
        """Let a fault happen."""
        lasts = fault.lasts / 10
        target = fault.target
        if target in FACTORIES:
            target = FACTORIES[FACTORIES.index(target) % self.plan.factories]
        node = self.nodes[target] if target else self.nodes["conductor"]
        end = self.now + lasts
        self.tell("FAULT", f"{fault.kind} {target} {fault.moment} {lasts:g} s")
        broker = self.broker
        if fault.kind.startswith("broker_"):
            if broker.up:
                broker.kill(fault.kind.removeprefix("broker_"))  # type: ignore[arg-type]
                self.at(end, lambda: setattr(broker, "up", True))
        elif fault.kind == "sleep":
            for every in self.nodes.values():
                every.skew += 3600.0
            self.broker_skew += 3600.0
            broker.wills()
        elif fault.kind == "takeover":
            ghost = self.person("ghost")
            ghost.begin(people.intrude(ghost, f"lab-{node.name}", lasts))
        elif fault.kind == "kill":
            if node.agent is not None:
                if fault.moment == "now":
                    node.kill(lasts)
                else:
                    node.trap = (fault.moment, lasts)
        elif fault.kind == "stop":
            if signal.SIGTERM in node.loop.signals and node.agent is not None:
                node.rest = lasts
                node.loop.signals[signal.SIGTERM]()
        elif fault.kind == "pause":
            loop = node.loop
            loop.paused = True
            self.at(end, loop.resume)
        elif fault.kind in ("cut_up", "cut_down"):
            up, down = fault.kind == "cut_up", fault.kind == "cut_down"
            node.up_cut, node.down_cut = node.up_cut or up, node.down_cut or down
            if node.connection is not None:
                node.connection.cut(up=up, down=down)

            def mend() -> None:
                node.up_cut = node.down_cut = False

            self.at(end, mend)
        elif fault.kind == "lag":
            node.lag = min(lasts, 8.0)
            self.at(end, lambda: setattr(node, "lag", 0.0))
        elif fault.kind in ("clock_ahead", "clock_back"):
            node.skew += 3600.0 if fault.kind == "clock_ahead" else -3600.0
            if lasts > 20:  # it is set right again
                self.at(end, lambda: setattr(node, "skew", 0.0))
        elif fault.kind in ("locked", "full", "spilled"):
            node.disk.trouble = fault.kind  # type: ignore[assignment]
            self.at(end, lambda: setattr(node.disk, "trouble", None))
        elif fault.kind == "stall":
            for process in list(node.processes):
                process.stall(True)
                self.at(end, partial(process.stall, False))
        self.counts[fault.kind] += 1

    # its life

    def run(self) -> None:
        """Live the plan's life, checking everything after every step.

        Raises:
            Violation: with the reason.
        """
        with ExitStack() as stack:
            for target, name, value in self._surroundings():
                stack.enter_context(mock.patch.object(target, name, value))
            stack.callback(random.setstate, random.getstate())
            random.seed(self.plan.seed)
            kept = structlog.get_config()
            stack.callback(lambda: structlog.configure(**kept))
            structlog.configure(processors=[self.logged], wrapper_class=structlog.make_filtering_bound_logger(30))
            try:
                self._live()
            finally:
                self._over = True
                for node in self.nodes.values():
                    node.kill(None)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # what was never awaited will never be
                    for loop in self.loops:
                        loop.bury()
                for node in self.nodes.values():
                    node.disk.close()
                shutil.rmtree(self.home, ignore_errors=True)

    def _surroundings(self) -> list[tuple[Any, str, Any]]:
        def open_store(path: Path, **options: Any) -> Any:
            assert self.booting is not None
            return self.booting.open(path, **options)

        def connect(_: Any, identifier: str, **options: Any) -> Any:
            owner: Node = asyncio.get_running_loop().owner  # type: ignore[attr-defined]
            return wire.connect(self, owner, identifier, **options)

        happen = ConductorAgent.happen

        def watched(agent: ConductorAgent, job: str, happening: Any, tx: Any, *more: Any) -> None:
            before = agent.find(job, tx) if isinstance(happening, Report) else None
            happen(agent, job, happening, tx, *more)
            if before is not None and (before.lease is None or before.fence != happening.fence):
                after = agent.find(job, tx)
                assert after is not None
                self.invariants.stale(before, after)

        sql = types.SimpleNamespace(**{**vars(sqlite3), "connect": open_store})
        hours = types.SimpleNamespace(time_ns=lambda: int((self.start.timestamp() + self.now) * 1e9))
        factory = agents.gguf_factory.agent
        return [
            (bus.store, "sqlite3", sql),
            (bus.session.Session, "connect", connect),
            (secrets, "randbits", self.random.getrandbits), (secrets, "randbelow", self.random.randrange),
            (secrets, "token_hex", lambda size: self.random.randbytes(size).hex()),
            (protocol.ids, "time", hours), (ConductorAgent, "happen", watched),
            (bus.agent, "version", lambda name: "0"), (SignOfLife, "show", lambda sign, now: None),  # slow, and not looked at
            (factory, "JobProcess", JobProcess), (factory, "make_plan", make_plan), (factory, "look_up", look_up),
            (machine, "free_bytes", lambda home: 1 << 40), (machine, "memory_bytes", lambda: 64 << 30),
            (device, "graphics", lambda: ("", 0)),
        ]  # fmt: skip

    def _live(self) -> None:
        self.broker.repeats = 0.3 if self.plan.rough else 0.0
        for number, node in enumerate(self.nodes.values()):
            self.at(number * 0.05, node.boot)
        for second in range(5, 150, 20):
            self.at(float(second), self.broker.save)
        for number, request in enumerate(self.plan.requests):
            self.wishes += people.wishes(self, number, request)
        last = self.plan.trouble / 10
        for fault in self.plan.faults:
            self.at(fault.at / 10, partial(self.strike, fault))
            last = max(last, (fault.at + fault.lasts) / 10)
        last = max([last, *((request.at + (request.cancel or 0)) / 10 for request in self.plan.requests)])
        self.at(last, self._heal)
        look = last + LOOK
        while self._queue:
            when, _, action = heapq.heappop(self._queue)
            if when >= look:
                if self.invariants.quiet():
                    break
                if when > last + self.patience:
                    self.wrong("stuck: " + self.invariants.unfinished())
                look = when + LOOK
            self.now = when
            self.steps += 1
            try:
                action()
            except (Killed, Spinning) as error:
                if isinstance(error, Spinning):
                    self.wrong(str(error))
            if self._violation is not None:
                raise Violation(self._violation)
            self.invariants.look()
        self.invariants.end()

    def _heal(self) -> None:
        """From here on nothing new goes wrong."""
        self.healed = True
        for node in self.nodes.values():
            node.trap = None
        self.tell("FAULT", "no more")
