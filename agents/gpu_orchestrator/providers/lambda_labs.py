"""Lambda On-Demand Cloud (API 1.4 to 1.10).

No spot machines, no stop, no bill in the API. At most one launch per 12 s (10 s until 2025). An instance boots Ubuntu with
Docker; the worker's container is started by cloud-init (`user_data`, since 1.8). Its name is the tag.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import httpx2
from pydantic import SecretStr

from agents.gpu_orchestrator.market.gpus import gpu_name
from agents.gpu_orchestrator.providers.amounts import Usd, micros
from agents.gpu_orchestrator.providers.api import OR_NONE, Answer, Api, Row
from agents.gpu_orchestrator.providers.provider import (
    AuthFailed,
    Instance,
    NoCapacity,
    Order,
    Phase,
    ProviderError,
    QuotaExceeded,
    Unknown,
)
from protocol.machine import Listing

LAUNCH_PAUSE_S = 12.0
"""Between two launches, by the introduction of the specification 1.10; every 429 of a launch is about it."""
LONGEST_NAME = 64
DESCRIPTION = re.compile(r"(?P<gpus>\d+)x (?P<gpu>.+?) \((?P<gb>\d+) GB")
"""As in `1x A10 (24 GB PCIe)`; the API tells GPUs and their memory nowhere else."""
PHASES = {"booting": Phase.STARTING, "terminating": Phase.STOPPING, "preempted": Phase.STOPPING, "terminated": Phase.GONE}
"""`active`, `unhealthy` and words that nobody knows are running: they may cost money."""
CODES: dict[str, type[ProviderError]] = {
    "instance-operations/launch/insufficient-capacity": NoCapacity,
    "global/quota-exceeded": QuotaExceeded,
    "global/invalid-api-key": AuthFailed,
    "global/account-inactive": AuthFailed,
    "global/invalid-address": AuthFailed,
}
ABSENT = "global/object-does-not-exist"


class _Region(Row):
    name: str


class _Specs(Row):
    vcpus: int = 0
    memory_gib: int = 0
    storage_gib: int = 0


class _Type(Row):
    name: str
    description: str = ""
    price_cents_per_hour: Usd
    specs: _Specs


class _Offered(Row):
    instance_type: _Type
    regions_with_capacity_available: list[_Region]


class _Types(Row):
    data: dict[str, object]


class _Instance(Row):
    id: str
    name: str | None = None
    status: str
    region: Annotated[_Region | None, OR_NONE] = None
    instance_type: Annotated[_Type | None, OR_NONE] = None


class _One(Row):
    data: _Instance


class _Many(Row):
    data: list[_Instance]


class _Launched(Row):
    instance_ids: list[str]


class _Launch(Row):
    data: _Launched


class _Terminated(Row):
    terminated_instances: list[_Instance]


class _Termination(Row):
    data: _Terminated


class _Key(Row):
    name: str


class _Keys(Row):
    data: list[_Key]


class LambdaLabs:
    """One account at Lambda.

    Args:
        ssh_key: name of the SSH key with which instances are launched, which Lambda wants; None: the account's first one.
    """

    name = "lambda"
    bills = False

    def __init__(
        self, key: SecretStr, clock: Callable[[], datetime], *, url: str, ssh_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._api = Api(self.name, url, key, clock, pause=1.0, transport=transport)
        self.fingerprint = self._api.fingerprint
        self._ssh_key = ssh_key

    async def account(self) -> str | None:
        """Return None: no version of the API tells it."""
        return None

    async def listings(self) -> Sequence[Listing]:
        answer = await self._get("/instance-types")
        found = []
        for offered in self._api.rows(_Offered, self._api.read(_Types, answer).data.values()):
            kind = offered.instance_type
            told = DESCRIPTION.match(kind.description)
            for region in offered.regions_with_capacity_available:
                found.append(
                    Listing(
                        provider=self.name, id=f"{kind.name}@{region.name}", region=region.name,
                        gpu=gpu_name(told["gpu"], int(told["gb"]) * 2**30) if told else "", gpus=int(told["gpus"]) if told else 0,
                        gpu_memory_bytes=int(told["gb"]) * 2**30 if told else 0, cores=kind.specs.vcpus,
                        memory_bytes=kind.specs.memory_gib * 2**30, disk_bytes=kind.specs.storage_gib * 2**30,
                        price_micros_per_hour=micros(kind.price_cents_per_hour, per=100), seen_at=self._api.clock(),
                    )
                )  # fmt: skip
        return found

    async def launch(self, order: Order) -> Instance:
        if not 0 < len(order.tag) <= LONGEST_NAME:
            raise Unknown(self.name, f"the tag {order.tag!r} is longer than the {LONGEST_NAME} characters of a name", sure=True)
        kind, _, region = order.listing.id.partition("@")
        body = {
            "region_name": region, "instance_type_name": kind, "ssh_key_names": [await self._key()], "name": order.tag,
            "user_data": _script(order),
        }  # fmt: skip
        answer = await self._api.call("POST", "/instance-operations/launch", effect=True, body=body)
        if answer.status != 200:
            if answer.status == 429 and answer.retry_after is None:
                answer = Answer(answer.status, answer.body, LAUNCH_PAUSE_S)
            raise self._error(answer, effect=True)
        ids = self._api.read(_Launch, answer, effect=True).data.instance_ids
        if len(ids) != 1:
            raise Unknown(self.name, f"it launched {len(ids)} instances where one was asked for")
        return Instance(
            self.name, ids[0], order.tag, Phase.STARTING, gpu=order.listing.gpu, region=region
        )

    async def list(self, prefix: str) -> Sequence[Instance]:
        instances = self._api.read(_Many, await self._get("/instances")).data
        return [self._instance(instance) for instance in instances if (instance.name or "").startswith(prefix)]

    async def status(self, id: str) -> Instance | None:
        answer = await self._api.call("GET", f"/instances/{quote(id, safe='')}")
        if answer.status == 404 and _code(answer) == ABSENT:
            return None
        if answer.status != 200:
            raise self._error(answer)
        return self._instance(self._api.read(_One, answer).data)

    async def terminate(self, id: str) -> None:
        answer = await self._api.call("POST", "/instance-operations/terminate", effect=True, body={"instance_ids": [id]})
        if answer.status == 404 and _code(answer) == ABSENT:
            return
        if answer.status != 200:
            raise self._error(answer, effect=True)
        done = self._api.read(_Termination, answer, effect=True).data.terminated_instances
        if id not in [instance.id for instance in done]:  # the specification: the list might not contain all
            raise Unknown(self.name, f"it did not take {id} among the instances to terminate")

    async def billed(self, id: str, since: datetime) -> int | None:
        """Return None: no version of the API tells what was charged."""
        return None

    async def close(self) -> None:
        await self._api.close()

    async def _get(self, path: str) -> Answer:
        answer = await self._api.call("GET", path)
        if answer.status != 200:
            raise self._error(answer)
        return answer

    async def _key(self) -> str:
        if self._ssh_key is None:
            keys = self._api.read(_Keys, await self._get("/ssh-keys")).data
            if not keys:
                raise AuthFailed(self.name, "the account has no SSH key, and nothing is launched without one; add one there")
            self._ssh_key = keys[0].name
        return self._ssh_key

    def _instance(self, told: _Instance) -> Instance:
        kind = told.instance_type
        described = DESCRIPTION.match(kind.description) if kind else None
        return Instance(
            self.name, told.id, told.name or "", PHASES.get(told.status, Phase.RUNNING),
            gpu=gpu_name(described["gpu"], int(described["gb"]) * 2**30) if described else "", region=told.region.name if told.region else "",
            price_micros_per_hour=micros(kind.price_cents_per_hour, per=100) if kind else None,
        )  # fmt: skip

    def _error(self, answer: Answer, *, effect: bool = False) -> ProviderError:
        """Return the error of an answer: by its code where the vendor refuses, else by its status."""
        code = _code(answer)
        reason = f"{answer.status}: {self._api.quote(code)}" if code else f"it answered {answer.status}"
        if 400 <= answer.status < 500 and answer.status != 429 and code in CODES:
            return CODES[code](self.name, reason)
        if code.startswith("provider/"):  # of a service behind Lambda's, so what it did is not known
            return Unknown(self.name, reason, sure=not effect)
        return self._api.error(answer, reason, effect)


def _code(answer: Answer) -> str:
    error = answer.body.get("error") if isinstance(answer.body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def _script(order: Order) -> str:
    """Return the cloud-init script that starts the worker's container; it stands in a folder that only root reads."""
    settings = " ".join(f"--env {shlex.quote(f'{name}={value}')}" for name, value in sorted(order.environment.items()))
    gpus = "--gpus all " if order.listing.gpus else ""
    return f"#!/bin/sh\nexec docker run --name meetara-worker --network host {gpus}{settings} {shlex.quote(order.image)}\n"
