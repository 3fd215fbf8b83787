"""The book of what can be rented: listings by provider with the time they were seen, and why one would not be taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Literal

from agents.gpu_orchestrator.market import gpus, sanity
from agents.gpu_orchestrator.market.catalogue import FILES
from configs.accounts import KEYS
from configs.providers import Rented
from protocol import Code, LabError
from protocol.envelope import MAX_BYTES
from protocol.machine import OWN, Listing, ListingPage, ListingQuery

Source = Literal["live", "catalogue", "configs"]

PROVIDERS = frozenset({*OWN, "colab", "vast", *FILES.values()})
"""Providers that the lab has a name for, whether anything of theirs is known or not."""
PAGE_BYTES = MAX_BYTES // 2
"""Bytes of listings in one page; the other half of a message's limit is for its envelope, and for long reasons."""


class OfferBook:
    """Listings of all providers.

    Args:
        limits: how long what was seen counts.
        launchable: names of the providers at which this lab can launch machines; what it cannot launch is never chosen.
        sellers: names of the providers that are asked what they sell; None: the same.
    """

    def __init__(
        self, limits: Rented, launchable: Collection[str] = (), sellers: Collection[str] | None = None
    ) -> None:
        self._limits = limits
        self._launchable = frozenset(launchable)
        self._sellers = self._launchable if sellers is None else frozenset(sellers)
        self._seen: dict[tuple[str, Source], list[Listing]] = {}
        self._failed: dict[str, str] = {}
        self._judged: list[Listing] | None = None
        self._usual: dict[str, float] = {}

    def note(self, provider: str, listings: Iterable[Listing], source: Source = "live") -> None:
        """Take in all that a provider lists; what it listed before by the same source is forgotten."""
        self._seen[provider, source] = [_named(listing) for listing in listings]
        self._judged = None
        if source == "live":
            self._failed.pop(provider, None)

    def failed(self, provider: str, reason: str) -> None:
        """Note that a provider could not be asked: what it listed before ages, but is not gone."""
        self._failed[provider] = reason

    @property
    def asked(self) -> frozenset[str]:
        """The providers that have answered, or failed to, at least once."""
        return frozenset({provider for provider, source in self._seen if source == "live"} | self._failed.keys())

    def listings(self, now: datetime) -> list[Listing]:
        """Return everything; what is never chosen says why in `rejected`, and what is too old as well."""
        oldest = {source: now - age for source, age in sanity.ages(self._limits).items()}
        return [
            listing if listing.rejected is not None or listing.seen_at >= oldest[listing.source]
            else listing.model_copy(update={"rejected": sanity.stale(listing, now, self._limits)})
            for listing in self._all()
        ]  # fmt: skip

    def usual(self) -> dict[str, float]:
        """Return the median price per GPU and hour by GPU, in micro-dollars, of prices that can be right."""
        self._all()
        return self._usual

    def _all(self) -> list[Listing]:
        if self._judged is None:
            self._judged = sanity.judged((item for listed in self._seen.values() for item in listed), self._launchable)
            sane = (item for item in self._judged if item.rejected is None or item.source == "catalogue")
            self._usual = sanity.medians(sane, least=1)
        return self._judged

    def find(self, provider: str, id: str) -> Listing | None:
        """Return a live listing, whatever is thought of it; None: the provider did not list it when last asked."""
        return next((item for item in self._seen.get((provider, "live"), ()) if item.id == id), None)

    def known(self, provider: str, field: str) -> str:
        """Return the name of a provider that a person gave.

        Raises:
            LabError: INVALID_PARAMS with the nearest names.
        """
        names = sorted({*PROVIDERS, *self._sellers, *self._launchable, *(name for name, _ in self._seen)})
        if provider.lower() in names:
            return provider.lower()
        near = get_close_matches(provider.lower(), names, n=3, cutoff=0.5)
        raise LabError(
            Code.INVALID_PARAMS, f"{field}: no provider is called {provider!r}.",
            advice=f"Did you mean {' or '.join(near)}?" if near else f"Known are {', '.join(names)}.", field=field, known=names,
        )  # fmt: skip

    def missing(self, provider: str) -> str:
        """Return why nothing of a provider can be rented."""
        if provider in self._failed:
            return f"it could not be asked: {self._failed[provider]}"
        if provider not in self._sellers:
            key = KEYS.get(provider)
            return f"this lab cannot rent there: {f'{key} is not set' if key else 'no adapter launches machines'} (docs/money.md)"
        return "it lists nothing"

    def page(self, query: ListingQuery, own: Sequence[Listing], now: datetime) -> ListingPage:
        """Return what matches a query, cheapest first; without `all`, what is never chosen is only counted.

        Args:
            own: this lab's own machines.

        Raises:
            LabError: INVALID_PARAMS; no GPU or provider has such a name.
        """
        listings = [*own, *self.listings(now)]
        gpu = gpus.wanted_gpu(query.gpu, {item.gpu for item in listings}) if query.gpu else None
        provider = self.known(query.provider, "provider") if query.provider else None
        matching = [item for item in listings if _matches(item, query, gpu, provider)]
        rejected = sum(item.rejected is not None for item in matching)
        shown = sorted((item for item in matching if query.all or item.rejected is None), key=_order)
        size, fitting = 0, 0
        for fitting, item in enumerate(shown, 1):
            size += len(item.model_dump_json())
            if size > PAGE_BYTES:
                fitting -= 1
                break
        silent = set(self._failed)
        if provider is not None and provider not in OWN and not any(_live(item, provider) for item in listings):
            silent.add(provider)
        stale = {name: self.missing(name) for name in sorted(silent)}
        return ListingPage(listings=shown[:fitting], more=len(shown) - fitting, rejected=rejected, stale=stale)


def _matches(item: Listing, query: ListingQuery, gpu: str | None, provider: str | None) -> bool:
    price = item.price_micros_per_hour
    return (
        (gpu is None or gpus.fits(gpu, item.gpu))
        and (provider is None or item.provider == provider)
        and (query.max_price_usd is None or (price is not None and price <= query.max_price_usd * 1e6))
        and (query.min_gpu_memory_gb is None or item.gpu_memory_bytes >= query.min_gpu_memory_gb * 1e9)
        and (query.region is None or query.region.lower() in item.region.lower())
        and (query.spot is None or item.spot == query.spot)
    )


def _live(item: Listing, provider: str | None) -> bool:
    return item.provider == provider and item.source == "live"


def _order(item: Listing) -> tuple[bool, float, str, str]:
    price = item.price_micros_per_hour
    return price is None, price or 0, item.provider, item.id


def _named(listing: Listing) -> Listing:
    name = gpus.gpu_name(listing.gpu, listing.gpu_memory_bytes)
    return listing if name == listing.gpu else listing.model_copy(update={"gpu": name})
