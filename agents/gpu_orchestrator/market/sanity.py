"""Whether a listing can be right: each one that is never chosen gets a reason. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from statistics import median

from configs.providers import Rented
from protocol.machine import Listing

LOW, HIGH = 0.25, 4.0
"""A price per GPU below or above so many medians of that GPU is refused (architecture §5)."""
ENOUGH = 3
"""Different prices of a GPU from which on their median says something: of two, nobody knows which is wrong."""
UNREACHABLE = "nothing can be rented: MEETARA_PUBLIC, MEETARA_WORKER_IMAGE or MEETARA_STORE is not set (docs/clouds.md)"
"""Why a live listing is not launched in a lab with a key alone: a worker could not reach the lab, or its data."""
AGAIN = (0.9, 1.1)
"""A machine of n GPUs whose price is n² times its provider's price of one, within a tenth: multiplied twice (a bid of a
real marketplace was once multiplied by 8)."""


def judged(listings: Iterable[Listing], launchable: Collection[str]) -> list[Listing]:
    """Return the listings, each that cannot be chosen with its reason; how old they are is not looked at here.

    Args:
        listings: all that are known, since prices are compared over all providers.
        launchable: names of the providers at which this lab can launch machines.
    """
    listings = list(listings)
    middle, single = medians(listings), _singles(listings)
    found = []
    for listing in listings:
        reason = listing.rejected or _reason(listing, middle, single, launchable)
        found.append(listing if reason == listing.rejected else listing.model_copy(update={"rejected": reason}))
    return found


def _reason(
    listing: Listing, middle: dict[str, float], single: dict[tuple[str, str, bool], float], launchable: Collection[str]
) -> str | None:
    price, gpus, gpu = listing.price_micros_per_hour, listing.gpus, listing.gpu
    if not gpu or gpus < 1:
        return "it has no GPU"
    if price is None:
        return "its price is not known"
    if price <= 0:
        return f"a price of {usd(price)} per hour cannot be right"
    one = single.get((listing.provider, gpu, listing.spot))
    if gpus > 1 and one is not None and AGAIN[0] <= price / (one * gpus * gpus) <= AGAIN[1]:
        return f"its price was multiplied by its {gpus} GPUs twice: one of them costs {usd(one)} there"
    usual = middle.get(gpu)
    if usual is not None and not LOW * usual <= price / gpus <= HIGH * usual:
        side = f"below {LOW:.0%} of" if price / gpus < usual else f"above {HIGH:g} times"
        return f"{usd(price / gpus)} per GPU and hour is {side} the median for {gpu}, {usd(usual)}"
    if listing.source == "catalogue":
        return "only a catalogue has it: no word of the provider itself confirms that it can be had"
    if listing.provider not in launchable:
        return UNREACHABLE if listing.source == "live" else "this lab cannot start it: a person has to"
    return None


def _singles(listings: Iterable[Listing]) -> dict[tuple[str, str, bool], float]:
    """What a provider takes for one GPU, by provider, GPU and whether it is spot."""
    prices: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for listing in listings:
        if listing.gpus == 1 and listing.price_micros_per_hour:
            prices[listing.provider, listing.gpu, listing.spot].append(listing.price_micros_per_hour)
    return {key: median(found) for key, found in prices.items()}


def medians(listings: Iterable[Listing], least: int = ENOUGH) -> dict[str, float]:
    """Return the median price per GPU and hour, in micro-dollars, by GPU, where `least` different prices are known.

    One price of one provider counts once, in however many regions it is listed.
    """
    prices: dict[str, set[tuple[str, float]]] = defaultdict(set)
    for listing in listings:
        if listing.price_micros_per_hour and listing.price_micros_per_hour > 0 and listing.gpus > 0 and listing.gpu:
            prices[listing.gpu].add((listing.provider, listing.price_micros_per_hour / listing.gpus))
    return {gpu: median(price for _, price in found) for gpu, found in prices.items() if len(found) >= least}


def ages(limits: Rented) -> dict[str, timedelta]:
    """Return how long a listing counts, by its source."""
    return {
        "live": timedelta(minutes=limits.live_minutes), "catalogue": timedelta(days=limits.catalogue_days),
        "configs": timedelta(days=limits.configs_days),
    }  # fmt: skip


def stale(listing: Listing, now: datetime, limits: Rented) -> str | None:
    """Return why a listing is too old to count; None: it is fresh."""
    limit, age = ages(limits)[listing.source], now - listing.seen_at
    if age <= limit:
        return None
    what = {"live": "a provider's own word", "catalogue": "a catalogue", "configs": "a price that a person looked up"}
    unit, name = (timedelta(minutes=1), "minutes") if listing.source == "live" else (timedelta(days=1), "days")
    return f"it was seen {age / unit:.0f} {name} ago; {what[listing.source]} counts for {limit / unit:g}"


def usd(micros: float) -> str:
    """Return micro-dollars as dollars: cents, or all digits that there are."""
    return f"${micros / 1e6:.2f}" if micros % 10_000 == 0 else f"${micros / 1e6:.6f}".rstrip("0")
