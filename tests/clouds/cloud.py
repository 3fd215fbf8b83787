"""What all test clouds share: stock, instances, meters, limits, faults. The vendors' words are in the subclasses."""

from __future__ import annotations

import contextlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar, Protocol, Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from agents.gpu_orchestrator.providers.provider import Provider
from agents.gpu_orchestrator.providers.registry import open_providers
from configs.accounts import KEYS, URLS, Account
from tests.clouds.clock import Clock, VirtualClock
from tests.clouds.faults import Fault, Faults
from tests.clouds.http import Exchange, Inside, Request, Response, Server, Silence
from tests.clouds.meter import Meter

KEPT = 10_000
"""Exchanges that are kept; a run of a thousand jobs has more, and looks at none."""


class Process(Protocol):
    """What a boot gives: `subprocess.Popen` is one."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Stock:
    """Something for sale. The price is of the whole machine, without its disk.

    Attributes:
        id: what the vendor calls it: a type of machine, a GPU, an ask.
        gpu: the vendor's name of the GPU.
        free: how many can be had.
        least_bid_micros: price of a spot machine; None: not sold so.
        disk_micros_per_gb_month: what a disk costs, running or stopped.
        secure: whether it stands in the vendor's own house.
    """

    id: str
    gpu: str
    micros_per_hour: int
    region: str = "us-west-1"
    gpus: int = 1
    gpu_memory_gb: int = 24
    free: int = 1
    least_bid_micros: int | None = None
    disk_micros_per_gb_month: int = 0
    cores: int = 16
    memory_gb: int = 64
    disk_gb: int = 512
    secure: bool = True


@dataclass
class Instance:
    """A machine that somebody rents. `state`: booting, running, stopped (taken away), ending, gone."""

    id: str
    tag: str
    stock: Stock
    environment: dict[str, str] = field(repr=False)
    image: str
    micros_per_hour: int
    bid: bool
    disk_gb: int
    created_at: datetime
    state: str = "booting"
    due_at: datetime | None = None
    running_at: datetime | None = None
    ended_at: datetime | None = None
    hidden: bool = False
    meter: Meter = field(default_factory=Meter)
    process: Process | None = field(default=None, repr=False)

    @property
    def disk_micros_per_hour(self) -> int:
        """What its disk costs per hour, rounded up."""
        return -(-self.disk_gb * self.stock.disk_micros_per_gb_month // 720)


class Refusal(Exception):
    """A request that the vendor refuses, with the answer in its words."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Cloud(ABC):
    """One vendor with one account.

    Args:
        clock: gives the time. A VirtualClock moves the cloud when it advances; with another one the cloud moves when it is asked
            something, and, while it listens, when something is due.
        boot: called when an instance runs, with what was ordered; what it returns is ended by SIGTERM when the instance is
            terminated, and by SIGKILL when it is taken away or does not end in time.
        stock: what is for sale; None: what `usual_stock` says.
        boot_seconds: from launch until it runs.
        end_seconds: from terminate until it is gone.
        billing_factor: what is charged per dollar of the price; 8 is a vendor that bills eight times its quote.
        rate: requests per second that are let through; None: all.
        account: tells several accounts at one vendor apart; instances of two never have the same id.
    """

    vendor: ClassVar[str]

    def __init__(
        self, clock: Clock | None = None, *, boot: Callable[[Instance, dict[str, str]], Process | None] | None = None,
        stock: Iterable[Stock] | None = None, boot_seconds: float = 30, end_seconds: float = 5, billing_factor: int = 1,
        rate: float | None = None, key: str = "test-key-0123456789abcdef", account: int = 0,
    ) -> None:  # fmt: skip
        self.clock: Clock = clock or VirtualClock()
        self.boot = boot
        self.stock = {item.id: replace(item) for item in (self.usual_stock() if stock is None else stock)}
        self.boot_seconds, self.end_seconds, self.billing_factor, self.rate = boot_seconds, end_seconds, billing_factor, rate
        self.key: str | None = key
        self.account_id = 4711 + account
        self._own_key = key
        self.instances: dict[str, Instance] = {}
        self.faults = Faults()
        self.chance: Callable[[str], Fault | None] | None = None
        """A further source of faults, asked for each call by its name; for runs at random."""
        self.exchanges: deque[Exchange] = deque(maxlen=KEPT)
        self.calls: deque[str] = deque(maxlen=KEPT)
        self.reachable = True
        self.balance_micros: int | None = None
        """What the account may still owe; None: enough."""
        self.quota: int | None = None
        """Instances that the account may have; None: any number."""
        self._said: Response | None = None
        self._waiting: set[str] = set()
        self._ignores = False
        self._numbers = itertools.count(1 + 1000 * account)
        self._last_request: datetime | None = None
        self._lock = threading.RLock()
        self._server: Server | None = None
        self._wake = threading.Event()
        self._mover: threading.Thread | None = None
        if isinstance(self.clock, VirtualClock):
            self.clock.watch(self.move)

    # how a test reaches it

    def provider(self) -> Provider:
        """Return the real adapter, talking to this cloud inside the process."""
        return open_providers({self.vendor: self.account()}, self.clock, Inside(self))[self.vendor]

    def account(self, url: str = "http://127.0.0.1:9") -> Account:
        """Return an account with a key that was given out, even if it was revoked since."""
        return Account(self.vendor, SecretStr(self._own_key), {name: url + path for name, path in self.paths().items()})

    def environment(self) -> dict[str, str]:
        """Return the variables by which another process finds this cloud; it must listen."""
        assert self._server is not None, "it does not listen: use `with cloud:`"
        return {KEYS[self.vendor]: self._own_key, **{name: self._server.url + path for name, path in self.paths().items()}}

    def paths(self) -> dict[str, str]:
        """Return the variables of its addresses with what follows the host."""
        return {name: urlsplit(url).path for name, url in URLS.items() if name.startswith(f"{self.vendor.upper()}_")}

    def __enter__(self) -> Self:
        self._server = Server(self)
        if not isinstance(self.clock, VirtualClock):
            self._mover = threading.Thread(target=self._move_in_time, daemon=True)
            self._mover.start()
        return self

    def __exit__(self, *reason: object) -> None:
        server, self._server = self._server, None
        self._wake.set()
        if self._mover is not None:
            self._mover.join()
        if server is not None:
            server.stop()
        for instance in self.instances.values():
            self._end(instance, hard=True)

    # what a test does to it

    def fail(self, call: str, fault: Fault, times: int | None = 1) -> None:
        """Let calls fail: `listings`, `launch`, `list`, `status`, `terminate`, `billed`, `account`, or `*` for any. See `Faults.plan`."""
        self.faults.plan(call, fault, times)

    def say(self, response: Response) -> None:
        """Answer everything with this from now on, and do nothing."""
        self._said = replace(response, documented=False)

    def heal(self) -> None:
        """Let nothing fail any more, and be reachable."""
        self._said = None
        self.faults.clear()
        self.chance = None
        self.reachable = True

    def unreachable(self) -> None:
        """Let every connection be refused from now on (over a socket: end without an answer)."""
        self.reachable = False

    def revoke(self) -> None:
        """Take the key back: every call is refused as unauthorised."""
        self.key = None

    def rotate(self, key: str) -> None:
        """Replace the account's key by another one of the same account."""
        self.key = self._own_key = key

    def sell_out(self, *ids: str) -> None:
        """Let there be none of these (none: of anything) from now on."""
        for id in ids or self.stock:
            self.stock[id].free = 0

    def preempt(self, id: str) -> None:
        """Take a machine away: its process is killed at once, its disk stays and costs."""
        with self._lock:
            instance = self.instances[id]
            assert instance.state in ("booting", "running"), instance.state
            instance.state, instance.due_at = "stopped", None
            self._charge(instance, instance.disk_micros_per_hour)
            self._end(instance, hard=True)
            instance.stock.free += 1

    def hide(self, id: str) -> None:
        """Let the vendor say that an instance does not exist, while it runs and is charged: only the bill tells."""
        self.instances[id].hidden = True

    def outbid(self, stock: str, least_bid_micros: int) -> list[str]:
        """Let the market rise: whoever bids less is taken away. Return their ids."""
        with self._lock:
            self.stock[stock].least_bid_micros = least_bid_micros
            lost = [
                i.id for i in self.living() if i.bid and i.stock.id == stock and i.state in ("booting", "running")
                and i.micros_per_hour < least_bid_micros
            ]  # fmt: skip
            for id in lost:
                self.preempt(id)
            return lost

    def bill(self, id: str | None = None) -> int:
        """Return what an instance (None: all) has really cost until now, in micro-dollars."""
        with self._lock:
            now = self.clock()
            self.move()
            return sum(i.meter.total(now) for i in ([self.instances[id]] if id else self.instances.values()))

    def living(self) -> list[Instance]:
        """Return the instances that are not gone."""
        return [instance for instance in self.instances.values() if instance.state != "gone"]

    def shown(self) -> list[Instance]:
        """Return the instances that the vendor admits to have."""
        return [instance for instance in self.living() if not instance.hidden]

    def seen(self, id: str) -> Instance | None:
        """Return an instance, gone or not, unless the vendor hides it."""
        found = self.instances.get(id)
        return None if found is None or found.hidden else found

    # what a vendor adds

    @staticmethod
    @abstractmethod
    def usual_stock() -> list[Stock]:
        """Return what is for sale when a test does not say."""

    @abstractmethod
    def name(self, request: Request) -> str:
        """Return the name of a call: listings, launch, list, status, terminate, billed, account, or another word."""

    @abstractmethod
    def answer(self, call: str, request: Request) -> Response:
        """Do what is asked; raise Refusal."""

    @abstractmethod
    def empty(self, call: str) -> Response:
        """Return an answer that lists nothing."""

    @abstractmethod
    def refusal(self, reason: str, request: Request) -> Response:
        """Return the vendor's words for: unauthorised, rate, sold_out, broken, quota, money."""

    # what happens to a request

    def handle(self, request: Request) -> Response | Silence:
        """Answer a request as the vendor would, with the faults that are due."""
        with self._lock:
            self.move()
            call = self.name(request)
            self.calls.append(call)
            if not self.allowed(request):
                return self._sent(request, self.refusal("unauthorised", request))
            if self._too_fast():
                return self._sent(request, self.refusal("rate", request))
            fault = self.faults.due(call) or (self.chance(call) if self.chance else None)
            match fault:
                case Fault.ERROR:
                    return self._sent(request, self.refusal("broken", request))
                case Fault.RATE_LIMIT:
                    return self._sent(request, self.refusal("rate", request))
                case Fault.SOLD_OUT if call == "launch":
                    return self._sent(request, self.refusal("sold_out", request))
                case Fault.EMPTY if call in ("listings", "list"):
                    return self._sent(request, self.empty(call))
                case Fault.CUT:
                    return Silence.CUT
                case Fault.HANG:
                    return Silence.HANG
            self._ignores = fault is Fault.IGNORED and call == "terminate"
            try:
                response = self._said or self.answer(call, request)
            except Refusal as refused:
                response = refused.response
            match fault:
                case Fault.ERROR_AFTER:
                    response = self.refusal("broken", request)
                case Fault.LOST:
                    return Silence.CUT
                case Fault.HANG_AFTER:
                    return Silence.HANG
                case Fault.MALFORMED:
                    half = response.content[: max(1, len(response.content) // 2)] or b"{"
                    return self._sent(request, replace(response, status=200, raw=half), sound=False)
                case Fault.HTML:
                    page = Response(200, kind="text/html", raw=b"<html><body>Welcome to nginx!</body></html>")
                    return self._sent(request, page, sound=False)
            return self._sent(request, response)

    def allowed(self, request: Request) -> bool:
        """Tell whether the request has the key, where it belongs."""
        return self.key is not None and request.headers.get("authorization") == f"Bearer {self.key}"

    def _sent(self, request: Request, response: Response, sound: bool = True) -> Response:
        self.exchanges.append(Exchange(request, response, sound))
        return response

    def _too_fast(self) -> bool:
        now, last = self.clock(), self._last_request
        if self.rate is not None and last is not None and (now - last).total_seconds() < 1 / self.rate:
            return True
        self._last_request = now
        return False

    # life of instances

    def rent(
        self, stock: Stock, request: Request, *, tag: str, image: str, environment: dict[str, str], disk_gb: int, bid_micros: int | None = None
    ) -> Instance:
        """Start an instance; raise Refusal where there is no capacity, quota or money."""
        if stock.free < 1:
            raise Refusal(self.refusal("sold_out", request))
        if self.quota is not None and len(self.living()) >= self.quota:
            raise Refusal(self.refusal("quota", request))
        if self.balance_micros is not None and self.bill() >= self.balance_micros:
            raise Refusal(self.refusal("money", request))
        now = self.clock()
        price = stock.micros_per_hour if bid_micros is None else bid_micros
        instance = Instance(
            id=self.new_id(), tag=tag, stock=stock, environment=environment, image=image, micros_per_hour=price,
            bid=bid_micros is not None, disk_gb=disk_gb, created_at=now, due_at=now + timedelta(seconds=self.boot_seconds),
        )  # fmt: skip
        stock.free -= 1
        self._charge(instance, price + instance.disk_micros_per_hour)
        self.instances[instance.id] = instance
        self._waiting.add(instance.id)
        self._wake.set()
        self.move()
        return instance

    def end(self, instance: Instance) -> None:
        """Begin to terminate an instance; the meter runs until it is gone."""
        if instance.state in ("ending", "gone") or self._ignores:
            return
        if instance.state != "stopped":
            instance.stock.free += 1
        instance.state, instance.due_at = "ending", self.clock() + timedelta(seconds=self.end_seconds)
        self._waiting.add(instance.id)
        self._end(instance, hard=False)
        self._wake.set()
        self.move()

    def new_id(self) -> str:
        """Return an id that no instance had before."""
        return f"{next(self._numbers):032x}"

    def move(self) -> None:
        """Do what has become due."""
        with self._lock:
            now = self.clock()
            for instance in [self.instances[id] for id in sorted(self._waiting)]:
                if instance.due_at is not None and instance.due_at > now:
                    continue
                due, instance.due_at = instance.due_at, None
                self._waiting.discard(instance.id)
                if due is None:  # taken away meanwhile
                    continue
                if instance.state == "booting":
                    instance.state, instance.running_at = "running", due
                    instance.process = self.boot(instance, dict(instance.environment)) if self.boot else None
                elif instance.state == "ending":
                    instance.state, instance.ended_at = "gone", due
                    instance.meter.set(due, 0)
                    self._end(instance, hard=True)

    def _charge(self, instance: Instance, micros_per_hour: int) -> None:
        instance.meter.set(self.clock(), micros_per_hour * self.billing_factor)

    def _end(self, instance: Instance, hard: bool) -> None:
        if instance.process is not None:
            with contextlib.suppress(ProcessLookupError):
                (instance.process.kill if hard else instance.process.terminate)()

    def _move_in_time(self) -> None:
        while self._server is not None:
            with self._lock:
                self.move()
                due = min((at for id in self._waiting if (at := self.instances[id].due_at) is not None), default=None)
            pause = None if due is None else max(0.0, (due - self.clock()).total_seconds())
            self._wake.wait(pause)
            self._wake.clear()
