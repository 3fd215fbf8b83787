"""RunPod (REST API v2; v1 for spot pods, which v2 does not know).

A pod runs the worker's image as it is. Its name is the tag. An answer to a launch that says 400 may mean "no capacity" or "a
broken rule": the vendor tells them apart by a sentence only, and advises to try the next candidate. The account has a spend limit
($80 per hour by default); at a balance of $0 pods are destroyed. A stopped pod's disk costs until it is terminated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated
from urllib.parse import quote

import httpx2
from pydantic import AwareDatetime, SecretStr

from agents.gpu_orchestrator.market.gpus import gpu_name
from agents.gpu_orchestrator.providers.amounts import HOURS_PER_MONTH, Usd, micros
from agents.gpu_orchestrator.providers.api import OR_NONE, Answer, Api, Row
from agents.gpu_orchestrator.providers.provider import (
    Instance,
    NoCapacity,
    Order,
    Phase,
    ProviderError,
    QuotaExceeded,
    Unknown,
)
from protocol.machine import Listing

LONGEST_NAME = 191
"""Of a pod (v1; v2 names no limit)."""
DISK_USD_PER_GB_MONTH = Decimal("0.10")
"""Container disk of a running pod, by the vendor's price list of 2026; neither API tells it, so it may have changed."""
PHASES = {
    "PROVISIONING": Phase.STARTING, "STARTING": Phase.STARTING, "RUNNING": Phase.RUNNING, "EXITED": Phase.STOPPING,
    "ERROR": Phase.STOPPING, "TERMINATED": Phase.GONE,
}  # fmt: skip
"""A spot pod that was taken away is EXITED; words that nobody knows are running: they may cost money."""
MONEY = re.compile(r"(?i)balance|insufficient funds|spend(ing)? limit")
"""Words of a refusal that no other machine would mend. Not in the specification, which has 402 for the balance alone."""


class _Place(Row):
    id: str
    availability: str


class _Prices(Row):
    secure: Usd
    community: Usd


class _Gpu(Row):
    id: str
    memory: int
    secure: bool
    community: bool
    price: _Prices
    availability: str = "NONE"
    dataCenters: tuple[_Place, ...] = ()


class _Gpus(Row):
    gpus: list[object]


class _PodGpu(Row):
    id: str


class _Pod(Row):
    id: str
    name: str
    status: str
    cost: Annotated[Usd | None, OR_NONE] = None
    gpu: Annotated[_PodGpu | None, OR_NONE] = None
    dataCenterId: Annotated[str | None, OR_NONE] = None
    createdAt: Annotated[AwareDatetime | None, OR_NONE] = None


class _Pods(Row):
    pods: list[_Pod]


class _SpotPod(Row):
    id: str
    costPerHr: Annotated[Usd | None, OR_NONE] = None


class _Charge(Row):
    podId: str
    totalAmount: Usd


class _Charges(Row):
    records: list[_Charge]


class RunPod:
    """One account at RunPod.

    Args:
        url: of the API v2, without the version.
        spot_url: of the API v1, with the version.
    """

    name = "runpod"
    bills = True

    def __init__(
        self, key: SecretStr, clock: Callable[[], datetime], *, url: str, spot_url: str,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._api = Api(self.name, url, key, clock, transport=transport)
        self._spot = Api(self.name, spot_url, key, clock, transport=transport)
        self.fingerprint = self._api.fingerprint

    async def account(self) -> str | None:
        """Return None: v2 does not tell it, v1 only with a pod (`consumerUserId`), and who sees the pod needs no id."""
        return None

    async def listings(self) -> Sequence[Listing]:
        """Return the GPUs of both clouds, one to a pod. Spot prices are in neither API, so there are no spot listings."""
        found: list[Listing] = []
        for cloud in ("SECURE", "COMMUNITY"):
            asked = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud, "count": 1}
            answer = await self._api.call("GET", "/v2/catalog/gpus", params=asked)
            if answer.status != 200:
                raise self._error(answer)
            for gpu in self._api.rows(_Gpu, self._api.read(_Gpus, answer).gpus):
                secure = cloud == "SECURE"
                if not (gpu.secure if secure else gpu.community) or gpu.availability == "NONE":
                    continue
                places = [place.id for place in gpu.dataCenters if place.availability != "NONE"] or [""]
                found += [self._listing(gpu, secure, place) for place in places]
        return found

    async def launch(self, order: Order) -> Instance:
        if not 0 < len(order.tag) <= LONGEST_NAME:
            raise Unknown(self.name, f"the tag {order.tag!r} is longer than the {LONGEST_NAME} characters of a name", sure=True)
        listing = order.listing
        gpu, _, _ = listing.id.partition("@")
        cloud = "SECURE" if listing.secure else "COMMUNITY"
        disk = max(1, -(-order.disk_bytes // 10**9))
        places = {"dataCenterIds": [listing.region]} if listing.region else {}
        if listing.spot:
            spot = {
                "name": order.tag, "imageName": order.image, "env": dict(order.environment), "cloudType": cloud, "interruptible": True,
                "gpuTypeIds": [gpu], "gpuCount": listing.gpus, "containerDiskInGb": disk, "volumeInGb": 0, "ports": [], **places,
            }  # fmt: skip
            answer = await self._spot.call("POST", "/pods", effect=True, body=spot)
        else:
            pod = {
                "name": order.tag, "image": order.image, "env": dict(order.environment), "cloud": cloud,
                "gpu": {"id": gpu, "count": listing.gpus}, "disk": disk, "ports": [], **places,
            }  # fmt: skip
            answer = await self._api.call("POST", "/v2/pods", effect=True, body=pod)
        if answer.status != 201:
            raise self._launch_error(answer, order)
        if listing.spot:
            started = self._spot.read(_SpotPod, answer, effect=True)
            price = micros(started.costPerHr) if started.costPerHr else None
            return Instance(self.name, started.id, order.tag, Phase.STARTING, listing.gpu, listing.region, price)
        return self._instance(self._api.read(_Pod, answer, effect=True))

    async def list(self, prefix: str) -> Sequence[Instance]:
        answer = await self._api.call("GET", "/v2/pods")
        if answer.status != 200:
            raise self._error(answer)
        return [self._instance(pod) for pod in self._api.read(_Pods, answer).pods if pod.name.startswith(prefix)]

    async def status(self, id: str) -> Instance | None:
        answer = await self._api.call("GET", f"/v2/pods/{quote(id, safe='')}")
        if answer.status == 404 and answer.text("title"):  # a problem document; a proxy's 404 is none
            return None
        if answer.status != 200:
            raise self._error(answer)
        return self._instance(self._api.read(_Pod, answer))

    async def terminate(self, id: str) -> None:
        answer = await self._api.call("DELETE", f"/v2/pods/{quote(id, safe='')}", effect=True)
        if answer.status == 404 and answer.text("title"):
            return
        if answer.status != 204:
            raise self._error(answer, effect=True)

    async def billed(self, id: str, since: datetime) -> int | None:
        """Return the sum of the hours' totals; None: there is no record yet."""
        asked = {"podId": id, "startTime": since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "bucketSize": "hour"}
        answer = await self._api.call("GET", "/v2/billing/pods", params=asked)
        if answer.status != 200:
            raise self._error(answer)
        charges = [charge.totalAmount for charge in self._api.read(_Charges, answer).records if charge.podId == id]
        return micros(sum(charges, Decimal())) if charges else None

    async def close(self) -> None:
        await self._api.close()
        await self._spot.close()

    def _listing(self, gpu: _Gpu, secure: bool, place: str) -> Listing:
        return Listing(
            provider=self.name, id=f"{gpu.id}@{place}/{'secure' if secure else 'community'}", gpu=gpu_name(gpu.id, gpu.memory * 2**30), gpus=1,
            gpu_memory_bytes=gpu.memory * 2**30, region=place, secure=secure,
            price_micros_per_hour=micros(gpu.price.secure if secure else gpu.price.community),
            disk_micros_per_gb_hour=micros(DISK_USD_PER_GB_MONTH, per=HOURS_PER_MONTH), seen_at=self._api.clock(),
        )  # fmt: skip

    def _instance(self, pod: _Pod) -> Instance:
        return Instance(
            self.name, pod.id, pod.name, PHASES.get(pod.status, Phase.RUNNING), gpu=gpu_name(pod.gpu.id) if pod.gpu else "",
            region=pod.dataCenterId or "", since=pod.createdAt,
            price_micros_per_hour=micros(pod.cost) if pod.cost else None,  # 0 while it is stopped says nothing of its price
        )  # fmt: skip

    def _launch_error(self, answer: Answer, order: Order) -> ProviderError:
        """Return what a refused launch means, by the vendor's table of failures of `createPod`."""
        said = answer.text("detail", "error", "message")
        reason = f"{answer.status}: {self._api.quote(said, order.environment.values())}" if said else f"it answered {answer.status}"
        if answer.status in (400, 403) and MONEY.search(said):
            return QuotaExceeded(self.name, reason)
        if answer.status in (400, 403):  # 403: this pool is not open to the account, others are
            return NoCapacity(self.name, reason)
        return self._api.error(answer, reason, effect=True)

    def _error(self, answer: Answer, *, effect: bool = False) -> ProviderError:
        said = answer.text("detail")
        reason = f"{answer.status}: {self._api.quote(said)}" if said else f"it answered {answer.status}"
        return self._api.error(answer, reason, effect)
