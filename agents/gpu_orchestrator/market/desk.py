"""The market's desk: what the orchestrator asks it, and how it keeps its book fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market import catalogue
from agents.gpu_orchestrator.market.book import OfferBook
from agents.gpu_orchestrator.market.choice import ranked, select_optimal_provider
from agents.gpu_orchestrator.market.estimate import Rest, requoted, rest
from agents.gpu_orchestrator.market.gpus import gpu_name
from agents.gpu_orchestrator.market.history import History
from agents.gpu_orchestrator.market.requirements import Requirements, Supply, limit
from agents.gpu_orchestrator.market.weighing import instead
from agents.gpu_orchestrator.providers.provider import Provider, ProviderError, RateLimited
from configs import Configs
from protocol import Code, LabError, Retry
from protocol.machine import (
    OWN,
    Listing,
    ListingPage,
    ListingQuery,
    Offer,
    Quote,
    QuoteRequest,
    RequoteRequest,
)

ANSWER_LIMIT = 30.0
"""Seconds that a provider has to list what it sells; one that hangs must not keep the others' listings waiting."""

SOON = 30.0
"""Seconds after which one that did not answer is asked again: what it said before counts for minutes, and jobs are refused after."""


class Desk:
    """Answers what machines there are, what a job takes on each, and which to take.

    Args:
        sellers: vendors by name, who are asked what they sell.
        launchable: names of those at which this lab can launch machines.

    Raises:
        LabError: CONFIGURATION; the catalogue cannot be read.
    """

    def __init__(
        self, configs: Configs, sellers: Mapping[str, Provider] | None = None, launchable: Collection[str] = ()
    ) -> None:
        self._configs = configs
        self._sellers = dict(sellers or {})
        self.history = History()
        self.distrusted: Mapping[str, str] = {}  # providers whose bills nobody has explained, with the reason
        self.book = OfferBook(configs.providers.rented, launchable, self._sellers)
        self.book.note("colab", catalogue.colab(configs.providers.colab), "configs")
        listed = catalogue.catalogue()
        for name in {listing.provider for listing in listed}:
            self.book.note(name, [listing for listing in listed if listing.provider == name], "catalogue")

    # questions

    def requirements(self, request: QuoteRequest) -> Requirements:
        """Return what a request needs and allows.

        Raises:
            LabError: INVALID_PARAMS; no provider has such a name, or a number makes no sense.
        """
        for name, value in (("budget_usd", request.budget_usd), ("deadline_hours", request.deadline_hours)):
            if value is not None and not (0 <= value < 1e12 and (value or name == "budget_usd")):
                raise LabError(Code.INVALID_PARAMS, f"{name}: {value:g} makes no sense.", advice="Give a positive number.", field=name)
        tier = self._configs.tiers.get(request.tier)
        cap, whose = limit(request.budget_usd, tier.cap_usd if tier else None)
        named = request.providers
        return Requirements(
            job=request.job, plan=request.plan, gpus=tuple(map(gpu_name, tier.gpu)) if tier else (), limit_micros=cap,
            limit_is=whose, deadline_s=None if request.deadline_hours is None else request.deadline_hours * 3600,
            providers=None if named is None else frozenset(self.book.known(name, "providers") for name in named),
            untrusted=request.untrusted_hosts,
            spot=self._configs.settings.store is not None and request.checkpoints != "machine", economy=request.economy,
            tier=request.tier,
            would_stage=request.dry_run and self._configs.settings.store is not None and request.plan.terms is not None,
        )  # fmt: skip

    def ready(self, request: QuoteRequest, machines: Sequence[Machine]) -> bool:
        """Tell whether a quote need not wait: whoever may get the job is here, or has been asked once."""
        named = request.providers
        tier = self._configs.tiers.get(request.tier)
        local = bool(machines) or (named is not None and not OWN & set(named))
        paid = named is not None or (tier is not None and bool(tier.gpu))
        asked = self.book.asked
        return local and (not paid or self._sellers.keys() <= asked)

    def _supply(self, machines: Sequence[Machine], at: datetime) -> Supply:
        terms = self._configs.providers
        listings = self.book.listings(at)
        if self.distrusted:
            listings = [
                listing.model_copy(update={"rejected": f"nothing is rented from {listing.provider}: {self.distrusted[listing.provider]}"})
                if listing.provider in self.distrusted else listing
                for listing in listings
            ]  # fmt: skip
        return Supply(at, machines, terms.local, listings, terms.rented, self.history, self.book.usual())

    def quote(self, request: QuoteRequest, machines: Sequence[Machine], at: datetime) -> Quote:
        """Choose a machine for a planned job.

        Raises:
            LabError: INVALID_PARAMS, BUDGET or NO_CAPACITY, as `select_optimal_provider` has it.
        """
        wanted, supply = self.requirements(request), self._supply(machines, at)
        try:
            return select_optimal_provider(wanted, supply)
        except LabError as error:
            paid = sorted((wanted.providers or frozenset()) - OWN)
            missing = {name: self.book.missing(name) for name in paid if not any(x.provider == name for x in supply.listings)}
            if missing:
                told = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
                error.data["rejected"] = {**error.data.get("rejected", {}), **missing}
                error.message = f"{error.message.rstrip('.')}; {told}."
            raise

    def instead(self, request: QuoteRequest, machine: Machine, reserved_micros: int, at: datetime) -> bool:
        """Tell whether a machine that nobody bills for may have a job that was quoted for another one."""
        terms = self._configs.providers
        supply = Supply(at, (machine,), terms.local, (), terms.rented, self.history, {})
        return instead(self.requirements(request), machine, supply, reserved_micros)

    def ranked(self, request: QuoteRequest, now: datetime) -> list[tuple[Offer, Listing]]:
        """Return what can be rented for a job now, the best first: where the first is sold out, the next is tried."""
        return ranked(self.requirements(request), self._supply((), now))

    def requote(self, request: RequoteRequest) -> Offer:
        """Return an offer with times and money by what a probe measured."""
        terms = self._configs.providers
        listing = self.book.find(request.offer.provider, request.offer.machine)
        return requoted(request.offer, request.plan, request.probe, listing, terms.local, terms.rented)

    def rest(self, request: RequoteRequest, listing: Listing, price_micros_per_hour: int) -> Rest:
        """Return what a job on a rented machine still takes by what a probe measured."""
        return rest(request.plan, request.probe, price_micros_per_hour, listing, self._configs.providers.rented)

    def page(self, query: ListingQuery, machines: Sequence[Machine], at: datetime) -> ListingPage:
        """Return what is for sale, and this lab's own machines.

        Raises:
            LabError: INVALID_PARAMS; no GPU or provider has such a name.
        """
        price = self._configs.providers.local.price_micros_per_hour
        own = [
            Listing(
                provider=machine.provider, id=machine.name, gpu=gpu_name(device.gpu, device.gpu_memory_bytes), gpus=1 if device.gpu else 0,
                gpu_memory_bytes=device.gpu_memory_bytes, cores=device.cores, memory_bytes=device.memory_bytes,
                disk_bytes=device.disk_free_bytes, price_micros_per_hour=0 if machine.lent else price, seen_at=at,
            )
            for machine in machines if (device := machine.device) is not None
        ]  # fmt: skip
        return self.book.page(query, own, at)

    # the book

    async def keep_fresh(self, changed: Callable[[], None]) -> None:
        """Ask every provider again and again, each at half of the time for which its word counts, or soon where it failed; runs until cancelled.

        Args:
            changed: called after each answer and each failure.
        """
        await asyncio.gather(*(self._keep_asking(provider, changed) for provider in self._sellers.values()))

    async def _keep_asking(self, provider: Provider, changed: Callable[[], None]) -> None:
        while True:
            pause = await self.ask(provider)
            changed()
            await asyncio.sleep(pause)

    async def ask(self, provider: Provider) -> float:
        """Ask a provider once what it sells; returns the seconds until it is to be asked again."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                listings = await provider.listings()
        except TimeoutError:
            self.book.failed(provider.name, f"no answer within {ANSWER_LIMIT:g} s")
        except RateLimited as error:
            self.book.failed(provider.name, error.reason)
            return max(error.retry_after, SOON)
        except ProviderError as error:
            self.book.failed(provider.name, error.reason)
        else:
            self.book.note(provider.name, listings)
            return self._configs.providers.rented.live_minutes * 30
        return SOON


def nobody_online(waited_s: float) -> LabError:
    """Return the error for a quote while no factory is there."""
    return LabError(
        Code.NO_CAPACITY, f"no factory is online; none came within {waited_s:g} s.",
        advice="Start one (`meetara up`), then send the request again.", retry=Retry.LATER, retry_after=30,
    )  # fmt: skip
