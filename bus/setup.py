"""Everything that a broker in a container and its agents need to know each other, written to a folder.

    python -m bus.setup FOLDER --agents router-1,conductor-1 --host broker --as /mosquitto/config

    FOLDER/authority/   the private key that signs certificates; nobody else needs it
    FOLDER/broker/      mosquitto.conf, access rules and certificate, for the broker's /mosquitto/config
    FOLDER/<login>/     password and ca.pem, for each agent, for `door` and for `operator`

A second run keeps passwords and certificates, and renews a certificate that ends soon.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bus import certs
from bus.acl import DOOR, RULES, Secret, dynamic_security
from bus.address import BrokerAddress
from bus.files import read_json, write_private
from bus.mosquitto import PLUGIN, logging, storage
from protocol.access import ROLES, Login
from protocol.address import TLS_PORT
from protocol.errors import Code, LabError
from protocol.topics import OPERATOR, Topics

CONFIG, DATA = "/mosquitto/config", "/mosquitto/data"
"""Folders of the official broker image."""
SYS_INTERVAL = 1
"""Seconds between two looks of the broker at its own numbers; the door waits for one of them."""


def role_of(agent: str) -> str:
    """Return the role that an agent's id `<role>-<number>` names.

    Raises:
        LabError: CONFIGURATION when there is no such role.
    """
    role, _, number = agent.rpartition("-")
    if role not in ROLES or not number:
        raise LabError(
            Code.CONFIGURATION, f"{agent!r} is not the id of an agent.",
            advice=f"An id is ROLE-NUMBER, and the roles are {', '.join(ROLES)}.", field="agents",
        )  # fmt: skip
    return role


def write(
    folder: Path, agents: Iterable[str], *, hosts: Iterable[str], inside: str = CONFIG, data: str = DATA,
    plugin: str = PLUGIN, port: int = TLS_PORT, lab: str = "lab", now: datetime, owners: Mapping[str, int] | None = None,
) -> list[certs.Certificate]:  # fmt: skip
    """Write what is missing; see the module.

    Args:
        folder: where.
        agents: ids of the agents.
        hosts: names under which the broker is reached.
        inside: where the broker finds FOLDER/broker.
        data: where the broker keeps its database.
        plugin: the dynamic-security plugin where the broker runs; its bare name is found in the system's folders.
        port: where the broker listens.
        lab: the lab's name.
        now: the time.
        owners: login, or `broker`, to the user id that owns its folder; default: whoever runs this.

    Returns:
        The certificates.
    """
    roles = {agent: role_of(agent) for agent in agents} | {DOOR: DOOR, OPERATOR: OPERATOR}
    known = []
    for name, role in roles.items():
        password = _password(folder / name)
        client = BrokerAddress(password=password).client(name) if role in ROLES else name
        known.append(Secret(Login(name, role, client), password))
    made = certs.make(folder / "authority", hosts=hosts, now=now)
    for name in roles:
        _copy(folder / "authority" / "ca.pem", folder / name)
    broker = folder / "broker"
    _private(broker)
    for file in ("broker.pem", "broker.key"):
        _copy(folder / "authority" / file, broker)
    before = read_json(broker / RULES)
    write_private(broker / RULES, dynamic_security(known, Topics(lab), anonymous=False, before=before))
    write_private(broker / "mosquitto.conf", configuration(inside, data, plugin, port))
    for name, owner in (owners or {}).items():
        _give(folder / name, owner)
    return made


def configuration(inside: str, data: str, plugin: str, port: int) -> str:
    """Return the mosquitto.conf of a broker in a container: one listener, with TLS, and nobody without a login."""
    lines = [
        "# Written by `python -m bus.setup` at every start; edits are lost.",
        f"listener {port}",
        f"certfile {inside}/broker.pem",
        f"keyfile {inside}/broker.key",
        "tls_version tlsv1.2",  # the least; 1.3 is spoken where the other side can
        "allow_anonymous false",
        f"plugin {plugin}",
        f"plugin_opt_config_file {inside}/{RULES}",
        *storage(f"{data}/"),
        f"sys_interval {SYS_INTERVAL}",
        *logging("stderr"),  # to a pipe, stdout is buffered: the last words would be missing
    ]
    return "\n".join(lines) + "\n"


def _password(folder: Path) -> str:
    _private(folder)
    path = folder / "password"
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    password = secrets.token_urlsafe(24)
    write_private(path, password + "\n")
    return password


def _private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def _copy(file: Path, folder: Path) -> None:
    mode = 0o600 if file.suffix == ".key" else 0o644
    write_private(folder / file.name, file.read_bytes(), mode=mode)


def _give(folder: Path, owner: int) -> None:
    if not folder.is_dir():
        raise LabError(
            Code.CONFIGURATION, f"--owner names {folder.name!r}, which is no login.",
            advice="Name an agent of --agents, door, operator or broker.", field="owner",
        )  # fmt: skip
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner, owner)


def _owner(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not LOGIN=UID")
    return name, int(number)


def main(arguments: list[str] | None = None) -> int:
    """Write the folder; exits with 2 when something has to be corrected first."""
    parser = argparse.ArgumentParser(
        prog="python -m bus.setup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--agents", required=True, help="ids of the agents, by commas")
    parser.add_argument("--host", action="append", default=[], help="a name of the broker; may be repeated")
    parser.add_argument("--as", dest="inside", default=CONFIG, help="where the broker finds FOLDER/broker")
    parser.add_argument("--data", default=DATA, help="where the broker keeps its database")
    parser.add_argument("--plugin", default=PLUGIN, help="the dynamic-security plugin where the broker runs")
    parser.add_argument("--port", type=int, default=TLS_PORT)
    parser.add_argument("--lab", default=os.environ.get("MEETARA_LAB", "lab"))
    parser.add_argument(
        "--owner", action="append", default=[], type=_owner, metavar="LOGIN=UID",
        help="who owns a login's folder, or the broker's; may be repeated",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    agents = [agent for agent in options.agents.split(",") if agent]
    try:
        made = write(
            options.folder.absolute(), agents, hosts=options.host or ["broker"], inside=options.inside.rstrip("/"),
            data=options.data.rstrip("/"), plugin=options.plugin, port=options.port, lab=options.lab,
            now=datetime.now(UTC), owners=dict(options.owner),
        )  # fmt: skip
    except LabError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"setup: {error.filename} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    for certificate in made:
        print(f"{certificate.name}.pem {certificate.done}, valid until {certificate.expires:%Y-%m-%d}")
    print(f"{len(agents)} agents, {DOOR} and {OPERATOR} know the broker")
    return 0


if __name__ == "__main__":
    sys.exit(main())
