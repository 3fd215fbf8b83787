"""`meetara up`: a broker and one process for each kind of agent, started in order, kept alive, and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt

from bus import BrokerAddress
from bus.broker import Broker, agents_present, check_port
from bus.door import Door
from bus.mosquitto import find_mosquitto
from configs import Settings
from configs.accounts import without_secrets
from meetara.child import BACKOFF, Child
from meetara.home import Up, hold, write_record
from meetara.listener import ends_soon, listener
from protocol import Code, LabError
from protocol.address import Endpoint
from protocol.topics import OPERATOR

ROLES = ("cost_monitor", "gpu_orchestrator", "conductor", "router", "gguf_factory", "emotion", "tts")
"""The order of starting: whoever is asked comes before whoever asks."""
READY_SECONDS = 120.0
"""Agents are present after 2-5 s; a factory that loads torch from a cold disk on a busy machine needs up to a minute."""
START_ATTEMPTS = 3
"""Before the lab was up once, an agent that ends so often in a row will not come up by itself."""
FACTORY_GRACE = 30.0
"""Seconds to finish a training step and write a checkpoint; then the last regular checkpoint must do."""
AGENT_GRACE = 10.0
"""Seconds for an agent to send what is due and say that it goes."""


class Supervisor:
    """One lab on one home. Use `supervised`.

    Args:
        settings: home, lab, and the broker where one is there already.
        port: the private broker's port; 0 for any free one.
        factories: how many factories (each with its own slots).
        tell: takes sentences about restarts.
        roles: which agents to run, in the order of starting.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        port: int | None = None,
        factories: int = 1,
        tell: Callable[[str], None],
        roles: Sequence[str] = ROLES,
    ) -> None:
        self.settings = settings
        self.home = settings.home
        self.tell = tell
        self.ready = asyncio.Event()
        self._up_once = asyncio.Event()
        self.agents: dict[str, str] = {
            f"{role}-{number}": role
            for role in roles
            for number in range(1, (factories if role == "gguf_factory" else 1) + 1)
        }
        chosen = settings.port if port is None else port
        self.broker: Broker | None = None
        self.door: Door | None = None
        if settings.broker is None:
            self.broker = Broker(self.home, chosen, agents=self.agents, program=find_mosquitto(), lab=settings.lab)
            self.address = self.broker.address()
            if settings.listen is not None:
                self.door = listener(Endpoint.parse(settings.listen), self.home, self.broker, datetime.now(UTC))
                if (end := ends_soon(self.home, datetime.now(UTC))) is not None:
                    tell(f"the certificate of {settings.listen} ends on {end:%Y-%m-%d}: meetara certs")
        else:
            self.address = BrokerAddress.of(settings.endpoint, os.environ)
            if settings.listen is not None:
                raise LabError(
                    Code.CONFIGURATION, f"a lab on the broker {self.address} cannot listen on {settings.listen}.",
                    advice="Drop --listen (MEETARA_LISTEN), or --host (MEETARA_BROKER): only a private broker can.",
                    field="listen",
                )  # fmt: skip
        self.children: dict[str, Child] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start everything; return when all agents are present and users are let in.

        Raises:
            LabError: what kept the lab from starting, with the last words of the process that failed.
        """
        self._record()
        since = datetime.now(UTC)
        if self.door is not None:
            check_port(self.door.listen.port_or(), self.door.listen.host, flag="--listen HOST:PORT")
        if self.broker is not None:
            await self.broker.start()
            self._tasks.append(asyncio.create_task(self._keep_broker(self.broker, since), name="broker"))
        else:
            self._tasks.append(asyncio.create_task(self._watch_foreign_broker(since), name="broker"))
        for agent, role in self.agents.items():
            child = Child(agent, self._command(agent, role), self._environment(agent), self._log(agent), self.tell)
            self.children[agent] = child
            keeping = child.keep(restarts=START_ATTEMPTS, settled=self._up_once)
            self._tasks.append(asyncio.create_task(keeping, name=agent))
        ready = asyncio.create_task(self.ready.wait())
        try:
            done, _ = await asyncio.wait(
                [ready, *self._tasks], timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {ready}:
                await task
            if ready not in done:
                raise LabError(
                    Code.UNREACHABLE, f"the lab was not ready within {READY_SECONDS:.0f} s.",
                    advice=f"See the logs in {self.home / 'logs'}.",
                )  # fmt: skip
        finally:
            ready.cancel()
        self._up_once.set()

    async def failure(self) -> None:
        """Wait until something fails that a restart cannot mend, and raise it.

        Raises:
            LabError: an agent refuses its configuration.
        """
        for finished in asyncio.as_completed(self._tasks):
            await finished

    async def stop(self) -> None:
        """End the factories (they checkpoint), then the other agents, then the broker."""
        factories = [child for name, child in self.children.items() if self.agents[name] == "gguf_factory"]
        others = [child for child in self.children.values() if child not in factories]
        await asyncio.gather(*(child.stop(FACTORY_GRACE) for child in factories))
        await asyncio.gather(*(child.stop(AGENT_GRACE) for child in others))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.door is not None:
            await self.door.close()
        if self.broker is not None:
            await self.broker.stop()

    def kill(self) -> None:
        """End all agents at once; their stores and checkpoints bear it."""
        for child in self.children.values():
            child.kill()

    @property
    def listening(self) -> str | None:
        """Where people from elsewhere come in; None: nowhere."""
        if self.door is None or not self.door.is_open:
            return None
        return str(Endpoint(self.door.listen.host, self.door.port, self.door.tls is not None))

    def _record(self) -> None:
        write_record(
            self.home,
            Up(
                pid=os.getpid(), host=self.address.host, port=self.address.port, lab=self.settings.lab, tls=self.address.tls,
                ready=self.ready.is_set(), private_broker=self.broker is not None,
            ),
        )  # fmt: skip

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _command(self, agent: str, role: str) -> list[str]:
        return [
            sys.executable, "-m", f"agents.{role}", "--home", str(self.home),
            "--host", str(Endpoint(self.address.host, tls=self.address.tls)), "--port", str(self.address.port),
            "--lab", self.settings.lab, "--agent", agent,
        ]  # fmt: skip

    def _environment(self, agent: str) -> dict[str, str]:
        keys = self.agents[agent] == "gpu_orchestrator"  # it alone rents machines
        environment = dict(os.environ) if keys else without_secrets(os.environ)
        environment["MEETARA_HOME"] = str(self.home)
        environment["MEETARA_LAB"] = self.settings.lab
        environment["MEETARA_PORT"] = str(self.address.port)
        environment["PYTHONUNBUFFERED"] = "1"  # the last words of a killed agent must be in its log
        if self.settings.configs is not None:
            environment["MEETARA_CONFIGS"] = str(self.settings.configs)
        if self.broker is not None:
            login = self.broker.address(agent)
            environment["MEETARA_BROKER_USER"] = login.username or ""
            environment["MEETARA_BROKER_PASSWORD"] = login.password or ""
            environment.pop("MEETARA_BROKER_PASSWORD_FILE", None)  # of another broker
        return environment

    async def _keep_broker(self, broker: Broker, since: datetime) -> None:
        pause = BACKOFF[0]
        while True:
            gate = asyncio.create_task(self._open_gate(broker, since))
            try:
                assert broker.process is not None
                code = await broker.process.wait()
            finally:
                gate.cancel()
                await asyncio.gather(gate, return_exceptions=True)
            self.ready.clear()
            if self.door is not None:
                await self.door.close()
            self.tell(f"the broker ended ({code}); started again in {pause:g} s (log: {broker.log})")
            while True:
                await asyncio.sleep(pause)
                since = datetime.now(UTC)
                try:
                    await broker.start()
                    break
                except LabError as error:  # its port may be taken for a moment; the agents wait for it
                    pause = min(pause * 2, BACKOFF[1])
                    self.tell(f"{error} Trying again in {pause:g} s.")

    async def _open_gate(self, broker: Broker, since: datetime) -> None:
        await self._all_present(broker.address(OPERATOR), since)
        while True:
            with contextlib.suppress(TimeoutError):  # a machine under heavy load; the agents are served meanwhile
                await broker.open_gate()
                break
        if self.door is not None:
            await self.door.open()
        self.ready.set()
        self._record()

    async def _watch_foreign_broker(self, since: datetime) -> None:
        await self._all_present(self.address, since)
        self.ready.set()
        self._record()
        await asyncio.Event().wait()

    async def _all_present(self, address: BrokerAddress, since: datetime) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):  # the broker is away; whoever keeps it reports that
                return await agents_present(address, self.settings.lab, self.agents, since=since)
            await asyncio.sleep(BACKOFF[0])


@asynccontextmanager
async def supervised(
    settings: Settings,
    *,
    port: int | None = None,
    factories: int = 1,
    tell: Callable[[str], None],
    made: Callable[[Supervisor], None] = lambda _: None,
    roles: Sequence[str] = ROLES,
) -> AsyncIterator[Supervisor]:
    """Hold the home, start a lab on it, and end everything on leaving, however it is left.

    `made` is given the supervisor before it starts, so that a caller can kill it while it starts or stops.

    Raises:
        LabError: BUSY when the home or the port is taken; TOOLCHAIN without Mosquitto; what an agent refuses.
    """
    with hold(settings.home):
        supervisor = Supervisor(settings, port=port, factories=factories, tell=tell, roles=roles)
        made(supervisor)
        try:
            await supervisor.start()
            yield supervisor
        finally:
            await asyncio.shield(supervisor.stop())
