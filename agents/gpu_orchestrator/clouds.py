"""What the orchestrator rents machines with: the vendors whose keys are set, and a way in for the workers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from agents.gpu_orchestrator.providers.provider import Provider
from agents.gpu_orchestrator.providers.registry import open_providers
from agents.gpu_orchestrator.rentals import admission
from agents.gpu_orchestrator.rentals.keeper import TICK, Admission
from agents.gpu_orchestrator.rentals.life import Limits
from agents.gpu_orchestrator.rentals.owner import REPLACED
from bus import Wiring, certs
from bus.address import is_loopback
from configs import Configs, accounts
from protocol import Code, LabError
from protocol.address import Endpoint

NEEDED = {"public": "MEETARA_PUBLIC", "worker_image": "MEETARA_WORKER_IMAGE", "store": "MEETARA_STORE"}
"""Settings without which nothing can be rented: a machine that cannot reach this lab, or its data, costs money for nothing."""
GIVEN = "MEETARA_WORKER_ENV_"
"""A variable whose name begins so is given to workers without that beginning: keys of the store or of a hub, MEETARA_SHUTDOWN."""


@dataclass(frozen=True)
class Clouds:
    """What rents machines.

    Attributes:
        providers: by name.
        admission: lets workers in.
        image: container image of the worker.
        limits: how long things may take.
        tick: seconds between two looks at the rentals.
        closed: why nothing more is rented; empty: it is. What is rented already is kept, billed and ended all the same.
        replaced: fingerprints of earlier keys that the lab's owner answers for.
    """

    providers: Mapping[str, Provider]
    admission: Admission
    image: str
    limits: Limits = field(default_factory=Limits)
    tick: float = TICK
    closed: str = ""
    replaced: frozenset[str] = frozenset()


def replaced(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the fingerprints of keys whose account the present keys have, or whose machines the owner has ended.

    Raises:
        LabError: CONFIGURATION; something in it is none, perhaps a key, so it is not told.
    """
    words = environment.get(REPLACED, "").replace(",", " ").split()
    if not all(re.fullmatch("[0-9a-f]{16}", word) for word in words):
        raise LabError(
            Code.CONFIGURATION, f"{REPLACED} holds something that is no fingerprint of a key.",
            advice="Give the 16 hexadecimal digits that the provider's status names, several with commas between them; never a key.",
            field=REPLACED,
        )  # fmt: skip
    return frozenset(words)


def given(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the owner gives to all workers.

    Raises:
        LabError: CONFIGURATION; it is a vendor's key, which no worker may have.
    """
    found = {name.removeprefix(GIVEN): value for name, value in environment.items() if name.startswith(GIVEN)}
    for name in sorted(found.keys() & accounts.SECRETS):
        raise LabError(
            Code.CONFIGURATION, f"{GIVEN}{name} would give a vendor's key to rented machines.",
            advice="Unset it: whoever has such a key can spend your money. Workers need none.", field=f"{GIVEN}{name}",
        )  # fmt: skip
    return found


def open_sellers(environment: Mapping[str, str]) -> dict[str, Provider]:
    """Return the providers with a key in the environment, to ask what they sell, whether or not anything can be rented.

    Raises:
        LabError: CONFIGURATION; a key or an address cannot be one.
    """
    return open_providers(accounts.read(environment))


def open_clouds(wiring: Wiring, configs: Configs, environment: Mapping[str, str]) -> Clouds | None:
    """Return what can be rented with the keys in the environment; None: no key is set.

    Where something else is missing nothing more is rented, and the log says what; what is rented already is looked after.

    Raises:
        LabError: CONFIGURATION; a key or an address cannot be one.
    """
    keys = accounts.read(environment)
    if not keys:
        return None
    settings = configs.settings
    near = settings.public is not None and is_loopback(Endpoint.parse(settings.public).host)  # it sees this machine's files
    missing = [
        variable for name, variable in NEEDED.items() if getattr(settings, name) is None and not (near and name == "store")
    ]
    closed = ""
    if missing:
        closed = f"nothing is rented: {', '.join(missing)} not set, so workers could not reach this lab or its data."
        structlog.get_logger().warning("nothing is rented", keys=sorted(keys), reason=closed)
    authority = wiring.home / "certs" / f"{certs.AUTHORITY}.pem"
    entrance = admission.Admission(
        wiring.broker, settings.public or "", wiring.lab, authority if authority.exists() else None, given(environment)
    )
    terms = configs.providers.rented
    limits = Limits(
        setup=timedelta(seconds=terms.provisioning_seconds), boot=timedelta(seconds=terms.boot_seconds),
        idle=timedelta(seconds=terms.idle_seconds),
    )  # fmt: skip
    return Clouds(
        open_providers(keys), entrance, settings.worker_image or "", limits=limits, closed=closed,
        replaced=replaced(environment),
    )  # fmt: skip
