"""Mosquitto's rules from the access table, as its dynamic-security plugin reads them.

The plugin, and not an `acl_file`: Mosquitto 2.0 does not check subscriptions against the latter, so a stranger in
`$share/router/…` was handed requests that were then dropped, which lost them (docs/decisions/0008-access.md).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocol.access import WORKERS, Login, Rule, rules, workers_rules
from protocol.topics import OPERATOR, USER, Topics

CONTROL = "$CONTROL/dynamic-security/v1"
"""Where the plugin takes commands; its answers come on `/response` below it."""
RULES = "dynamic-security.json"
"""The plugin's file, which it writes again after each command that changed something."""
DOOR = "door"
"""The role of `bus.door`: a person who also reads how many shared subscriptions there are."""
SHARED = "$SYS/broker/shared_subscriptions/count"
"""Where Mosquitto tells, at most `sys_interval` seconds late, how many shared subscriptions it has: one for each agent,
whether connected or away; after a restart of the broker none (measured on 2.0.11 and 2.1.2)."""
_COMMANDS = (
    ("publishClientSend", CONTROL), ("publishClientReceive", f"{CONTROL}/response"),
    ("subscribeLiteral", f"{CONTROL}/response"),
)  # fmt: skip
EXTRA = {
    OPERATOR: _COMMANDS,
    "gpu_orchestrator": _COMMANDS,
    DOOR: (("publishClientReceive", SHARED), ("subscribeLiteral", SHARED)),
}
"""What a role may do beside the lab's topics: who owns the home, and who rents machines, adds logins while the broker runs
(docs/decisions/0033-workers.md)."""
ROUNDS = 101
"""PBKDF2 rounds. Few are enough: the passwords are 192 random bits, not words."""


@dataclass(frozen=True)
class Secret:
    """A login and what proves it.

    Attributes:
        login: who.
        password: its password, or the stored form of it.
    """

    login: Login
    password: str | Mapping[str, Any]


def dynamic_security(
    secrets_: Iterable[Secret], topics: Topics, *, anonymous: bool, before: Mapping[str, Any] | None = None
) -> str:
    """Return the plugin's configuration: everything is refused but what the table allows.

    Args:
        secrets_: all logins but those of workers; persons (role USER) share one set of rules.
        topics: the lab's topics.
        anonymous: whether who comes without a login is a person.
        before: the configuration as the plugin left it: its workers are kept.
    """
    known = list(secrets_)
    logins = [secret.login for secret in known]
    person = Login(USER, USER, USER)
    roles = {USER: rules(person, logins, topics)}
    for login in logins:
        if login.role != USER:
            roles[login.name] = rules(person if login.role == DOOR else login, logins, topics)
    roles[WORKERS] = workers_rules(logins, topics)
    kinds = {login.name: login.role for login in logins}
    workers, own_roles = _workers(before or {})
    document: dict[str, Any] = {
        "defaultACLAccess": {
            "publishClientSend": False, "publishClientReceive": False, "subscribe": False, "unsubscribe": True,
        },
        "clients": [*(_client(secret) for secret in known), *workers],
        "groups": [{"groupname": USER, "roles": [{"rolename": USER}]}],
        "roles": [
            *(
                {"rolename": name, "acls": acls(found, EXTRA.get(kinds.get(name, name), ()))}
                for name, found in roles.items()
            ),
            *own_roles,
        ],
    }  # fmt: skip
    if anonymous:
        document["anonymousGroup"] = USER
    return json.dumps(document, indent=1) + "\n"


def stored(password: str) -> dict[str, Any]:
    """Return a password in the plugin's form: PBKDF2-SHA512 with a salt."""
    salt = secrets.token_bytes(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS)
    return {"password": base64.b64encode(key).decode(), "salt": base64.b64encode(salt).decode(), "iterations": ROUNDS}


def _workers(before: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the logins of workers in a configuration, and the roles that each has for itself."""
    clients = [
        client for client in before.get("clients", ())
        if WORKERS in [role.get("rolename") for role in client.get("roles", ())]
    ]  # fmt: skip
    names = {client["username"] for client in clients}
    return clients, [role for role in before.get("roles", ()) if role.get("rolename") in names]


def _client(secret: Secret) -> dict[str, Any]:
    password = stored(secret.password) if isinstance(secret.password, str) else dict(secret.password)
    role = USER if secret.login.role == USER else secret.login.name
    return {"username": secret.login.name, **password, "roles": [{"rolename": role}]}


def acls(found: Iterable[Rule], extra: Iterable[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """Return rules as the plugin has them, the first with the highest priority."""
    listed = [(_kind(rule), rule.topic, rule.allow) for rule in found]
    listed += [(kind, topic, True) for kind, topic in extra]
    count = len(listed)
    return [
        {"acltype": kind, "topic": topic, "priority": count - place, "allow": allow}
        for place, (kind, topic, allow) in enumerate(listed)
    ]


def _kind(rule: Rule) -> str:
    if rule.action == "subscribe":
        return "subscribeLiteral" if rule.literal else "subscribePattern"
    return "publishClientSend" if rule.action == "publish" else "publishClientReceive"
