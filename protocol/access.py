"""Who may say and hear what: one table, from which the broker's rules, their tests and the documents are made.

The topic table tells which roles publish and read a row; this file adds who calls which method, and turns both into
the rules of one login. What no rule allows is refused.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from protocol.methods import METHODS, served_by
from protocol.topics import AGENTS, BY_NAME, CALLEES, CALLERS, OPERATOR, PREFIX, TABLE, USER, Topic, Topics

WORKER = "worker"
"""First part of a worker's name, and the role of its login: a factory on a rented machine, which is asked for nothing but the
jobs of its rental."""
LENT = "lent-"
"""A rental's name begins so where a person lends the machine: nobody bills for it, and its login lasts until it is removed."""
WORKERS = "workers"
"""The group of rules that all workers share."""
WORKER_SERVES = ("job.run", "job.stop")
"""What a worker answers. It is never asked for plans: they read data sets of all jobs."""

ROLES = ("router", "conductor", "gguf_factory", "gpu_orchestrator", "cost_monitor", "emotion", "tts", "gateway")
"""The roles of agents; each agent has a login of its own, named by its id."""

_PERSON = (
    "train.submit", "train.quote", "route.text", "job.get", "job.list", "job.events", "job.cancel", "job.approve", "budget.report",
    "budget.entries", "budget.set", "budget.unfreeze", "offer.list",
    "emotion.analyse", "speech.synthesise", "speech.read", "speech.voices",
)  # fmt: skip

CALLS: Mapping[str, tuple[str, ...]] = {
    USER: _PERSON,
    OPERATOR: tuple(METHODS),
    "gateway": _PERSON,
    "router": ("train.route", "job.quote"),
    "conductor": (
        "job.plan", "model.remember", "offer.quote", "offer.requote", "lease.request", "lease.release",
        "budget.reserve", "budget.settle", "budget.release",
    ),
    "gguf_factory": ("job.report", "lease.renew"),
    "gpu_orchestrator": (
        "lease.lost", "lease.recall", "lease.delay", "budget.extend", "budget.settle", "budget.release", "budget.bill", "budget.report",
    ),
}  # fmt: skip
"""Role to the methods that it calls at whoever serves them, on `call/{role}/{method}`."""

ADDRESSES: Mapping[str, tuple[str, ...]] = {
    OPERATOR: tuple(METHODS),
    "conductor": ("job.run", "job.stop"),
    USER: ("speech.read",),
    "gateway": ("speech.read",),
}
"""Role to the methods that it calls at one agent, on `direct/{role}/{agent}/{method}`: audio is on one machine only."""

LOOKS_AT: Mapping[str, Mapping[str, str]] = {"gpu_orchestrator": {"role": "gguf_factory"}}
"""Role to the levels to which its reading of cards and presences is narrowed."""

Action = Literal["publish", "subscribe", "receive"]


@dataclass(frozen=True)
class Login:
    """Who someone is for the broker.

    Attributes:
        name: an agent's id, OPERATOR, or a person's name.
        role: one of ROLES, OPERATOR or USER.
        client: its name in `reply/{client}`; persons choose theirs themselves.
    """

    name: str
    role: str
    client: str


@dataclass(frozen=True)
class Rule:
    """Whether a login may publish to, subscribe with, or be handed messages of a topic filter; the first match counts.

    A subscription is allowed when its filter is no wider than the rule's. `literal`: only this very filter.
    """

    action: Action
    topic: str
    allow: bool = True
    literal: bool = False


def callers(method: str) -> set[str]:
    """Return the roles that call a method, on whichever topic."""
    return {role for table in (CALLS, ADDRESSES) for role, methods in table.items() if method in methods}


def rules(login: Login, logins: Iterable[Login], topics: Topics) -> tuple[Rule, ...]:
    """Return the rules of one login.

    Args:
        login: whose.
        logins: everybody known to the broker: replies go to known clients only, and nobody reads another's.
        topics: the lab's topics; nothing outside of the lab is allowed.
    """
    agents = [other for other in logins if other.role in ROLES]
    return tuple(
        [
            *_calls(login, topics),
            *_replies(login, agents, topics),
            *_publications(login, topics),
            *_readings(login, agents, topics),
        ]
    )


def worker_name(rental: str) -> str:
    """Return the name of the worker on a rented instance: its id as an agent, and its login."""
    return f"{WORKER}-{rental}"


def rental_of(agent: str) -> str | None:
    """Return the rental whose worker has this name; None: it is no worker's name."""
    first, _, rental = agent.partition("-")
    return rental or None if first == WORKER else None


def is_lent(rental: str | None) -> bool:
    """Tell whether a machine is lent to the lab by a person, and not rented from a provider."""
    return rental is not None and rental.startswith(LENT)


def workers_rules(logins: Iterable[Login], topics: Topics) -> tuple[Rule, ...]:
    """Return what every worker may: call as a factory does, and answer whoever runs and stops jobs.

    It hears nothing here: what is for all factories is not for workers.
    """
    asking = {role for name in WORKER_SERVES for role in callers(name)}
    answered = [OPERATOR, *(login.client for login in logins if login.role in asking and login.role in ROLES)]
    return tuple(
        [
            *_calls(Login(WORKERS, "gguf_factory", WORKERS), topics),
            *(Rule("publish", topics.of("reply", client=client)) for client in answered),
        ]
    )


def worker_rules(login: Login, jobs: Iterable[str], topics: Topics) -> tuple[Rule, ...]:
    """Return what one worker may besides: what is addressed to it, its card and presence, and its jobs' progress.

    Args:
        login: the worker's.
        jobs: the jobs of its rental.
        topics: the lab's topics.
    """
    own = {"role": "gguf_factory", "agent": login.name}
    return tuple(
        [
            Rule("publish", topics.of("card", **own)),
            Rule("publish", topics.of("presence", **own)),
            *(Rule("publish", topics.of("job_progress", job=job)) for job in jobs),
            *_hears(topics.of("presence", **own)),
            *_hears(topics.of("reply", client=login.client), literal=True),
            *_hears(topics.of("direct", **own, method="+")),
        ]
    )


def _calls(login: Login, topics: Topics) -> Iterator[Rule]:
    for name in CALLS.get(login.role, ()):
        yield Rule("publish", topics.of("call", role=METHODS[name].role, method=name))
    for name in ADDRESSES.get(login.role, ()):
        yield Rule("publish", topics.of("direct", role=METHODS[name].role, agent="+", method=name))


def _replies(login: Login, agents: Iterable[Login], topics: Topics) -> Iterator[Rule]:
    """A callee may answer the agents whose roles call it, and persons where persons call it."""
    asking = {role for name in served_by(login.role) for role in callers(name)}
    if not asking:
        return
    for agent in agents:
        yield Rule("publish", topics.of("reply", client=agent.client), allow=agent.role in asking)
    yield Rule("publish", topics.of("reply", client=OPERATOR))
    if USER in asking:
        yield Rule("publish", topics.of("reply", client="+"))


def _publications(login: Login, topics: Topics) -> Iterator[Rule]:
    for row in TABLE:
        if login.role in row.publishers:
            yield Rule("publish", topics.of(row.name, **_levels(row)))
        elif AGENTS in row.publishers and login.role in ROLES:
            yield Rule("publish", topics.of(row.name, **_levels(row, role=login.role, agent=login.name)))


def _readings(login: Login, agents: Iterable[Login], topics: Topics) -> Iterator[Rule]:
    for row in TABLE:
        if AGENTS in row.readers and login.role in ROLES:  # whether another process has taken its place
            yield from _hears(topics.of(row.name, **_levels(row, role=login.role, agent=login.name)))
        if login.role not in row.readers:
            continue
        area = row.template.partition("/")[0]
        if all(login.role in other.readers for other in TABLE if other.template.startswith(f"{area}/")):
            pattern = f"{PREFIX}/{topics.lab}/{area}/#"
        else:
            pattern = topics.of(row.name, **_levels(row))
        if login.role in LOOKS_AT:
            pattern = topics.of(row.name, **_levels(row, **LOOKS_AT[login.role]))
        yield from _hears(pattern)
    if login.role not in ROLES:
        for agent in agents:  # a person names a reply topic as he likes, but not an agent's, nor all of them at once
            yield from _hears(topics.of("reply", client=agent.client), allow=False, literal=True)
        yield Rule("subscribe", topics.of("reply", client="+"), allow=False, literal=True)
        yield from _hears(topics.of("reply", client="+"))
        return
    yield from _hears(topics.of("reply", client=login.client), literal=True)
    yield from _hears(topics.of("direct", role=login.role, agent=login.name, method="+"))
    yield Rule("subscribe", topics.shared(login.role), literal=True)
    yield Rule("receive", topics.of("call", role=login.role, method="+"))


def _hears(pattern: str, *, allow: bool = True, literal: bool = False) -> Iterator[Rule]:
    yield Rule("subscribe", pattern, allow, literal)
    yield Rule("receive", pattern, allow)


def _levels(row: Topic, **known: str) -> dict[str, str]:
    fields = [name for _, name, _, _ in string.Formatter().parse(row.template) if name]
    return {name: known.get(name, "+") for name in fields}


def publishes(role: str, topic: str) -> bool:
    """Tell whether a role publishes on a row of the topic table at all."""
    row = BY_NAME[topic]
    return (
        role in row.publishers
        or (AGENTS in row.publishers and role in ROLES)
        or (CALLERS in row.publishers and bool((ADDRESSES if topic == "direct" else CALLS).get(role)))
        or (CALLEES in row.publishers and bool(served_by(role)))
    )


def reads(role: str, topic: str) -> bool:
    """Tell whether a role reads a row of the topic table at all."""
    row = BY_NAME[topic]
    return (
        role in row.readers
        or (AGENTS in row.readers and role in ROLES)
        or (CALLEES in row.readers and bool(served_by(role)))
        or (CALLERS in row.readers and (role in CALLS or role in ADDRESSES))
    )
