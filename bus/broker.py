"""A private Mosquitto: configuration, passwords, start and stop, and the gate behind which users wait.

The gate: users (who log in as nobody) are let in only when the agents' subscriptions exist, else a user's first
message could be acknowledged and go nowhere. It closes at every start of the broker, because Mosquitto 2.0 forgets
shared subscriptions when it restarts (docs/decisions/0003-user-gate.md). Who may say and hear what is in
`protocol.access`; everybody has a login of his own, users share the rights of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path

import aiomqtt
import psutil
from pydantic import ValidationError

from bus import users
from bus.acl import RULES, SHARED, Secret, dynamic_security
from bus.address import BrokerAddress
from bus.files import read_json, write_private
from bus.mosquitto import find_plugin, logging, storage
from bus.session import Session
from protocol import Code, LabError, Retry, Topics, uuid7
from protocol.access import Login
from protocol.machine import Presence
from protocol.topics import OPERATOR, USER

HOST = "127.0.0.1"
"""The private broker has no TLS, so it listens on loopback only."""
PASSWORDS = "passwords.json"
"""The passwords of the operator and the agents, for whoever starts them."""
START_SECONDS = 15.0
"""Mosquitto listens within 0.1 s; a machine under full load was seen to need 3 s."""
STOP_SECONDS = 5.0
"""After SIGTERM Mosquitto writes its database and leaves; longer means that it hangs."""
KEPT_LOG_BYTES = 5_000_000
"""A log that grew beyond this moves to `.1` at the next start."""


def free_port(host: str = HOST) -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(port: int, host: str = HOST, *, flag: str = "--port N") -> None:
    """Make sure that nobody listens on the port.

    Args:
        port: 0 is always free.
        host: the address to listen on.
        flag: how a person chooses another port.

    Raises:
        LabError: BUSY, with the owner as far as this user may see it; CONFIGURATION, when binding is not allowed.
    """
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Mosquitto: old connections do not count
            probe.bind(address)
            return
    except PermissionError as error:
        raise LabError(
            Code.CONFIGURATION, f"this user may not listen on {host}:{port}.",
            advice=f"Choose a port above 1023 with {flag}, or 0 for any free one.", field="port",
        ) from error  # fmt: skip
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise LabError(
                Code.CONFIGURATION, f"nobody can listen on {host}:{port}: {error.strerror}.",
                advice=f"Name an address of this machine: {flag}.", field="port",
            ) from error  # fmt: skip
    raise LabError(
        Code.BUSY, f"the port {host}:{port} is taken by {port_owner(port)}.",
        advice=f"Choose another one with {flag} (0: any free one), or use the broker that runs there with "
        f"MEETARA_BROKER={host}:{port}.",
        retry=Retry.LATER, field="port", port=port,
    )  # fmt: skip


def port_owner(port: int) -> str:
    """Say who listens on a port: address, pid and program, as far as the system shows them to this user."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS shows other programs' sockets to root only
        return "another program (this user may not see which)"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
            continue
        where = f"a listener on {connection.laddr.ip}:{port}"
        if connection.pid is None:
            return f"{where} of another user"
        try:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid}, {where})"
        except psutil.Error:
            return f"pid {connection.pid} ({where})"
    return "another program"


def die_with_parent(sign: int = signal.SIGKILL) -> None:
    """Ask Linux to send a signal to this process when its parent is gone. For `preexec_fn`; elsewhere a no-op."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, sign)  # PR_SET_PDEATHSIG


def open_log(path: Path) -> int:
    """Open a log for appending; one that is too long is set aside first. Returns a descriptor to be closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > KEPT_LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class Broker:
    """One Mosquitto of a home, owned by this process.

    Args:
        home: MEETARA_HOME; everything is written to `broker/` and `logs/` in it.
        port: where to listen on loopback; 0 for any free port.
        agents: each agent's id, which is its login, and its role.
        program: the Mosquitto to run.
        lab: the lab whose topics exist on this broker.
    """

    def __init__(
        self, home: Path, port: int, *, agents: Mapping[str, str], program: Path, lab: str = "lab"
    ) -> None:
        self.folder = home / "broker"
        self.log = home / "logs" / "broker.log"
        self.port = port or free_port()
        self.agents = dict(agents)
        self.program = program
        self.lab = lab
        self.process: asyncio.subprocess.Process | None = None
        self._passwords: dict[str, str] = {}

    def address(self, login: str | None = None) -> BrokerAddress:
        """Return where the broker is, with the credentials of an agent, of OPERATOR, or (None) of nobody."""
        if login is None:
            return BrokerAddress(HOST, self.port)
        return BrokerAddress(HOST, self.port, login, self._passwords[login])

    def configuration(self, *, users: bool) -> str:
        """Return mosquitto.conf with the gate open or closed to users."""
        lines = [
            "# Written by meetara at every start; edits are lost.",
            # Started by root, Mosquitto would become the user mosquitto, who cannot read a home below /root.
            *(["user root"] if os.geteuid() == 0 else []),
            f"listener {self.port} {HOST}",
            f"allow_anonymous {str(users).lower()}",
            f"plugin {find_plugin(self.program)}",
            f"plugin_opt_config_file {self.folder / RULES}",
            *storage(f"{self.folder}/"),
            # Nobody reads $SYS here.
            "sys_interval 0",
            *logging("stderr"),
        ]
        return "\n".join(lines) + "\n"

    async def start(self) -> None:
        """Start Mosquitto with the gate closed and return when it takes connections.

        Raises:
            LabError: BUSY when the port is taken; TOOLCHAIN when Mosquitto does not come up, with its last words.
        """
        check_port(self.port)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._write_access()
        self._configure(users=False)
        log = open_log(self.log)
        try:
            self.process = await asyncio.create_subprocess_exec(
                str(self.program), "-c", str(self.folder / "mosquitto.conf"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal must reach the agents first, the broker last
                preexec_fn=_leave_with_supervisor,
                env={name: value for name, value in os.environ.items() if "_API_KEY" not in name.upper()},  # no vendor's keys
            )  # fmt: skip
        finally:
            os.close(log)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self.accepts(OPERATOR):
                    if self.process.returncode is not None:
                        raise self._failure(f"mosquitto ended at once (exit code {self.process.returncode})")
                    await asyncio.sleep(0.02)  # there is no event to await: another process opens a socket
        except TimeoutError as error:
            await self.stop()
            raise self._failure(f"mosquitto did not answer within {START_SECONDS:.0f} s") from error

    async def open_gate(self) -> None:
        """Let users in. Call it when the agents' subscriptions exist."""
        self._configure(users=True)
        if self.process is None or self.process.returncode is not None:
            raise LabError(Code.UNREACHABLE, "the broker ended before its gate was opened.", retry=Retry.LATER)
        self.process.send_signal(signal.SIGHUP)  # Mosquitto reads allow_anonymous again and keeps its connections
        async with asyncio.timeout(START_SECONDS):
            while not await self.accepts(None):
                await asyncio.sleep(0.02)

    async def accepts(self, login: str | None) -> bool:
        """Tell whether the broker lets a login in now; None is a user."""
        try:
            async with Session.connect(self.address(login), f"meetara-probe-{uuid7()}", durable=False):
                return True
        except (aiomqtt.MqttError, OSError):
            return False

    async def stop(self) -> None:
        """End Mosquitto, after it has written its database; returns when the process is gone."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        await self.process.wait()

    def _configure(self, *, users: bool) -> None:
        write_private(self.folder / "mosquitto.conf", self.configuration(users=users))

    def _write_access(self) -> None:
        """Write down who is known and what each may do."""
        self._passwords = read_json(self.folder / PASSWORDS)
        for login in [OPERATOR, *self.agents]:
            self._passwords.setdefault(login, secrets.token_urlsafe(24))
        write_private(self.folder / PASSWORDS, json.dumps(self._passwords, indent=1) + "\n")
        known = [Secret(Login(OPERATOR, OPERATOR, OPERATOR), self._passwords[OPERATOR])]
        for agent, role in self.agents.items():
            known.append(Secret(Login(agent, role, self.address(agent).client(agent)), self._passwords[agent]))
        for person, password in users.known(self.folder).items():
            known.append(Secret(Login(person, USER, person), password))
        file = self.folder / RULES
        write_private(file, dynamic_security(known, Topics(self.lab), anonymous=True, before=read_json(file)))

    def _failure(self, what: str) -> LabError:
        tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        return LabError(
            Code.TOOLCHAIN, f"{what}: {' / '.join(tail)}.",
            advice=f"See {self.log}; Mosquitto 2.0 or later is needed, with its dynamic-security plugin.", file=str(self.log),
        )  # fmt: skip


async def agents_present(
    address: BrokerAddress, lab: str, agents: Collection[str], *, since: datetime | None = None
) -> None:
    """Return when all named agents have announced themselves; cancel it to give up.

    Args:
        address: the broker, with a login that it lets in.
        lab: the lab's name.
        agents: the agents' ids.
        since: retained announcements older than this do not count (they outlive a restart of the broker).

    Raises:
        aiomqtt.MqttError: the connection broke.
    """
    if agents:
        async with Session.connect(address, f"meetara-up-{uuid7()}", durable=False) as session:
            await await_agents(session, Topics(lab), agents, since=since)


async def await_agents(
    session: Session, topics: Topics, agents: Collection[str], *, since: datetime | None = None, subscribed: bool = False
) -> None:
    """Return when all named agents have announced themselves, as `agents_present` on a session that is there.

    Args:
        session: of a login that may read presences.
        topics: the lab's topics.
        agents: the agents' ids.
        since: retained announcements older than this do not count.
        subscribed: wait also until there are as many shared subscriptions, which a broker with a `sys_interval` tells:
            that needs no clock.
    """
    missing = set(agents)
    shared = 0
    if subscribed:
        await session.subscribe(SHARED)
    await session.subscribe(topics.of("presence", role="+", agent="+"))
    async for incoming in session:
        session.ack(incoming)
        if incoming.topic == SHARED:
            shared = int(incoming.payload)
        else:
            try:
                presence = Presence.model_validate_json(incoming.payload)
            except ValidationError:  # an agent of another version; it is not one of ours
                continue
            fresh = since is None or not incoming.retain or (presence.at is not None and presence.at >= since)
            if presence.online and fresh:
                missing.discard(presence.agent)
            elif not presence.online and presence.agent in agents:
                missing.add(presence.agent)
        if not missing and (not subscribed or shared >= len(agents)):
            return


def _leave_with_supervisor() -> None:
    die_with_parent(signal.SIGTERM)  # not SIGKILL: on SIGTERM Mosquitto still writes its database
