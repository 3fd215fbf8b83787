"""Who may say and hear what, pair by pair, on the real broker: every login against every topic.

What is allowed stands here in words of its own; a privileged witness sees what really passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator, Iterable, Iterator

import aiomqtt
import pytest
import pytest_asyncio
from aiomqtt import Topic

from bus import users, workers
from bus.address import BrokerAddress
from bus.broker import Broker
from bus.mosquitto import find_mosquitto
from bus.session import Refused, Session
from protocol import METHODS, LabError
from protocol.access import ROLES
from protocol.topics import OPERATOR, PREFIX

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = {f"{role}-1": role for role in ROLES} | {"gguf_factory-2": "gguf_factory"}
LAB = f"{PREFIX}/lab"
PERSON = "alice"
TOKEN = workers.make("r1", provider="vast")
WORKER = TOKEN.worker
LOGINS = (None, PERSON, OPERATOR, *AGENTS, WORKER)
"""None is a user without a login; the worker is admitted for the job `j`."""

ASKED_BY_PERSONS = [
    "call/router/train.submit", "call/router/train.quote", "call/router/route.text", "call/conductor/job.get", "call/conductor/job.list",
    "call/conductor/job.events", "call/conductor/job.cancel", "call/conductor/job.approve", "call/cost_monitor/budget.report",
    "call/cost_monitor/budget.entries", "call/cost_monitor/budget.set", "call/cost_monitor/budget.unfreeze",
    "call/gpu_orchestrator/offer.list", "call/emotion/emotion.analyse", "call/tts/speech.synthesise", "call/tts/speech.read", "call/tts/speech.voices",
    "direct/tts/+/speech.read",
]  # fmt: skip
SEEN_BY_PERSONS = ["job/#", "agent/#", "provider/#", "cost/#", "dead/#"]
TO_PERSONS = ["reply/somebody", "reply/operator", f"reply/<{WORKER}>"]
"""Reply topics outside of the agents' that are known at the start; whoever answers persons may write to any such, and read one
whose name he knows: that of a worker holds 128 bits of its own."""

SAYS: dict[str, list[str]] = {
    "user": ASKED_BY_PERSONS,
    "operator": ["call/+/+", "direct/+/+/+"],
    "gateway": ASKED_BY_PERSONS,
    "router": ["call/conductor/train.route", "call/conductor/job.quote", "job/+/state", *TO_PERSONS, "reply/<gateway-1>"],
    "conductor": [
        "call/gguf_factory/job.plan", "call/gguf_factory/model.remember", "direct/gguf_factory/+/job.run", "direct/gguf_factory/+/job.stop",
        "call/gpu_orchestrator/offer.quote", "call/gpu_orchestrator/offer.requote", "call/gpu_orchestrator/lease.request",
        "call/gpu_orchestrator/lease.release", "call/cost_monitor/budget.reserve", "call/cost_monitor/budget.settle",
        "call/cost_monitor/budget.release", "job/+/event", "job/+/state", *TO_PERSONS, "reply/<gateway-1>",
        "reply/<router-1>", "reply/<gguf_factory-1>", "reply/<gguf_factory-2>", "reply/<gpu_orchestrator-1>",
    ],
    "gguf_factory": [
        "call/conductor/job.report", "call/gpu_orchestrator/lease.renew", "job/+/progress", "reply/<conductor-1>",
        "reply/operator",
    ],
    "gpu_orchestrator": [
        "call/conductor/lease.lost", "call/conductor/lease.recall", "call/conductor/lease.delay",
        "call/cost_monitor/budget.extend", "call/cost_monitor/budget.settle",
        "call/cost_monitor/budget.release", "call/cost_monitor/budget.bill", "call/cost_monitor/budget.report",
        "provider/+/status", "cost/stopped", "reply/<conductor-1>", "reply/<gguf_factory-1>",
        "reply/<gguf_factory-2>", *TO_PERSONS, "reply/<gateway-1>",
    ],
    "cost_monitor": [
        "cost/alert", "cost/emergency", "cost/mode", "reply/<conductor-1>", "reply/<gpu_orchestrator-1>", *TO_PERSONS,
        "reply/<gateway-1>",
    ],
    "emotion": [*TO_PERSONS, "reply/<gateway-1>"],
    "tts": [*TO_PERSONS, "reply/<gateway-1>"],
    "worker": [
        "call/conductor/job.report", "call/gpu_orchestrator/lease.renew", "job/j/progress", "reply/<conductor-1>",
        "reply/operator", f"agent/gguf_factory/{WORKER}/card", f"agent/gguf_factory/{WORKER}/presence",
    ],
}  # fmt: skip
"""What each role may publish, below the lab; every agent also its own card, presence and dead letters."""

HEARS: dict[str, list[str]] = {
    "user": [*SEEN_BY_PERSONS, *TO_PERSONS],
    "operator": [*SEEN_BY_PERSONS, *TO_PERSONS],
    "gateway": SEEN_BY_PERSONS,
    "gpu_orchestrator": [
        "agent/gguf_factory/+/card", "agent/gguf_factory/+/presence", "cost/emergency", "cost/mode",
    ],
    "conductor": ["cost/mode"],
    "worker": [
        f"reply/<{WORKER}>", f"direct/gguf_factory/{WORKER}/+", f"agent/gguf_factory/{WORKER}/presence",
    ],
}  # fmt: skip
"""What each role may read, below the lab; every agent also its own replies and presence, and what is addressed to it."""


FACTORIES_TOO = {**AGENTS, WORKER: "gguf_factory"}
"""Whose topics there are: a worker's are those of a factory."""


def role_of(login: str | None) -> str:
    return login if login == OPERATOR else "worker" if login == WORKER else AGENTS.get(login or "", "user")


class QuickBroker(Broker):
    """It is not killed here, so it need not write its database after each message."""

    def configuration(self, *, users: bool) -> str:
        return super().configuration(users=users).replace("persistence true", "persistence false")


class Ground:
    """A broker with all logins, and a witness who may do everything."""

    def __init__(self, broker: Broker, passwords: dict[str, str], witness: Session) -> None:
        self.broker = broker
        self.passwords = passwords
        self.witness = witness
        self._ends = itertools.count()

    def address(self, login: str | None) -> BrokerAddress:
        if login == WORKER:
            return TOKEN.address(self.broker.address())
        if login in self.passwords:
            return BrokerAddress(port=self.broker.port, username=login, password=self.passwords[login])
        return self.broker.address(login)

    @contextlib.asynccontextmanager
    async def session(self, login: str | None) -> AsyncIterator[Session]:
        address = self.address(login)
        name = f"lab-{address.client(login)}" if login in (*AGENTS, WORKER) else f"somebody-{login}"
        async with Session.connect(address, name, durable=False, receive_maximum=1000) as session:
            yield session

    async def publish(self, topics: Iterable[str], payload: bytes, *, retain: bool = False) -> None:
        for some in batched(topics, 8):
            await asyncio.gather(*(self.witness.publish(topic, payload, retain=retain) for topic in some))

    async def passed(self) -> set[tuple[str, bytes]]:
        """Return all that has passed since it was last asked."""
        end = str(next(self._ends)).encode()
        await self.witness.publish("end", end)
        return await until(self.witness, end)

    def full(self, below: str) -> str:
        """Return a topic of the lab; `<agent>` stands for the agent's name as a client."""
        if "<" in below:
            head, _, rest = below.partition("<")
            agent = rest.removesuffix(">")
            below = head + self.address(agent).client(agent)
        return f"{LAB}/{below}"

    def topics(self) -> list[str]:
        """Return a topic of every row, with every method, role and agent, and some that are in no row."""
        calls = [f"call/{method.role}/{name}" for name, method in METHODS.items()]
        direct = [
            f"direct/{role}/{agent}/{name}"
            for agent, role in FACTORIES_TOO.items() for name, method in METHODS.items() if method.role == role
        ]  # fmt: skip
        rest = [
            *(f"reply/<{agent}>" for agent in AGENTS), *TO_PERSONS, "job/other/progress", "job/j/event", "job/j/state", "job/j/progress",
            *(f"agent/{role}/{agent}/{kind}" for agent, role in FACTORIES_TOO.items() for kind in ("card", "presence")),
            "provider/local/status", "cost/alert", "cost/emergency", *(f"dead/{role}" for role in ROLES),
            "call/router/job.get", "call/nobody/job.get", "job/j/other", "something", "reply/<router-1>/more",
        ]  # fmt: skip
        strange = ["other", f"{PREFIX}/other/job/j/state", f"{PREFIX}/other/call/router/train.submit"]
        return [self.full(below) for below in [*calls, *direct, *rest] if ">/" not in below] + strange

    def says(self, login: str | None) -> set[str]:
        role = role_of(login)
        below = list(SAYS[role])
        if login in AGENTS:
            below += [f"agent/{role}/{login}/card", f"agent/{role}/{login}/presence", f"dead/{role}"]
        return self._known(below) - self._known(self._no_method(role))

    def hears(self, login: str | None) -> set[str]:
        role = role_of(login)
        below = list(HEARS.get(role, []))
        if login in AGENTS:
            below += [f"reply/<{login}>", f"direct/{role}/{login}/+", f"agent/{role}/{login}/presence"]
        return self._known(below)

    def _no_method(self, role: str) -> list[str]:
        return ["call/router/job.get", "call/nobody/job.get"] if role == OPERATOR else []

    def _known(self, below: Iterable[str]) -> set[str]:
        patterns = [self.full(item) for item in below]
        return {topic for topic in self.topics() if any(Topic(topic).matches(pattern) for pattern in patterns)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory) -> AsyncIterator[Ground]:
    home = tmp_path_factory.mktemp("access")
    broker = QuickBroker(home, 0, agents=AGENTS, program=find_mosquitto())
    alice = users.add(broker.folder, PERSON, AGENTS)
    await broker.start()
    try:
        await broker.open_gate()
        await workers.admit(broker.address("gpu_orchestrator-1"), TOKEN, ["j"])
        everything = [
            {"acltype": kind, "topic": topic, "allow": True}
            for kind in ("publishClientSend", "publishClientReceive", "subscribePattern") for topic in ("#", "$SYS/#")
        ]  # fmt: skip
        await users.control(
            broker.address(OPERATOR),
            {"command": "createRole", "rolename": "witness", "acls": everything},
            {
                "command": "createClient", "username": "witness", "password": "sees all",
                "roles": [{"rolename": "witness"}],
            },
        )  # fmt: skip
        address = BrokerAddress(port=broker.port, username="witness", password="sees all")
        async with Session.connect(address, "witness", durable=False, receive_maximum=1000) as witness:
            await witness.subscribe("#")
            yield Ground(broker, {PERSON: alice}, witness)
    finally:
        await broker.stop()


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of at most so many items; aiomqtt warns of more than ten calls at a time."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


async def until(session: Session, end: bytes) -> set[tuple[str, bytes]]:
    """Return all that comes before a message of this payload."""
    found: set[tuple[str, bytes]] = set()
    async with asyncio.timeout(20):
        async for incoming in session:
            session.ack(incoming)
            if incoming.payload == end:
                return found
            found.add((incoming.topic, incoming.payload))
    raise AssertionError("the connection ended")


async def allowed(attempts: dict[str, object]) -> set[str]:
    """Return the names of the attempts that the broker did not refuse."""
    results = []
    for some in batched(attempts.values(), 8):
        results += await asyncio.gather(*some, return_exceptions=True)
    for result in results:
        assert result is None or isinstance(result, Refused), result
    return {name for name, result in zip(attempts, results, strict=True) if result is None}


@pytest.mark.parametrize("login", LOGINS)
async def test_a_login_publishes_what_the_table_says_and_nothing_else(ground, login):
    said = f"said by {login}".encode()
    async with ground.session(login) as session:
        told = await allowed({topic: session.publish(topic, said) for topic in ground.topics()})
    arrived = {topic for topic, payload in await ground.passed() if payload == said}
    assert told == ground.says(login)
    assert arrived == ground.says(login), "what is refused does not arrive, and what is allowed does"


@pytest.mark.parametrize("login", LOGINS)
async def test_a_login_reads_what_the_table_says_and_nothing_else(ground, login):
    kept, live, end = (f"{word} for {login}".encode() for word in ("kept", "live", "end"))
    last = ground.full(sorted(ground.hears(login))[0].removeprefix(f"{LAB}/"))
    topics = ground.topics()
    await ground.publish(topics, kept, retain=True)
    async with ground.session(login) as session:
        told = await allowed({topic: session.subscribe(topic) for topic in topics})
        await ground.publish(topics, live)
        await ground.witness.publish(last, end)
        heard = await until(session, end)
    assert told == ground.hears(login)
    for payload in (kept, live):
        assert {topic for topic, found in heard if found == payload} == ground.hears(login)
    await ground.publish(topics, b"", retain=True)
    await ground.passed()


WIDE = (
    "#", "+/#", "meetara/#", "meetara/v1/#", f"{LAB}/#", f"{LAB}/+/+", f"{LAB}/+/+/+", f"{LAB}/call/#",
    f"{LAB}/call/+/+", f"{LAB}/direct/#", f"{LAB}/reply/#", f"{LAB}/reply/+", f"{LAB}/job/#", f"{LAB}/job/+/state",
    f"{LAB}/job/j/#", f"{LAB}/agent/+/+/presence", f"{LAB}/agent/gguf_factory/+/card", f"{LAB}/provider/+/status",
    f"{LAB}/cost/+", f"{LAB}/dead/#", "$SYS/#", "$SYS/broker/uptime", "$CONTROL/#", "$CONTROL/dynamic-security/v1",
)  # fmt: skip
SEEN = {
    f"{LAB}/job/#", f"{LAB}/job/+/state", f"{LAB}/job/j/#", f"{LAB}/agent/+/+/presence",
    f"{LAB}/agent/gguf_factory/+/card", f"{LAB}/provider/+/status", f"{LAB}/cost/+", f"{LAB}/dead/#",
}  # fmt: skip
MAY_USE = {
    "user": SEEN, "operator": SEEN, "gateway": SEEN, "gpu_orchestrator": {f"{LAB}/agent/gguf_factory/+/card"},
}  # fmt: skip


@pytest.mark.parametrize("login", LOGINS)
async def test_wildcards_reach_no_further_than_the_topics(ground, login):
    own = {f"{LAB}/call/{role}/+": role for role in ROLES if role != "gateway"}
    filters = [*WIDE, *own]
    shares = [f"$share/{group}/{pattern}" for pattern in filters for group in ("router", "mine")]
    async with ground.session(login) as session:
        told = await allowed({pattern: session.subscribe(pattern) for pattern in [*filters, *shares]})
    role = role_of(login)
    work = {f"$share/{role}/{LAB}/call/{role}/+"} if login in AGENTS and role == "router" else set()
    assert told == MAY_USE.get(role, set()) | work


async def test_each_role_and_nobody_else_shares_its_calls(ground):
    for login in LOGINS:
        async with ground.session(login) as session:
            told = await allowed(
                {role: session.subscribe(f"$share/{role}/{LAB}/call/{role}/+") for role in ROLES}
            )
        role = role_of(login)
        assert told == ({role} if login in AGENTS else set()), login


async def test_a_stranger_at_a_shared_subscription_takes_no_request_away(ground):
    shared = f"$share/router/{LAB}/call/router/+"
    end = b"last request"
    async with ground.session("router-1") as router, ground.session(None) as user, ground.session("conductor-1") as other:
        await router.subscribe(shared)
        for thief in (user, other):
            with pytest.raises(Refused, match=r"subscribe to \$share"):
                await thief.subscribe(shared)
        for number in range(20):
            await user.publish(f"{LAB}/call/router/train.submit", str(number).encode())
        await user.publish(f"{LAB}/call/router/train.submit", end)
        heard = await until(router, end)
    assert {payload for _, payload in heard} == {str(number).encode() for number in range(20)}


@pytest.mark.parametrize("guess", ["router-1", "lab-router-1", "lab-router-1-0123456789abcdef0123456789abcdef"])
async def test_a_stranger_cannot_take_over_an_agents_session_by_guessing_its_client_id(ground, guess):
    direct = f"{LAB}/direct/router/router-1/train.submit"
    async with ground.session("router-1") as router:
        await router.subscribe(direct)
        async with Session.connect(ground.address(None), guess, durable=True) as thief:
            await ground.witness.publish(direct, b"for the router")
            await ground.witness.publish(direct, b"end")
            assert await until(router, b"end") == {(direct, b"for the router")}
            with pytest.raises(Refused):
                await thief.publish(direct, b"")
        async with Session.connect(ground.address(None), guess, durable=False):
            pass  # and forgets its session again


@pytest.mark.parametrize("login", ["router-1", OPERATOR, PERSON, "nobody"])
@pytest.mark.parametrize("password", [None, "", "wrong"])
async def test_a_login_without_its_password_is_nobody(ground, login, password):
    address = BrokerAddress(port=ground.broker.port, username=login, password=password)
    with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
        async with Session.connect(address, "somebody", durable=False):
            pass


def connect_packet(topic: str, will: bytes) -> bytes:
    """Return a CONNECT of MQTT 3.1.1 of nobody, with a retained last will of QoS 1."""
    flags = 0b0010_1110
    fields = [b"", topic.encode(), will]
    body = b"\0\4MQTT\4" + bytes([flags]) + b"\0\x3c" + b"".join(struct.pack("!H", len(item)) + item for item in fields)
    return b"\x10" + bytes([len(body)]) + body


async def test_a_last_will_says_nothing_that_its_client_may_not_say(ground):
    await ground.passed()
    allowed_last = f"{LAB}/call/router/train.submit"
    for topic in (f"{LAB}/job/j/state", f"{LAB}/call/router/job.get", f"{LAB}/reply/operator", allowed_last):
        reader, writer = await asyncio.open_connection("127.0.0.1", ground.broker.port)
        writer.write(connect_packet(topic, topic.encode()))
        await reader.read(4)
        writer.transport.abort()
        await writer.wait_closed()
    assert await until(ground.witness, allowed_last.encode()) == set(), "the earlier ones were not said"
    await ground.witness.publish(allowed_last, b"", retain=True)
    assert {payload for _, payload in await ground.passed()} == {b""}


async def test_a_removed_login_is_cut_off_and_refused(ground):
    operator = ground.address(OPERATOR)
    password = users.add(ground.broker.folder, "bob", AGENTS)
    await users.tell_added(operator, "bob", password)
    bob = BrokerAddress(port=ground.broker.port, username="bob", password=password)
    async with Session.connect(bob, "bob", durable=False) as session:
        await session.publish(f"{LAB}/call/router/train.submit", b"{}")
        users.remove(ground.broker.folder, "bob")
        await users.tell_removed(operator, "bob")
        with pytest.raises(aiomqtt.MqttError):
            async with asyncio.timeout(10):
                await anext(aiter(session))
    with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
        async with Session.connect(bob, "bob", durable=False):
            pass


@pytest.mark.parametrize("name", ["router-1", OPERATOR, "user", PERSON, "", "a/b", "a b", "x" * 65, "-x", "worker-9"])
async def test_a_person_gets_no_login_of_another_and_none_that_is_no_name(ground, name):
    with pytest.raises(LabError, match="login"):
        users.add(ground.broker.folder, name, AGENTS)
