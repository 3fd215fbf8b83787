"""What every provider of machines can do, and every way in which it can fail.

An adapter speaks one vendor's API and does nothing else: it does not wait, try again, choose or remember. Times come
from the vendor's answers, money is in integer micro-dollars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from protocol.machine import Listing


class Phase(StrEnum):
    """Where an instance is in its life, as its provider tells. All but `gone` may cost money.

    `stopping` is also one that was taken away or has stopped by itself: its disk costs until it is terminated.
    """

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    GONE = "gone"


@dataclass(frozen=True)
class Order:
    """What is to be launched.

    Attributes:
        key: names this launch for ever; where the vendor knows idempotency keys it is one.
        tag: name of the instance at the vendor, `meetara-{lab}-{instance}`; by it the reaper finds what nobody remembers.
        listing: what is bought.
        image: container image with the worker.
        environment: what the worker needs: broker, token. Nothing of it is a key of the vendor.
        disk_bytes: least size of the disk.
        limit_micros_per_hour: the most that it may cost, its disk included. It becomes the bid where the vendor takes bids;
            nowhere else can a launch be limited, so whoever launches compares it with the instance's price and terminates.
    """

    key: str
    tag: str
    listing: Listing
    image: str
    environment: Mapping[str, str] = field(repr=False)
    disk_bytes: int
    limit_micros_per_hour: int


@dataclass(frozen=True)
class Instance:
    """One instance as its provider tells. `price_micros_per_hour` None: it does not say; else the disk is in it where the
    vendor counts so."""

    provider: str
    id: str
    tag: str
    phase: Phase
    gpu: str = ""
    region: str = ""
    price_micros_per_hour: int | None = None
    since: datetime | None = None


class ProviderError(Exception):
    """A provider did not do what it was asked; its subclasses are all there are.

    Attributes:
        provider: whose.
        sure: whether nothing was started or changed by the call. False: it may have been, so look.
    """

    sure = True

    def __init__(self, provider: str, reason: str, *, sure: bool | None = None) -> None:
        super().__init__(f"{provider}: {reason}")
        self.provider = provider
        self.reason = reason
        if sure is not None:
            self.sure = sure


class NoCapacity(ProviderError):
    """The machine is sold out; another one may be had."""


class PriceMoved(ProviderError):
    """The machine costs more now than the order allows."""


class AuthFailed(ProviderError):
    """The key is missing, wrong or revoked; no call will work until a person mends it."""


class QuotaExceeded(ProviderError):
    """The account may not rent more: a limit of instances or of money."""


class RateLimited(ProviderError):
    """Too many calls. `retry_after`: seconds until the next one."""

    def __init__(self, provider: str, reason: str, retry_after: float) -> None:
        super().__init__(provider, reason)
        self.retry_after = retry_after


class Unknown(ProviderError):
    """No answer, one that nobody can read, or a refusal that is none of the others.

    Whether anything happened is not known, unless it is `sure`: the call only looked, never left this machine, or was
    refused by the vendor in words that its specification knows.
    """

    sure = False


class Provider(Protocol):
    """One vendor. Every method raises ProviderError and nothing else."""

    name: str
    bills: bool
    """Whether it tells what it has charged."""
    fingerprint: str
    """Tells its key from others without telling the key."""

    async def account(self) -> str | None:
        """Return the vendor's id of the key's account, the same for all keys of it; None: the vendor does not tell."""

    async def listings(self) -> Sequence[Listing]:
        """Return what can be rented now."""

    async def launch(self, order: Order) -> Instance:
        """Rent a machine and start the worker on it.

        No vendor of today knows idempotency keys: a second call rents a second machine. After an error that is not `sure`
        look for the tag before launching again.
        """

    async def list(self, prefix: str) -> Sequence[Instance]:
        """Return all instances whose tag begins with `prefix`, whatever their phase.

        An empty answer means that there are none; a provider that cannot tell raises.
        """

    async def status(self, id: str) -> Instance | None:
        """Return one instance; None: the provider says that it does not exist."""

    async def terminate(self, id: str) -> None:
        """Ask for the end of an instance; one that is gone already is no error. That it is gone, `status` tells."""

    async def billed(self, id: str, since: datetime) -> int | None:
        """Return what the provider charges for an instance from a time on, in micro-dollars; None: it does not tell.

        Vendors count in days or hours, so what was charged earlier in the same day or hour is in it.
        """

    async def close(self) -> None:
        """Close the connections."""
