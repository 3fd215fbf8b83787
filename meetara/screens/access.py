"""`meetara certs` and `meetara user`: what people from elsewhere need to come in."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from typing import Any

from bus import certs as certificates
from bus import users
from bus.broker import PASSWORDS
from bus.files import read_json
from configs import Settings
from meetara.door import OK, emit
from meetara.home import operator_of
from meetara.listener import certs_folder


def certs(flags: dict[str, Any], hosts: list[str], agents: list[str], *, force: bool, as_json: bool) -> int:
    """Make the certificates that are missing, renew those that end soon, and tell until when they are valid."""
    folder = certs_folder(Settings.read(**flags).home)
    if not hosts and not (folder / f"{certificates.BROKER}.pem").exists():
        hosts = [socket.gethostname()]
    found = certificates.make(folder, hosts=hosts, agents=agents, now=datetime.now(UTC), force=force)
    names = certificates.known_hosts(folder)
    if as_json:
        emit({
            "hosts": names,
            "certificates": [
                {"name": item.name, "file": str(item.path), "expires": item.expires.isoformat(), "done": item.done}
                for item in found
            ],
        })  # fmt: skip
        return OK
    for item in found:
        print(f"{item.path}  {item.done}, valid until {item.expires:%Y-%m-%d}")
    print(f"The broker is known as {', '.join(names)}.")
    print(f"Whoever connects from elsewhere needs a copy of {folder / 'ca.pem'} (MEETARA_BROKER_CA).")
    if any(item.done != "kept" for item in found):
        print("A lab that runs shows them after its next start.")
    return OK


def add_user(flags: dict[str, Any], name: str, *, as_json: bool) -> int:
    """Make a login; a lab that runs knows it at once."""
    home = Settings.read(**flags).home
    password = users.add(home / "broker", name, read_json(home / "broker" / PASSWORDS))
    operator = operator_of(home)
    if operator is not None:
        asyncio.run(users.tell_added(operator, name, password))
    if as_json:
        emit({"user": name, "password": password})
    else:
        print(f"MEETARA_BROKER_USER={name}\nMEETARA_BROKER_PASSWORD={password}\nThe password is shown only now.")
    return OK


def remove_user(flags: dict[str, Any], name: str, *, as_json: bool) -> int:
    """Forget a login; a lab that runs cuts its connections."""
    home = Settings.read(**flags).home
    users.remove(home / "broker", name)
    operator = operator_of(home)
    if operator is not None:
        asyncio.run(users.tell_removed(operator, name))
    if as_json:
        emit({"removed": name})
    else:
        print(f"{name} is no login any more.")
    return OK


def list_users(flags: dict[str, Any], *, as_json: bool) -> int:
    """List the logins of people."""
    names = sorted(users.known(Settings.read(**flags).home / "broker"))
    if as_json:
        emit({"users": names})
    else:
        print("\n".join(names) if names else "No logins; people on this machine need none.")
    return OK
