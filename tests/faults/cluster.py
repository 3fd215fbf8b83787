"""A lab whose every agent sits behind a bad network, with hands to kill, hold and replace its parts.

It is `meetara up`'s own supervisor inside this process: what starts, restarts and ends the agents is the product's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from bus import BrokerAddress, Client
from configs import Settings
from meetara.home import hold
from meetara.supervise import ROLES, Supervisor
from tests.faults.proxy import Proxy
from tests.integration.lab import Ground, RunningLab, environment, processes_of

WORK = "work"
"""The process of a job, and the one that plans it, as a victim."""
ZYGOTE = "zygote"
"""The processes that a factory's jobs, and their programs, are forked from, as a victim."""
BROKER = "broker"
"""The broker as a victim."""
BACK_SECONDS = 60.0
"""Longest time until a killed part is there again: a restart's longest pause is 10 s, and the machine may be busy."""
LOOK = 0.02
"""Seconds between two looks at files and processes: nothing announces those, and every announcement may be killed."""


class FaultySupervisor(Supervisor):
    """A supervisor whose agents reach the broker through proxies of their own and may have more in their environment."""

    proxies: Mapping[str, Proxy]
    more: Mapping[str, str]
    by_role: Callable[[str], dict[str, str]]

    def _command(self, agent: str, role: str) -> list[str]:
        proxy = self.proxies[agent]  # of options that are given twice the last one counts
        return [*super()._command(agent, role), "--host", proxy.host, "--port", str(proxy.listening)]

    def _environment(self, agent: str) -> dict[str, str]:
        return {**super()._environment(agent), "MEETARA_SLOTS": "1", **self.more, **self.by_role(self.agents[agent])}


@dataclass
class Cluster:
    """A running lab. `proxies` are by the agent's id, `said` is what the supervisor told."""

    supervisor: FaultySupervisor
    proxies: dict[str, Proxy]
    said: list[str]
    lab: RunningLab
    names: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.supervisor.home

    def client(self) -> Client:
        return self.lab.client()

    def login(self, name: str) -> BrokerAddress:
        """Return the broker's address with somebody's credentials, past the proxies."""
        assert self.supervisor.broker is not None
        return self.supervisor.broker.address(name)

    def name(self, what: str) -> str:
        """Return a job's id that was not used before on this home."""
        self.names += 1
        return f"{what}-{self.names}"

    def processes(self, victim: str) -> list[psutil.Process]:
        """Return the processes of a role, of the broker, or of jobs."""
        programs = {BROKER: "mosquitto.conf", WORK: "agents.gguf_factory.work", ZYGOTE: "agents.gguf_factory.zygote"}
        wanted = programs.get(victim, f"agents.{victim}")
        found = []
        for process in processes_of(self.home):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(word == wanted or word.endswith(f"/{wanted}") for word in process.cmdline()):
                    found.append(process)
        return found

    async def there(self, victim: str) -> list[psutil.Process]:
        """Return the processes of a victim, once there is one."""
        async with asyncio.timeout(BACK_SECONDS):
            while not (found := self.processes(victim)):
                await asyncio.sleep(LOOK)
        return found

    async def kill(self, victim: str) -> bool:
        """Kill with SIGKILL; False if nothing was there to be killed (no job works at this moment)."""
        found = self.processes(victim) if victim == WORK else await self.there(victim)
        for process in found:
            self.signal(process, signal.SIGKILL)
        return bool(found)

    def signal(self, process: psutil.Process, number: signal.Signals) -> None:
        """Send a signal; a process that has just ended is no error."""
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.kill(process.pid, number)

    async def kill_broker(self, *, forget: bool) -> None:
        """Kill the broker, and with `forget` remove what it had saved before it is started again."""
        await self.kill(BROKER)
        if forget:
            for saved in (self.home / "broker").glob("mosquitto.db*"):
                saved.unlink()

    async def opened(self) -> None:
        """Return when users are let in again (the gate closes at each start of the broker)."""
        async with asyncio.timeout(2 * BACK_SECONDS):
            await self.supervisor.ready.wait()


@asynccontextmanager
async def cluster(
    home: Path, ground: Ground, random: Random, *, factories: int = 1, broker_program: Path | None = None,
    by_role: Callable[[str], dict[str, str]] = lambda role: {}, more: Mapping[str, str] | None = None,
) -> AsyncIterator[Cluster]:
    """Run a lab on any free port until the block is left; it ends in order, or is killed when the block failed.

    Args:
        home: the lab's home.
        ground: base, configs and rows.
        random: for the proxies.
        factories: how many.
        broker_program: another Mosquitto than the system's.
        by_role: environment of the agents of a role.
        more: environment of all agents.
    """
    settings = Settings.read(home=home, configs=ground.configs, port=0)
    said: list[str] = []
    async with AsyncExitStack() as stack:
        stack.enter_context(hold(home))
        supervisor = FaultySupervisor(settings, port=0, factories=factories, tell=said.append, roles=ROLES)
        supervisor.more, supervisor.by_role = more or {}, by_role
        assert supervisor.broker is not None
        if broker_program is not None:
            supervisor.broker.program = broker_program
        port = supervisor.address.port
        proxies = {
            agent: await stack.enter_async_context(Proxy(port, random)) for agent in supervisor.agents
        }
        supervisor.proxies = proxies
        try:
            await supervisor.start()
            surroundings = environment(home, ground.configs, **(more or {}))
            lab = RunningLab(home, surroundings, None, port, home.with_name(f"{home.name}-up.log"))  # type: ignore[arg-type]
            yield Cluster(supervisor, proxies, said, lab)
        except BaseException:
            for process in processes_of(home):  # a held process would not end
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            supervisor.kill()
            raise
        finally:
            await supervisor.stop()
    left = [process.cmdline() for process in processes_of(home)]
    assert left == [], f"left behind: {left}"


@contextlib.contextmanager
def reading(home: Path, agent: str) -> Iterator[sqlite3.Connection]:
    """Read an agent's store beside the agent."""
    connection = sqlite3.connect(f"{(home / 'agents' / f'{agent}.db').as_uri()}?mode=ro", uri=True, timeout=30)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()
