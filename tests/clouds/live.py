"""One short life of the cheapest machine at a vendor. The same code runs against a test cloud, always, and against real ones, when asked."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agents.gpu_orchestrator.providers.provider import Instance, NoCapacity, Order, Phase, Provider, ProviderError
from protocol.machine import Listing

IMAGE = "debian:stable-slim"
"""Public and small; it ends at once, which is enough to be billed and terminated."""
BILLED_HOURS = 0.5
"""What a launch may cost is reckoned as if it lasted so long; it lasts minutes."""
ROUNDS = 60
"""Looks at an instance until it must be gone."""
CLEAR = 7
"""Looks in a row that must find nothing: a minute at a real vendor, whose list lags behind a launch without an answer."""
TRIES = 3
"""Cheapest listings that are tried where others are faster."""


@dataclass(frozen=True)
class Life:
    """What happened: the listing, what the instance said of its price, and how often its end was asked for."""

    listing: Listing
    price_micros_per_hour: int | None
    terminates: int


def max_spend_micros() -> int:
    """Return MAX_SPEND_USD in micro-dollars, rounded down; 0 where it is not set.

    Raises:
        ValueError: it is no amount.
    """
    amount = float(os.environ.get("MAX_SPEND_USD") or 0)
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"MAX_SPEND_USD is no amount: {amount}")
    return int(amount * 1_000_000)


def affordable(listings: list[Listing], spend_micros: int) -> list[Listing]:
    """Return the listings that may be tried, cheapest first: their price is known, and they are taken away by nobody."""
    priced = [(listing.price_micros_per_hour, listing) for listing in listings if not listing.spot]
    good = [(price, listing.id, listing) for price, listing in priced if price and price * BILLED_HOURS <= spend_micros]
    return [listing for _, _, listing in sorted(good, key=lambda entry: entry[:2])][:TRIES]


async def one_life(provider: Provider, listings: list[Listing], spend_micros: int, pause: Callable[[], Awaitable[None]]) -> Life | None:
    """Launch the cheapest machine, see it by its tag and id, terminate it, and prove that it is gone; None: nothing is affordable or free.

    Whatever goes wrong, everything with the tag is terminated before this returns or raises.

    Args:
        pause: waits between two looks.

    Raises:
        AssertionError: it is not gone after ROUNDS looks, and still costs: look at the vendor's page.
    """
    tag = f"meetara-live-{uuid.uuid4().hex[:12]}"
    launched: Instance | None = None
    terminates = 0
    chosen: Listing | None = None
    price: int | None = None
    try:
        for chosen in affordable(listings, spend_micros):
            limit = 2 * (chosen.price_micros_per_hour or 0)
            try:
                launched = await provider.launch(Order(tag, tag, chosen, IMAGE, {}, 10 * 10**9, limit))
                break
            except NoCapacity:
                await pause()
        if launched is None or chosen is None:
            return None
        assert launched.tag == tag
        for _ in range(ROUNDS):
            told = await provider.status(launched.id)
            if told is not None and told.price_micros_per_hour is not None:
                price = told.price_micros_per_hour
                break
            await pause()
        assert launched.id in [instance.id for instance in await provider.list(tag)]
    finally:
        terminates = await end_all(provider, tag, launched, pause)
    return Life(chosen, price, terminates)


async def end_all(provider: Provider, tag: str, launched: Instance | None, pause: Callable[[], Awaitable[None]]) -> int:
    """Terminate everything with the tag until CLEAR looks in a row find nothing; return how often it was asked for."""
    asked, clear = 0, 0
    for _ in range(ROUNDS):
        try:
            left = {instance.id for instance in await provider.list(tag) if instance.phase is not Phase.GONE}
            if launched is not None:
                told = await provider.status(launched.id)
                if told is not None and told.phase is not Phase.GONE:
                    left.add(launched.id)
            for id in sorted(left):
                asked += 1
                await provider.terminate(id)
            clear = 0 if left else clear + 1
        except ProviderError:
            clear = 0  # it said nothing
        if clear == CLEAR:
            return asked
        await pause()
    raise AssertionError(f"{tag} is not gone at {provider.name}: look at the vendor's own page, it costs money")
