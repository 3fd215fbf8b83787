"""Rents machines for jobs that wait for one, and ends those that nobody needs; `till` settles what they cost.

Everything here happens within a transaction of the agent; it speaks with no provider (see `keeper`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Protocol

from agents.gpu_orchestrator.providers.provider import AuthFailed, QuotaExceeded
from agents.gpu_orchestrator.rentals import life, meter, purse
from agents.gpu_orchestrator.rentals.breaker import Breaker, circuit
from agents.gpu_orchestrator.rentals.life import Limits
from agents.gpu_orchestrator.rentals.placement import Wish, unserved
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import Account, Paying, Rentals
from agents.gpu_orchestrator.rentals.till import Till
from bus import Transaction
from bus.lease import Lease, Leases
from protocol.access import worker_name
from protocol.machine import (
    Device,
    LeaseDelay,
    LeaseLost,
    LeaseRecall,
    LeaseRequest,
    Listing,
    Offer,
    QuoteRequest,
)
from protocol.money import (
    dollars,
)

RETRY = timedelta(seconds=30)
"""How soon waiting jobs are placed anew where nothing says when another try makes sense."""
DEARER = 1.5
"""How many times the quoted reservation a fallback may reserve where the request names no budget: the next machines in order of
price are within it, while one that costs many times more is worth a wait."""
EARLY = timedelta(seconds=60)
"""How long before its money ends a job asks for more: the answer takes a second, or a broker's restart."""
UNTOLD = 300.0
"""Seconds for which a machine counts as taken by a job that an earlier process of this agent has put there."""
SILENT = timedelta(seconds=60)
"""A ready machine whose worker has been offline for so long is ended: two lease lives, so no short break of a line."""
OTHER_HOST = timedelta(hours=1)
"""How long a type of machine is left alone of which one host was less than it said: at once one would get the same host again."""
STRICT = (AuthFailed.__name__, QuotaExceeded.__name__)
"""Faults that concern all machines of a provider."""


class Market(Protocol):
    """What can be rented for a job."""

    def ranked(self, request: QuoteRequest, now: datetime) -> Sequence[tuple[Offer, Listing]]:
        """Return what fits a job and may be launched now, the best first."""


@dataclass(frozen=True)
class Asking:
    """A job that waits for a rented machine, and what its quote was asked with."""

    request: LeaseRequest
    quote: QuoteRequest

    def wish(self, setup: timedelta) -> Wish:
        """Return what it needs of a machine that is set up already."""
        offer, named = self.request.offer, self.quote.providers
        assert offer is not None
        return Wish(
            self.request.job, self.request.kind, self.request.priority, self.request.submitted_at,
            max(0.0, offer.seconds_p50 - setup.total_seconds()),
            (self.quote.untrusted_hosts, None if named is None else tuple(sorted(named)), self.quote.checkpoints), self.accepts,
            (offer.price_micros_per_hour, self.request.memory_bytes, frozenset(self.request.avoid)),
        )  # fmt: skip

    def accepts(self, rental: Rental) -> bool:
        """Tell whether the job may run on a machine that was rented for another one."""
        offer, listing, named = self.request.offer, rental.listing, self.quote.providers
        assert offer is not None
        return (
            (listing.secure or self.quote.untrusted_hosts)
            and (named is None or rental.provider in [name.lower() for name in named])
            and (not listing.spot or self.quote.checkpoints != "machine")
            and rental.price_micros_per_hour <= offer.price_micros_per_hour * DEARER
            and (not listing.memory_bytes or listing.memory_bytes >= self.request.memory_bytes)
            and rental.machine not in self.request.avoid
        )


class Office:
    """Rents and ends.

    Args:
        market: what can be rented.
        names: makes the id of a new rental.
        tokens: makes the token of a rental's worker, from its id and its provider.
        prefix: what the tags of this lab's instances begin with.
        billing: providers that tell what they have charged.
        known: providers with a key.
        closed: why nothing is rented; what is rented already is looked after all the same.
    """

    def __init__(
        self, market: Market, names: Callable[[], str], tokens: Callable[[str, str], str], prefix: str, limits: Limits,
        billing: frozenset[str], known: frozenset[str], closed: str = "",
    ) -> None:  # fmt: skip
        self.breaker = Breaker()
        self._market, self._names, self._tokens, self._prefix, self._limits = market, names, tokens, prefix, limits
        self.till = Till(billing)
        self._known, self._closed = known, closed
        self._offline: dict[str, datetime] = {}
        self._told: dict[str, str] = {}
        self._dear: dict[str, datetime] = {}
        self._until: dict[str, datetime] = {}

    # renting

    def place(self, waiting: Iterable[Asking], tx: Transaction) -> bool:
        """Order machines for jobs that can share none; tells the conductor why a job must wait.

        Returns:
            Whether any was ordered.
        """
        store = Rentals(tx.connection)
        askings = {asking.request.job: asking for asking in waiting}
        living, leased = store.living(), Leases(tx.connection).machines()
        busy = {rental.id: self._remaining(rental, tx.now) for rental in living if rental.machine in leased}
        taken = {(rental.provider, rental.listing.id) for rental in living if rental.listing.single}
        refused: dict[tuple[object, ...], str] = {}
        first: dict[tuple[object, ...], str] = {}
        ordered = False
        for wish in unserved((asking.wish(self._limits.setup) for asking in askings.values()), living, busy):
            asking = askings[wish.job]
            offer = asking.request.offer
            assert offer is not None
            alike = (
                wish.kind, wish.terms, offer.reservation_micros, asking.request.limit_micros, asking.request.memory_bytes,
                asking.quote.deadline_hours, asking.quote.economy,
            )  # fmt: skip
            # what one job was refused, all that want the same are: there may be hundreds
            account = store.account(wish.job)
            assert account is not None
            spent = store.spent(wish.job, tx.now)
            fresh = not account.refused and not spent and account.reserved_micros == account.agreed_micros
            reason = self._closed or (refused.get(alike) if fresh else None)
            if reason is None:
                reason = self._rent(asking, account, spent, taken, store, tx)
                if reason is not None and fresh:  # else it may be short of money, not of machines
                    refused[alike], first[alike] = reason, wish.job
            elif reason is not self._closed:  # all of them wait for one price, and for one hour
                since = self._dear.get(first[alike])
                if since is None:
                    self._dear.pop(wish.job, None)
                else:
                    self._dear.setdefault(wish.job, since)
            ordered = ordered or reason is None
            if reason is not None:
                self._delay(wish.job, reason, tx)
                tx.timer("place", "", min(self.breaker.next(tx.now) or tx.now + RETRY, tx.now + RETRY))
        return ordered

    def _rent(
        self, asking: Asking, account: Account, spent: int, taken: set[tuple[str, str]], store: Rentals, tx: Transaction
    ) -> str | None:  # fmt: skip
        """Order the best machine that may be had; returns why there is none.

        Args:
            spent: what the job owes so far, in micro-dollars.
            taken: provider and listing of what there is one of, and it is rented; what is ordered now comes to it.
        """
        agreed = asking.request.offer
        assert agreed is not None
        left = account.reserved_micros - spent
        shunned = store.shunned(tx.now)
        reasons: dict[str, str] = {}
        needed: int | None = None
        hope = dear = False
        limit = asking.request.limit_micros  # what was approved, or the request's own budget
        most = math.floor(agreed.reservation_micros * DEARER) if limit is None else limit - spent
        for offer, listing in self._market.ranked(asking.quote, tx.now):
            key = (listing.provider, listing.id)
            why = shunned.get(key)
            if why is None and listing.memory_bytes and listing.memory_bytes < asking.request.memory_bytes:
                why = "it has less memory than the job needs"
            if why is None and offer.reservation_micros > most:
                why = f"it needs {dollars(offer.reservation_micros)}, at most {dollars(most)} may be spent instead of what was quoted"
                dear = True
            hope = hope or why is None
            if why is None:
                why = "it is rented already" if key in taken else self.breaker.open(circuit(listing), tx.now)
            if why is None and offer.reservation_micros > left:
                why = f"it needs {dollars(offer.reservation_micros)}, {dollars(left)} of the reservation are left"
                # rounded up: the meter of a machine that is just being ended still runs
                needed = needed or spent + min(offer.reservation_micros + agreed.reservation_micros // 10, most)
            if why is None:
                self._order(asking, account, offer, listing, store, tx)
                if listing.single:
                    taken.add(key)
                self._dear.pop(account.job, None)
                return None
            reasons[f"{listing.provider} {listing.id}"] = why
        if needed is not None and needed > account.agreed_micros * purse.OVERRUN:
            reason = f"it has spent {dollars(spent)} and would need {dollars(needed)} in all, {purse.OVERRUN} times what was quoted."
            purse.refuse(account.job, reason, tx)
            return reason
        if needed is not None:  # another machine costs more, or what was lost with earlier ones is needed again
            return purse.extend(account, needed, tx)
        listed = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:3])
        more = f", and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        reason = f"no machine can be rented now: {listed or 'nothing that fits is offered'}{more}."
        if hope or not dear:  # more money would change nothing: what fits is sold out, or was not what it said
            self._dear.pop(account.job, None)
        elif tx.now - self._dear.setdefault(account.job, tx.now) > self._limits.dear:
            purse.refuse(account.job, f"{reason} Allow more with budget_usd, and send the request again.", tx)
        return reason

    def _order(
        self, asking: Asking, account: Account, offer: Offer, listing: Listing, store: Rentals, tx: Transaction
    ) -> None:  # fmt: skip
        id = self._names()
        disk = max(offer.disk_bytes or 0, asking.quote.plan.disk_bytes)
        disk_gb = math.ceil(disk / 10**9)
        most = offer.price_micros_per_hour + disk_gb * listing.disk_micros_per_gb_hour
        rental = Rental(
            id=id, provider=listing.provider, listing=listing, kind=asking.request.kind, tag=f"{self._prefix}{id}",
            machine=worker_name(id), needs_disk_bytes=disk,
            limit_micros_per_hour=most, price_micros_per_hour=most,
            created_at=tx.now, state_at=tx.now, token=self._tokens(id, listing.provider),
        )  # fmt: skip
        store.save(rental)
        store.pays(rental, account, tx.now)
        self._told.pop(account.job, None)

    def _delay(self, job: str, reason: str, tx: Transaction) -> None:
        if self._told.get(job) != reason:
            self._told[job] = reason
            tx.call("lease.delay", LeaseDelay(job=job, reason=reason), key=job)

    def _remaining(self, rental: Rental, now: datetime) -> float:
        """Return the seconds for which a leased machine is taken by the job that runs there."""
        until = self._until.get(rental.id)
        return UNTOLD if until is None else max(0.0, (until - now).total_seconds())

    def granted(self, asking: Asking, rental: Rental, now: datetime) -> None:
        """Note that a job begins on a machine, and how long it will likely take."""
        self._until[rental.id] = now + timedelta(seconds=asking.wish(self._limits.setup).seconds)

    # what happens to rentals

    def changed(self, before: Rental, after: Rental, tx: Transaction) -> None:
        """Follow a rental into a new state."""
        if after.state is State.READY:
            self.breaker.worked(circuit(after.listing))
        if after.state is State.LEAVING:
            for lease in self._leases(after, tx):
                recall = LeaseRecall(job=lease.job, lease=lease.lease, fence=lease.fence, reason=after.reason)
                tx.call("lease.recall", recall, key=lease.job, id=f"{lease.lease}:recall")
        if after.state in (State.ENDING, State.GONE):
            for lease in self._leases(after, tx):
                self.lose(lease, after, tx)
        if after.state is State.GONE and after.fault:
            wide = after.fault in STRICT
            self.breaker.failed((after.provider, "", "") if wide else circuit(after.listing), after.reason, tx.now)
        if after.state is State.GONE:
            self.till.settle(tx)
            self.till.unpaid(after, tx)

    def lose(self, lease: Lease, rental: Rental, tx: Transaction) -> None:
        """End a lease whose machine is lost, and tell the conductor, which lets the job go on elsewhere."""
        Leases(tx.connection).release(lease.job, lease.lease)
        tx.cancel_timer("lease", lease.job)
        lost = LeaseLost(
            job=lease.job, lease=lease.lease, fence=lease.fence, machine=lease.machine, counts=False,
            reason=f"the machine at {rental.provider} is lost: {rental.reason}.",
        )  # fmt: skip
        tx.call("lease.lost", lost, key=lease.job, id=f"{lease.lease}:lost")

    def look(
        self, online: Mapping[str, Device | None], wanted: Callable[[], set[str]], tx: Transaction
    ) -> list[tuple[Rental, Rental]]:  # fmt: skip
        """Compare rentals with the workers that are online; returns what has changed, which the caller must store.

        Args:
            online: machine to what its card says that it has.
            wanted: tells the kinds of the jobs that wait; not asked while all machines are leased and paid for.
        """
        leased = Leases(tx.connection).machines()
        kinds = cache(wanted)
        store = Rentals(tx.connection)
        living = store.living()
        paying = store.paying(living, tx.now)
        changes = []
        for rental in living:
            after = self._looked(rental, online, leased, kinds, paying.get(rental.id), store, tx)
            if after is not rental and after != rental:
                changes.append((rental, after))
        return changes

    def _looked(
        self, rental: Rental, online: Mapping[str, Device | None], leased: set[str], kinds: Callable[[], set[str]],
        paying: Paying | None, store: Rentals, tx: Transaction,
    ) -> Rental:  # fmt: skip
        if rental.open and rental.provider not in self._known:
            return life.ending(rental, tx.now, f"there is no key of {rental.provider} any more")
        here = rental.machine in online
        if rental.state is State.BOOTING and here:
            if (lie := life.lie(rental, online[rental.machine])) is not None:
                store.shun(rental, lie, tx.now, None if rental.listing.single else tx.now + OTHER_HOST)
                return life.ending(rental, tx.now, lie, fault=lie)
            return rental.into(State.READY, tx.now)
        coming = rental.state in (State.ORDERED, State.UNCERTAIN, State.BOOTING)
        if coming and paying is not None and paying.account.over and rental.kind not in kinds():
            return life.ending(rental, tx.now, "nobody needs it")
        if not rental.open:
            return rental
        if paying is not None and rental.metered_from is not None:
            account = paying.account
            end = meter.lasts_until(rental, paying.payer, paying.left_micros) - self._limits.end
            if tx.now >= end:
                return life.leaving(rental, tx.now, "the money that was reserved for it is used up")
            if tx.now >= end - EARLY and account.reserved_micros < account.agreed_micros * purse.OVERRUN:
                purse.extend(account, account.reserved_micros + max(1, account.agreed_micros // 4), tx)
        if rental.state is not State.READY:
            return rental
        if not here:
            if rental.id not in self._offline:
                self._offline[rental.id] = tx.now
                return rental.model_copy(update={"next_at": None})  # was it taken away? A lease would tell only when it runs out
            if rental.next_at is not None and rental.next_at > tx.now + self._limits.pause:
                return rental.model_copy(update={"next_at": tx.now + self._limits.pause})  # vendors notice late
            since = self._offline[rental.id]
            if tx.now - since > SILENT:
                return life.ending(rental, tx.now, "its worker went silent", fault="its worker went silent")
            return rental
        self._offline.pop(rental.id, None)
        idle = rental.machine not in leased and rental.kind not in kinds()
        if idle != (rental.quiet_since is not None):
            return rental.model_copy(update={"quiet_since": tx.now if idle else None})
        return rental

    def clock_was_set(self, seconds: float, slept: float, tx: Transaction) -> None:
        """Follow the wall clock; `slept` are the seconds of them for which this machine was asleep."""
        Rentals(tx.connection).shift(seconds, seconds - slept)
        by = timedelta(seconds=seconds)
        self._offline = {id: since + by for id, since in self._offline.items()}
        self._dear = {job: since + by for job, since in self._dear.items()}
        self.breaker.shift(by)

    def freeze(self, began: datetime, reason: str, tx: Transaction) -> list[tuple[Rental, Rental]]:
        """End all rentals; their jobs save first. Returns what has changed, which the caller must store."""
        changes = []
        for rental in Rentals(tx.connection).living():
            if rental.stopped_by is None and rental.state is not State.ENDING:
                after = rental if rental.state is State.LEAVING else life.leaving(rental, tx.now, reason)
                changes.append((rental, after.model_copy(update={"stopped_by": began})))
        return changes

    def _leases(self, rental: Rental, tx: Transaction) -> list[Lease]:
        return [lease for lease in Leases(tx.connection).live() if lease.machine == rental.machine]
