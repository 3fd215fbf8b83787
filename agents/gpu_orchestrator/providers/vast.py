"""Vast.ai (API v0, v1), a marketplace of strangers' machines.

What is bought is an ask; it is gone as soon as somebody takes it (404 or 410, `no_such_ask`). On demand the price is the ask's at
that moment; a spot machine is rented by a bid in dollars per hour for the whole machine, whatever its GPUs, and is stopped
when others bid more. The disk costs until the instance is destroyed, stopped or not. The label is the tag; what was destroyed
is no longer listed. Bills are rounded to a tenth of a cent.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

import httpx2
from pydantic import Field, SecretStr

from agents.gpu_orchestrator.market.gpus import gpu_name
from agents.gpu_orchestrator.providers.amounts import HOURS_PER_MONTH, Usd, micros, usd
from agents.gpu_orchestrator.providers.api import OR_NONE, Answer, Api, Row
from agents.gpu_orchestrator.providers.provider import (
    AuthFailed,
    Instance,
    NoCapacity,
    Order,
    Phase,
    PriceMoved,
    ProviderError,
    QuotaExceeded,
    Unknown,
)
from protocol.machine import Listing

LONGEST_LABEL = 1024
ASKS = 1000
"""Cheapest asks that are fetched; the marketplace has some thousand."""
PAGE = 25
"""Most instances in an answer, by the specification."""
PAGES = 400
"""More than ten thousand instances are no account of a lab but a list that does not end."""
BID_SUFFIX = "/spot"
"""An ask can be bought on demand or by a bid: two listings."""
STARTING = frozenset({"created", "loading", "connecting", "scheduling"})
STOPPED = frozenset({"exited", "stopped"})
"""Words of `actual_status` and `cur_state`. A spot machine that was outbid is stopped while it is still intended to run. Words
that nobody knows are running: they may cost money."""
ABSENT = frozenset({"not_found", "no_such_instance"})

Gb = Annotated[Decimal, Field(ge=0, le=10**9)]
Mb = Annotated[Decimal, Field(ge=0, le=10**12)]
Epoch = Annotated[Decimal, Field(ge=0, le=32_503_680_000)]
"""Seconds since 1970, to the year 3000."""


class _Ask(Row):
    id: int
    gpu_name: str
    num_gpus: int
    gpu_ram: Mb
    dph_base: Usd
    min_bid: Usd | None = None
    cpu_cores: Gb | None = None
    cpu_cores_effective: Gb = Decimal()
    cpu_ram: Mb = Decimal()
    disk_space: Gb
    storage_cost: Usd
    inet_up_cost: Usd = Decimal()
    geolocation: str | None = None


class _Asks(Row):
    offers: list[object]


class _Instance(Row):
    id: int
    label: str | None = None
    actual_status: Annotated[str | None, OR_NONE] = "unknown"
    cur_state: Annotated[str | None, OR_NONE] = None
    intended_status: Annotated[str | None, OR_NONE] = None
    dph_total: Annotated[Usd | None, OR_NONE] = None
    gpu_name: Annotated[str | None, OR_NONE] = None
    geolocation: Annotated[str | None, OR_NONE] = None
    start_date: Annotated[Epoch | None, OR_NONE] = None


class _One(Row):
    instances: _Instance | None


class _Page(Row):
    success: bool = True
    instances: list[_Instance]
    total_instances: int | None = None
    next_token: str | None = None


class _Created(Row):
    success: bool
    new_contract: int


class _Done(Row):
    success: bool


class _Charge(Row):
    source: str
    amount: Usd


class _Charges(Row):
    success: bool = True
    results: list[_Charge]
    next_token: str | None = None


class _User(Row):
    id: int


class Vast:
    """One account at Vast.ai."""

    name = "vast"
    bills = True

    def __init__(
        self, key: SecretStr, clock: Callable[[], datetime], *, url: str, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self._api = Api(self.name, url, key, clock, transport=transport)
        self.fingerprint = self._api.fingerprint

    async def account(self) -> str | None:
        answer = await self._api.call("GET", "/api/v0/users/current")
        if answer.status != 200:
            raise self._error(answer)
        return str(self._api.read(_User, answer).id)

    async def listings(self) -> Sequence[Listing]:
        asked = {
            "type": "ondemand", "limit": ASKS, "order": [["dph_total", "asc"], ["id", "asc"]],
            "verified": {"eq": True}, "rentable": {"eq": True}, "rented": {"eq": False},
        }  # fmt: skip
        answer = await self._api.call("POST", "/api/v0/bundles", body=asked)
        if answer.status == 404:  # so the specification of this path tells that the key is wrong
            raise AuthFailed(self.name, self._reason(answer))
        if answer.status != 200:
            raise self._error(answer)
        found = []
        for ask in self._api.rows(_Ask, self._api.read(_Asks, answer).offers):
            found.append(self._listing(ask))
            if ask.min_bid is not None:
                bid = {"id": f"{ask.id}{BID_SUFFIX}", "spot": True, "price_micros_per_hour": micros(ask.min_bid)}
                found.append(found[-1].model_copy(update=bid))
        return found

    async def launch(self, order: Order) -> Instance:
        if not 0 < len(order.tag) <= LONGEST_LABEL:
            raise Unknown(self.name, f"the tag is longer than the {LONGEST_LABEL} characters of a label", sure=True)
        listing = order.listing
        ask = listing.id.removesuffix(BID_SUFFIX)
        gigabytes = max(1, -(-order.disk_bytes // 10**9))
        body: dict[str, object] = {
            "image": order.image, "label": order.tag, "disk": gigabytes, "runtype": "args", "target_state": "running",
            "env": " ".join(f"-e {shlex.quote(f'{name}={value}')}" for name, value in sorted(order.environment.items())),
            "cancel_unavail": True,  # or a bid that is too low would wait, with a disk that costs
        }  # fmt: skip
        if listing.spot:
            # For the whole machine: the bid of an eight-GPU machine is not multiplied by eight.
            bid = order.limit_micros_per_hour - gigabytes * listing.disk_micros_per_gb_hour
            if bid < (listing.price_micros_per_hour or 1):
                raise PriceMoved(self.name, f"the limit leaves a bid of {bid} micro-dollars per hour, less than the least one")
            body["price"] = usd(bid)
        answer = await self._api.call("PUT", f"/api/v0/asks/{_number(self.name, ask)}", effect=True, body=body)
        if answer.status != 200:
            raise self._launch_error(answer, order)
        created = self._api.read(_Created, answer, effect=True)
        if not created.success:
            raise Unknown(self.name, "it answered 200 without success")
        return Instance(self.name, str(created.new_contract), order.tag, Phase.STARTING, listing.gpu, listing.region)

    async def list(self, prefix: str) -> Sequence[Instance]:
        found: list[_Instance] = []
        token: str | None = None
        for _ in range(PAGES):
            asked: dict[str, str | int] = {"limit": PAGE, "order_by": '[{"col":"id","dir":"asc"}]'}
            if token:
                asked["after_token"] = token
            answer = await self._api.call("GET", "/api/v1/instances", params=asked)
            if answer.status != 200:
                raise self._error(answer)
            page = self._api.read(_Page, answer)
            if not page.success:
                raise Unknown(self.name, "it answered 200 without success", sure=True)
            found += page.instances
            token = page.next_token
            if not token:
                break
        if token or (page.total_instances is not None and len(found) < page.total_instances):
            raise Unknown(self.name, f"it listed {len(found)} of {page.total_instances} instances", sure=True)
        return [self._instance(instance) for instance in found if (instance.label or "").startswith(prefix)]

    async def status(self, id: str) -> Instance | None:
        answer = await self._api.call("GET", f"/api/v0/instances/{_number(self.name, id)}")
        if answer.status == 404 and answer.text("error") in ABSENT:
            return None
        if answer.status != 200:
            raise self._error(answer)
        told = self._api.read(_One, answer).instances
        return self._instance(told) if told is not None else None

    async def terminate(self, id: str) -> None:
        answer = await self._api.call("DELETE", f"/api/v0/instances/{_number(self.name, id)}", effect=True)
        if answer.status == 404 and answer.text("error") in ABSENT:
            return
        if answer.status != 200:
            raise self._error(answer, effect=True)
        if not self._api.read(_Done, answer, effect=True).success:
            raise Unknown(self.name, "it answered 200 without success")

    async def billed(self, id: str, since: datetime) -> int | None:
        """Return the charges of the days since `since`, each rounded by the vendor to $0.001; None: there is none yet."""
        day = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        until = self._api.clock() + timedelta(days=1)
        filters = {"day": {"gte": int(day.timestamp()), "lte": int(until.timestamp())}, "type": {"in": ["instance"]}}
        amounts: list[Decimal] = []
        token: str | None = None
        for _ in range(PAGES):
            asked: dict[str, str | int] = {"select_filters": json.dumps(filters), "format": "table", "limit": 500}
            if token:
                asked["after_token"] = token
            answer = await self._api.call("GET", "/api/v0/charges", params=asked)
            if answer.status != 200:
                raise self._error(answer)
            page = self._api.read(_Charges, answer)
            if not page.success:
                raise Unknown(self.name, "it answered 200 without success", sure=True)
            amounts += [charge.amount for charge in page.results if charge.source == f"instance-{id}"]
            token = page.next_token
            if not token:
                return micros(sum(amounts, Decimal())) if amounts else None
        raise Unknown(self.name, f"its charges do not end after {PAGES} pages", sure=True)

    async def close(self) -> None:
        await self._api.close()

    def _listing(self, ask: _Ask) -> Listing:
        share = ask.cpu_cores_effective / ask.cpu_cores if ask.cpu_cores else Decimal()
        return Listing(
            provider=self.name, id=str(ask.id), gpu=gpu_name(ask.gpu_name, int(ask.gpu_ram * 2**20)), gpus=ask.num_gpus,
            gpu_memory_bytes=int(ask.gpu_ram * 2**20), cores=int(ask.cpu_cores_effective),
            memory_bytes=int(ask.cpu_ram * share * 2**20),  # cpu_ram is of the whole host, of which the ask is a part
            disk_bytes=int(ask.disk_space * 10**9), region=ask.geolocation or "", secure=False, single=True,
            price_micros_per_hour=micros(ask.dph_base), disk_micros_per_gb_hour=micros(ask.storage_cost, per=HOURS_PER_MONTH),
            egress_micros_per_gb=micros(ask.inet_up_cost), seen_at=self._api.clock(),
        )  # fmt: skip

    def _instance(self, told: _Instance) -> Instance:
        return Instance(
            self.name, str(told.id), told.label or "", _phase(told), gpu=gpu_name(told.gpu_name or ""), region=told.geolocation or "",
            price_micros_per_hour=micros(told.dph_total) if told.dph_total else None,
            since=datetime.fromtimestamp(float(told.start_date), UTC) if told.start_date is not None else None,
        )  # fmt: skip

    def _launch_error(self, answer: Answer, order: Order) -> ProviderError:
        code, said = answer.text("error"), answer.text("msg")
        reason = self._reason(answer, order)
        if answer.status in (404, 410) and "no_such_ask" in (code, *said.split()):
            return NoCapacity(self.name, reason)
        if answer.status == 403 and code == "invalid_args":  # an ask that this account may not take; others it may
            return NoCapacity(self.name, reason)
        if answer.status == 400 and code == "invalid_price":
            return PriceMoved(self.name, reason)
        if answer.status == 400 and "credit" in code:  # not in the specification
            return QuotaExceeded(self.name, reason)
        return self._error(answer, effect=True, order=order)

    def _error(self, answer: Answer, *, effect: bool = False, order: Order | None = None) -> ProviderError:
        """Return the error of an answer; a wrong key is 404 at some paths."""
        reason = self._reason(answer, order)
        if answer.text("error") == "auth_error" or answer.text("msg") == "Invalid user key":
            return AuthFailed(self.name, reason)
        return self._api.error(answer, reason, effect)

    def _reason(self, answer: Answer, order: Order | None = None) -> str:
        said = f"{answer.text('error')} {answer.text('msg', 'detail')}".strip()
        secrets = order.environment.values() if order else ()
        return f"{answer.status}: {self._api.quote(said, secrets)}" if said else f"it answered {answer.status}"


def _phase(told: _Instance) -> Phase:
    states = {told.actual_status, told.cur_state}
    if states & STOPPED or told.intended_status == "stopped":
        return Phase.STOPPING
    return Phase.STARTING if told.actual_status is None or told.actual_status in STARTING else Phase.RUNNING


def _number(provider: str, id: str) -> int:
    """Return an id as the number that the API wants in a path.

    Raises:
        Unknown: sure; it is none of this vendor's.
    """
    if not (id.isascii() and id.isdigit()):
        raise Unknown(provider, f"{id!r} is no id of this vendor", sure=True)
    return int(id)
