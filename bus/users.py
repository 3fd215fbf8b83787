"""Persons with a login of their own: kept in the home, and told to the broker while it runs."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiomqtt

from bus.acl import CONTROL, stored
from bus.address import BrokerAddress
from bus.files import read_json, write_private
from bus.session import Session
from protocol import Code, LabError, uuid7
from protocol.access import ROLES, rental_of
from protocol.topics import OPERATOR, USER

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
"""A person's login; it stands in files and logs."""
FILE = "users.json"
"""Each person's name with the stored form of the password."""
CONTROL_SECONDS = 10.0
"""The plugin answers at once; longer means that it is not there."""


def known(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the persons of a broker's folder, each with the stored form of the password."""
    return read_json(folder / FILE)


def add(folder: Path, name: str, taken: Mapping[str, object]) -> str:
    """Make a login and return its password, which is kept nowhere.

    Args:
        folder: the broker's folder.
        name: the person's name.
        taken: logins of agents and of the operator.

    Raises:
        LabError: INVALID_PARAMS when the name cannot be a login; CONFLICT when there is one of that name.
    """
    if not NAME.fullmatch(name):
        raise LabError(
            Code.INVALID_PARAMS, f"{name!r} cannot be a login.",
            advice="Use at most 64 letters, digits and _ . @ -, beginning with a letter or a digit.", field="name",
        )  # fmt: skip
    people = known(folder)
    if name in people or name in taken or name in (USER, OPERATOR) or name.rpartition("-")[0] in ROLES or rental_of(name):
        raise LabError(
            Code.CONFLICT, f"{name!r} is a login already, or an agent's name.",
            advice=f"Choose another name, or remove it first: meetara user remove {name}.", field="name",
        )  # fmt: skip
    password = secrets.token_urlsafe(18)
    _write(folder, {**people, name: stored(password)})
    return password


def remove(folder: Path, name: str) -> None:
    """Forget a login.

    Raises:
        LabError: NOT_FOUND.
    """
    people = known(folder)
    if name not in people:
        listed = ", ".join(sorted(people)) or "none"
        raise LabError(Code.NOT_FOUND, f"there is no login {name!r}.", advice=f"There are: {listed}.", field="name")
    _write(folder, {other: password for other, password in people.items() if other != name})


def _write(folder: Path, people: Mapping[str, Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_private(folder / FILE, json.dumps(people, indent=1) + "\n")


async def tell_added(operator: BrokerAddress, name: str, password: str) -> None:
    """Make a login known to a broker that runs."""
    await control(operator, {"command": "createClient", "username": name, "password": password,
                             "roles": [{"rolename": USER}]})  # fmt: skip


async def tell_removed(operator: BrokerAddress, name: str) -> None:
    """Make a broker that runs forget a login, and cut its connections."""
    await control(operator, {"command": "deleteClient", "username": name})


async def control(operator: BrokerAddress, *commands: Mapping[str, Any]) -> None:
    """Give commands to the dynamic-security plugin of a broker that runs.

    Raises:
        LabError: INTERNAL with the plugin's words; UNREACHABLE when it does not answer.
    """
    found = await ask(operator, *commands)
    wrong = [f"{item['command']}: {item['error']}" for item in found if "error" in item]
    if wrong:
        raise LabError(Code.INTERNAL, f"the broker refused a command: {'; '.join(wrong)}.")


async def ask(operator: BrokerAddress, *commands: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give commands to the plugin and return its answer to each: `data`, or `error` with its words.

    Raises:
        LabError: UNREACHABLE when it does not answer.
    """
    mark = uuid7()
    marked = [{**command, "correlationData": mark} for command in commands]
    found: list[dict[str, Any]] = []
    try:
        async with (
            asyncio.timeout(CONTROL_SECONDS),
            Session.connect(operator, f"meetara-control-{mark}", durable=False) as session,
        ):
            await session.subscribe(f"{CONTROL}/response")
            await session.publish(CONTROL, json.dumps({"commands": marked}).encode())
            async for incoming in session:
                session.ack(incoming)
                responses = json.loads(incoming.payload)["responses"]
                found = [item for item in responses if item.get("correlationData") == mark]
                if found:
                    break
    except (TimeoutError, aiomqtt.MqttError) as error:
        raise LabError(
            Code.UNREACHABLE, f"the broker at {operator} took no command: {error or 'no answer'}.",
            advice="It knows the login from its next start on.",
        ) from error  # fmt: skip
    return found
