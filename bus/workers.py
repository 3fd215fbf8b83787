"""Workers on rented machines: the token that each is given, and its login at the broker for as long as its rental lives.

A test boots one in three lines (a `Broker` that runs, and its orchestrator's address as `control`):

    token = workers.make("r1", provider="vast")
    await workers.admit(control, token, jobs=["sleep-1"])
    worker = subprocess.Popen([sys.executable, "-m", "agents.gguf_factory.worker", "--broker", str(broker.address()),
                               "--home", str(folder)], env={**os.environ, workers.VARIABLE: str(token)})

It is online when its card `agent/gguf_factory/worker-r1/card` is there, and ends with 0 soon after
`await workers.dismiss(control, "worker-r1")`.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import aiomqtt

from bus import users
from bus.acl import acls
from bus.address import BrokerAddress
from bus.session import Session
from protocol.access import CALLS, WORKER, WORKER_SERVES, WORKERS, Login, rental_of, worker_name, worker_rules
from protocol.errors import Code, LabError, Retry
from protocol.ids import uuid7
from protocol.methods import dialect
from protocol.topics import Topics

VARIABLE = "MEETARA_TOKEN"
"""Environment of a worker: its token, which a command line would show to everybody on its machine."""
FORM = "mtw1."
"""A token begins so: what is pasted in the wrong place is recognised, and another form can come."""
WORDS = dialect([*WORKER_SERVES, *CALLS["gguf_factory"]])
"""The methods that a lab and its workers share."""


@dataclass(frozen=True)
class Token:
    """What a worker must know beside the broker's address; whoever has it is this worker.

    Attributes:
        worker: its name as an agent, and its login.
        password: of the login.
        lab: the lab's name.
        provider: who rents the machine out.
        version: of the lab that made it.
        words: digest of the lab's methods for workers.
        ca: the authority that signed the broker's certificate, as PEM; empty: one that systems know.
    """

    worker: str
    password: str = field(repr=False)
    lab: str
    provider: str
    version: str
    words: str
    ca: str = field(default="", repr=False)

    def __str__(self) -> str:
        return FORM + base64.urlsafe_b64encode(json.dumps(asdict(self), separators=(",", ":")).encode()).decode().rstrip("=")

    @property
    def rental(self) -> str:
        """The rented instance, as the orchestrator names it."""
        return rental_of(self.worker) or ""

    @classmethod
    def read(cls, text: str) -> Token:
        """Read a token as it was printed.

        Raises:
            LabError: CONFIGURATION; its text is not quoted.
        """
        body = "".join(text.split()).removeprefix(FORM)  # a terminal may have broken the line
        try:
            if not text.strip().startswith(FORM):
                raise ValueError
            token = cls(**json.loads(base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)))
            if not token.rental or not all(isinstance(value, str) for value in asdict(token).values()):
                raise ValueError
        except (ValueError, TypeError, binascii.Error) as error:
            raise LabError(
                Code.CONFIGURATION, "this is not a worker's token, or a part of one.",
                advice=f"Copy the whole of it (it begins with {FORM}) into --token or {VARIABLE}.", field="token",
            ) from error  # fmt: skip
        return token

    def check(self) -> None:
        """Compare the lab's words with this program's.

        Raises:
            LabError: CONFIGURATION, with both versions.
        """
        if self.words != WORDS:
            mine = version("meetara-lab")
            raise LabError(
                Code.CONFIGURATION,
                f"this worker is of version {mine} (words {WORDS[:8]}), the lab of {self.version} (words {self.words[:8]}): "
                "they do not understand each other.",
                advice="Install the lab's version on this machine, or rent it with the image of that version.", field="token",
            )  # fmt: skip

    def address(self, broker: BrokerAddress) -> BrokerAddress:
        """Return a broker's address with this login."""
        return BrokerAddress(
            broker.host, broker.port, self.worker, self.password, broker.tls, broker.ca, broker.certificate
        )


def make(rental: str, *, provider: str, lab: str = "lab", ca: Path | None = None) -> Token:
    """Make the token of a rental's worker; the broker does not know it yet.

    Args:
        rental: the rented instance, as the orchestrator names it: letters, digits, `-` and `_`.
        provider: who rents the machine out.
        lab: the lab's name.
        ca: file of the authority that signed the broker's certificate; None: one that systems know.
    """
    authority = ca.read_text(encoding="ascii") if ca is not None else ""
    return Token(
        worker_name(rental), secrets.token_urlsafe(24), lab, provider, version("meetara-lab"), WORDS, authority
    )


async def admit(control: BrokerAddress, token: Token, jobs: Iterable[str]) -> None:
    """Let a worker in, for these jobs; again with others: for those instead.

    The same again changes nothing, so it also serves to tell a broker what it may have forgotten. A change of the jobs cuts
    the worker's connection, which it makes again at once. An existing login keeps its password.

    Args:
        control: the broker, with a login that may give it commands (the orchestrator's, or the operator's).
        token: the worker's.
        jobs: ids of the jobs whose progress it may tell.

    Raises:
        LabError: UNREACHABLE when the broker does not answer; INTERNAL with its words.
    """
    client = BrokerAddress(password=token.password).client(token.worker)
    rules = _rules(token.worker, client, jobs, token.lab)
    login = {"username": token.worker, "roles": [{"rolename": WORKERS}, {"rolename": token.worker}]}
    answers = await users.ask(
        control, {"command": "createRole", "rolename": token.worker, "acls": rules},
        {"command": "createClient", "password": token.password, **login},
    )  # fmt: skip
    wrong = [item for item in answers if "error" in item and "already exists" not in item["error"]]
    if wrong:
        raise LabError(Code.INTERNAL, f"the broker refused a command: {wrong[0]['command']}: {wrong[0]['error']}.")
    if "error" in answers[0]:
        await allow(control, token.worker, jobs, token.lab)


async def allow(control: BrokerAddress, worker: str, jobs: Iterable[str], lab: str = "lab") -> None:
    """Let a worker that is in already tell the progress of these jobs, instead of those before.

    Args:
        control: as for `admit`.
        worker: its name.
        jobs: ids.
        lab: the lab's name.

    Raises:
        LabError: NOT_FOUND where nobody has let it in; UNREACHABLE when the broker does not answer; INTERNAL with its words.
    """
    [known] = await users.ask(control, {"command": "getRole", "rolename": worker})
    if "data" not in known:
        raise LabError(Code.NOT_FOUND, f"the broker knows no worker {worker}: {known.get('error', '')}.", worker=worker)
    found = known["data"]["role"]["acls"]
    client = next(rule["topic"] for rule in found if rule["acltype"] == "subscribeLiteral").rpartition("/")[2]  # its reply topic
    rules = _rules(worker, client, jobs, lab)
    if not _same(found, rules):
        await users.control(control, {"command": "modifyRole", "rolename": worker, "acls": rules})


async def dismiss(control: BrokerAddress, worker: str, lab: str = "lab") -> None:
    """End a worker's login and its connection, and clear its card and presence; one that is not known is no error.

    Raises:
        LabError: UNREACHABLE when the broker does not answer; INTERNAL with its words.
    """
    password = secrets.token_urlsafe(24)
    [changed] = await users.ask(control, {"command": "setClientPassword", "username": worker, "password": password})
    if "error" not in changed:  # nobody else may publish there, so this goes in the worker's name
        await _clear(BrokerAddress(control.host, control.port, worker, password, control.tls, control.ca), Topics(lab))
    answers = await users.ask(
        control, {"command": "deleteClient", "username": worker}, {"command": "deleteRole", "rolename": worker}
    )
    wrong = [item for item in answers if "error" in item and "not found" not in item["error"].lower()]
    if wrong:
        raise LabError(Code.INTERNAL, f"the broker refused a command: {wrong[0]['command']}: {wrong[0]['error']}.")


async def admitted(control: BrokerAddress) -> set[str]:
    """Return the names of the workers that the broker lets in, so that those without a rental can be dismissed.

    Raises:
        LabError: UNREACHABLE when the broker does not answer; INTERNAL with its words.
    """
    [answer] = await users.ask(control, {"command": "listClients"})
    if "data" not in answer:
        raise LabError(Code.INTERNAL, f"the broker does not list its logins: {answer.get('error', 'no reason given')}.")
    return {name for name in answer["data"]["clients"] if rental_of(name)}


async def _clear(address: BrokerAddress, topics: Topics) -> None:
    assert address.username is not None
    try:
        async with Session.connect(address, f"meetara-farewell-{uuid7()}", durable=False) as session:
            for row in ("card", "presence"):
                topic = topics.of(row, role="gguf_factory", agent=address.username)
                await session.publish(topic, b"", retain=True)
    except aiomqtt.MqttError as error:
        raise LabError(
            Code.UNREACHABLE, f"the broker at {address} went away: {error}.", retry=Retry.LATER,
            advice="The worker cannot come back; dismiss it again to clear its card.",
        ) from error  # fmt: skip


def _rules(worker: str, client: str, jobs: Iterable[str], lab: str) -> list[dict[str, object]]:
    return acls(worker_rules(Login(worker, WORKER, client), sorted(set(jobs)), Topics(lab)))


def _same(known: list[dict[str, object]], rules: list[dict[str, object]]) -> bool:
    """Whether the plugin has these rules; it tells them in an order of its own."""

    def canonical(items: list[dict[str, object]]) -> list[str]:
        return sorted(json.dumps(item, sort_keys=True) for item in items)

    return canonical(known) == canonical(rules)
