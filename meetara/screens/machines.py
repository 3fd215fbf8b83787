"""`meetara machine`: machines that people lend to the lab, by a token each."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from bus import certs, workers
from bus.address import BrokerAddress
from configs import Settings
from meetara.door import OK, emit
from meetara.home import Up, operator_of, running
from meetara.listener import certs_folder
from protocol import Code, LabError
from protocol.access import LENT, is_lent, rental_of, worker_name
from protocol.machine import LENT as PROVIDER

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""A machine's name; it stands in topics, file names and client ids."""


def add(flags: dict[str, Any], name: str, *, as_json: bool) -> int:
    """Let a machine in and show its token, once."""
    settings = Settings.read(**flags)
    if not NAME.fullmatch(name):
        raise LabError(
            Code.INVALID_PARAMS, f"{name!r} cannot be a machine's name.",
            advice="Use at most 32 small letters, digits and _ -, beginning with a letter or a digit.", field="name",
        )  # fmt: skip
    up, operator = _lab(settings.home)
    if name in asyncio.run(_known(operator)):
        raise LabError(
            Code.CONFLICT, f"there is a machine {name!r} already.",
            advice=f"Choose another name, or remove it first: meetara machine remove {name}.", field="name",
        )  # fmt: skip
    authority = certs_folder(settings.home) / f"{certs.AUTHORITY}.pem"
    token = workers.make(f"{LENT}{name}", provider=PROVIDER, lab=up.lab, ca=authority if authority.exists() else None)
    asyncio.run(workers.admit(operator, token, []))
    notes = [] if settings.store else [
        "MEETARA_STORE is not set: no job's data can reach another machine until it is (docs/worker.md)."
    ]  # fmt: skip
    if settings.public is None:
        notes.append("MEETARA_PUBLIC is not set: put in how that machine reaches this lab (meetara up --listen …).")
    broker = settings.public or "mqtts://HOST:8883"
    if as_json:
        emit({"machine": name, "worker": token.worker, "token": str(token), "broker": broker, "notes": notes})
        return OK
    print(f"On {name}, with the lab's program of this version:\n")
    print(f"export {workers.VARIABLE}={token}\nmeetara worker --broker {broker} --idle 86400\n")
    print("\n".join(["The token is shown only now; whoever has it is this machine.", *notes]))
    return OK


def remove(flags: dict[str, Any], name: str, *, as_json: bool) -> int:
    """End a machine's login; a job that runs there goes on elsewhere."""
    up, operator = _lab(Settings.read(**flags).home)
    known = asyncio.run(_known(operator))
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise LabError(Code.NOT_FOUND, f"there is no machine {name!r}.", advice=f"There are: {listed}.", field="name")
    asyncio.run(workers.dismiss(operator, worker_name(f"{LENT}{name}"), up.lab))
    if as_json:
        emit({"removed": name})
    else:
        print(f"{name} is let in no more; a job that runs there goes on elsewhere.")
    return OK


def listed(flags: dict[str, Any], *, as_json: bool) -> int:
    """List the machines that are lent; `meetara agents` tells which are there."""
    _, operator = _lab(Settings.read(**flags).home)
    names = sorted(asyncio.run(_known(operator)))
    if as_json:
        emit({"machines": names})
    else:
        print("\n".join(names) if names else "Nobody lends a machine to this lab; `meetara machine add NAME` makes a token for one.")
    return OK


async def _known(operator: BrokerAddress) -> set[str]:
    """Return the names of the machines that are lent."""
    rentals = map(rental_of, await workers.admitted(operator))
    return {rental.removeprefix(LENT) for rental in rentals if rental is not None and is_lent(rental)}


def _lab(home: Path) -> tuple[Up, BrokerAddress]:
    """Return the lab that runs on a home, and its broker with the operator's login."""
    up, operator = running(home), operator_of(home)
    if up is None or operator is None:
        raise LabError(
            Code.UNREACHABLE, f"no lab with a broker of its own runs on {home}.",
            advice="Start it first (`meetara up`): its broker keeps the tokens of machines.", file=str(home),
        )  # fmt: skip
    return up, operator
