"""The only place that speaks with providers: makes the calls that are due and stores what they answer.

A call is made outside of any transaction and never twice at a time for one rental; what it answers is applied to the
rental as it is then. A process that was killed at any moment goes on from what is stored.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from agents.gpu_orchestrator.providers.provider import Instance, Order, Phase, Provider, ProviderError, Unknown
from agents.gpu_orchestrator.rentals import life
from agents.gpu_orchestrator.rentals.life import Act, Limits
from agents.gpu_orchestrator.rentals.owner import Owner
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import Rentals
from bus import Transaction
from bus.lease import Leases
from protocol import LabError
from protocol.access import is_lent, rental_of

TICK = 1.0
"""Seconds between two looks at what is due; a freeze must be acted on within seconds."""
REAP = timedelta(seconds=60)
"""Each provider's instances are compared with the books so often (architecture §5)."""


class Books(Protocol):
    """What the keeper needs of the agent."""

    log: Any

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a transaction."""

    async def until_stored(self, work: Callable[[], None]) -> None:
        """Repeat until the store takes it: a full disk or a locked file delays, it loses nothing."""

    def now(self) -> datetime:
        """Read the clock."""

    def changed(self, before: Rental, after: Rental, tx: Transaction) -> None:
        """Be told of every new state of a rental, in the transaction that stores it."""

    def billed(self, rental: Rental, tx: Transaction) -> None:
        """Be told what a provider charges for a rental that is gone."""

    def orphan(self, instance: Instance, tx: Transaction) -> None:
        """Be told that an instance was found which should not be; it is being terminated."""

    def trouble(self, provider: str, error: ProviderError | None) -> None:
        """Be told how the last look at a provider went."""


class Admission(Protocol):
    """Lets rented workers in at the broker, and out again. All but `environment` raise LabError while the broker is away."""

    def token(self, rental: str, provider: str) -> str:
        """Make the token of a new rental's worker."""

    def environment(self, rental: Rental) -> Mapping[str, str]:
        """Return what the worker is started with."""

    async def admit(self, rental: Rental, jobs: Iterable[str]) -> None:
        """Let a rental's worker in for these jobs; the same again changes nothing."""

    async def dismiss(self, worker: str) -> None:
        """End a worker's login."""

    async def admitted(self) -> set[str]:
        """Return the names of all workers that are let in."""


class Keeper:
    """Keeps the rentals of all providers.

    Args:
        providers: by name.
        prefix: what the tags of this lab's instances begin with; nothing else is ever touched.
        image: container image of the worker.
        tick: seconds between two looks.
        replaced: fingerprints of earlier keys that the lab's owner answers for.
    """

    def __init__(
        self, providers: Mapping[str, Provider], books: Books, admission: Admission, *,
        prefix: str, image: str, limits: Limits, tick: float = TICK, reap: timedelta = REAP,
        replaced: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.providers = providers
        self._books, self._admission = books, admission
        self._prefix, self._image, self._limits = prefix, image, limits
        self._tick, self._reap = tick, reap
        self._owners = {name: Owner(provider.fingerprint, replaced=replaced) for name, provider in providers.items()}
        self._wake = {name: asyncio.Event() for name in providers}
        self._flying: dict[str, asyncio.Task[None]] = {}
        self._logins: set[str] = set()
        self._untidy = False

    def wake(self) -> None:
        """Look at once."""
        for event in self._wake.values():
            event.set()

    async def keep(self, name: str) -> None:
        """Keep one provider's rentals, for ever."""
        provider = self.providers[name]
        reaped: datetime | None = None
        reaping: asyncio.Task[None] | None = None
        try:
            while True:
                self._wake[name].clear()
                due: list[Rental] = []
                await self._books.until_stored(lambda due=due: due.extend(self._due(name)))  # type: ignore[misc]
                for rental in due:
                    if rental.id not in self._flying:
                        self._flying[rental.id] = asyncio.create_task(self._act(provider, rental))
                now = self._books.now()
                if reaping is None and (reaped is None or not timedelta(0) <= now - reaped < self._reap):
                    reaped, reaping = now, asyncio.create_task(self.reap(provider))  # apart: a list may hang
                if reaping is not None and reaping.done():
                    reaping.result()
                    reaping = None
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake[name].wait(), self._tick)
        finally:
            mine = [task for task in (*self._flying.values(), reaping) if task is not None and not task.done()]
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)
            await provider.close()

    def _due(self, name: str) -> list[Rental]:
        """Let time pass for all rentals of a provider; returns those for which a call is due."""
        with self._books.transaction() as tx:
            store, now, due = Rentals(tx.connection), self._books.now(), []
            for rental in store.living(name):
                after = self._store(store, rental, life.passed(rental, now, self._limits), tx)
                if life.due(after, now) is not None:
                    due.append(after)
            return due + [rental for rental in store.unbilled(name) if life.due(rental, now) is not None]

    async def _act(self, provider: Provider, rental: Rental) -> None:
        """Make the one call that is due for a rental."""
        try:
            act = life.due(rental, self._books.now())
            if act is Act.LAUNCH:
                await self._launch(provider, rental)
            elif act is Act.BILL:
                await self._ask_bill(provider, rental)
            elif act is not None:
                await self._look(provider, rental, act)
        finally:
            self._flying.pop(rental.id, None)
            self._wake[rental.provider].set()

    async def _launch(self, provider: Provider, rental: Rental) -> None:
        try:
            await self._admit(rental)
        except LabError as error:  # the broker is away; nothing is launched that could not come in
            await self._apply(rental, life.failed, Unknown(provider.name, str(error)))
            return
        asked: list[Rental] = []
        await self._books.until_stored(lambda: asked.extend(self._ask(rental)))
        if not asked:
            return  # it is not wanted any more
        environment = self._admission.environment(rental)
        order = Order(
            key=rental.id, tag=rental.tag, listing=rental.listing, image=self._image, environment=environment,
            disk_bytes=rental.needs_disk_bytes, limit_micros_per_hour=rental.limit_micros_per_hour,
        )  # fmt: skip
        try:
            instance = await provider.launch(order)
        except ProviderError as error:
            await self._apply(rental, life.refused, error)
        else:
            await self._apply(rental, partial(life.launched, owner=self._owners[provider.name]), instance)

    async def _look(self, provider: Provider, rental: Rental, act: Act) -> None:
        id, owner = rental.instance, self._owners[provider.name]
        try:
            if act is Act.FIND or id is None:
                await self._apply(rental, partial(life.found, owner=owner), await provider.list(rental.tag))
                return
            if act is Act.TERMINATE:
                await provider.terminate(id)
            instance = await provider.status(id)
        except ProviderError as error:
            await self._apply(rental, life.failed, error)
        else:
            await self._apply(rental, partial(life.terminated if act is Act.TERMINATE else life.seen, owner=owner), instance)

    async def _ask_bill(self, provider: Provider, rental: Rental) -> None:
        assert rental.instance is not None and rental.metered_from is not None
        shown = self._owners[provider.name].speaks_for(rental)  # no other account is charged for it
        try:
            micros = await provider.billed(rental.instance, rental.metered_from) if shown else None
        except ProviderError as error:
            await self._apply(rental, life.failed, error)
        else:
            await self._apply(rental, life.billed, micros)

    def _ask(self, rental: Rental) -> list[Rental]:
        """Write down that a launch is asked for; returns nothing where it is not wanted any more."""
        with self._books.transaction() as tx:
            store = Rentals(tx.connection)
            stored = store.of(rental.id)
            if stored is None or stored.state is not State.ORDERED:
                return []
            return [self._store(store, stored, life.asked(stored, self._books.now(), self._owners[stored.provider]), tx)]

    async def _apply(self, rental: Rental, change: Callable[[Rental, Any, datetime, Limits], Rental], answer: object) -> None:
        """Apply what a call answered to the rental as it is when the store takes it."""

        def work() -> None:
            with self._books.transaction() as tx:
                store = Rentals(tx.connection)
                stored = store.of(rental.id)
                if stored is not None:
                    self._store(store, stored, change(stored, answer, self._books.now(), self._limits), tx)

        await self._books.until_stored(work)

    def _store(self, store: Rentals, before: Rental, after: Rental, tx: Transaction) -> Rental:
        if after is before or after == before:
            return after
        store.save(after)
        if life.tells(before, after):
            self._books.billed(after, tx)
        if after.state is not before.state:
            self._books.changed(before, after, tx)
            if after.state is State.GONE:
                self._untidy = True
        return after

    # logins

    async def _admit(self, rental: Rental) -> None:
        with self._books.transaction() as tx:
            store = Rentals(tx.connection)
            payer = store.payer(rental.id)
            jobs = {lease.job for lease in Leases(tx.connection).live() if lease.machine == rental.machine}
        await self._admission.admit(rental, jobs | ({payer.job} if payer else set()))

    def admit(self, rentals: Iterable[Rental]) -> None:
        """Tell the broker for which jobs the workers of rentals are in; again until it has taken it."""
        for rental in rentals:
            self._logins.add(rental.id)
        self.wake()

    async def keep_logins(self) -> None:
        """Keep the workers' logins in step with the rentals, for ever."""
        looked: datetime | None = None
        while True:
            with suppress(LabError, sqlite3.OperationalError):  # the broker is away, or the store takes nothing: what is left to do is tried at the next look
                now = self._books.now()
                for id in list(self._logins):
                    with self._books.transaction() as tx:
                        rental = Rentals(tx.connection).of(id)
                    self._logins.discard(id)
                    if rental is not None and rental.state in (State.UNCERTAIN, State.BOOTING, State.READY, State.LEAVING):
                        self._logins.add(id)
                        await self._admit(rental)
                        self._logins.discard(id)
                if looked is None or not timedelta(0) <= now - looked < self._reap or self._untidy:
                    workers = await self._admission.admitted()  # asked first: who is let in from now on is not among them
                    with self._books.transaction() as tx:
                        living = {rental.machine for rental in Rentals(tx.connection).living()}
                    for worker in workers - living:
                        if not is_lent(rental_of(worker)):
                            await self._admission.dismiss(worker)
                    self._untidy, looked = False, now
            await asyncio.sleep(self._tick)

    async def reap(self, provider: Provider) -> None:
        """Compare a provider's instances with the books: what nobody knows, or what should be gone, is terminated."""
        await self._identify(provider)
        asked_at = self._books.now()
        try:
            listed: Sequence[Instance] = await provider.list(self._prefix)
        except ProviderError as error:
            self._books.trouble(provider.name, error)
            return
        self._books.trouble(provider.name, None)
        twins: list[Instance] = []
        await self._books.until_stored(lambda: self._compare(provider.name, listed, asked_at, twins))
        for instance in twins:
            try:
                await provider.terminate(instance.id)
            except ProviderError as error:
                self._books.trouble(provider.name, error)  # the next look finds it again

    async def _identify(self, provider: Provider) -> None:
        """Ask once whose the key is; without an answer the next reaping asks again."""
        owner = self._owners[provider.name]
        if not owner.account:
            with suppress(ProviderError):  # whatever it is, the list is asked for next and tells it
                self._owners[provider.name] = replace(owner, account=await provider.account() or "")

    def _compare(self, name: str, listed: Sequence[Instance], asked_at: datetime, twins: list[Instance]) -> None:
        """Compare what a provider lists with the books."""
        twins.clear()
        with self._books.transaction() as tx:
            store, now = Rentals(tx.connection), self._books.now()
            known = {rental.tag: rental.instance for rental in store.living(name)}
            for instance in listed:
                if instance.phase is Phase.GONE or not instance.tag.startswith(self._prefix):
                    continue
                if instance.tag in known:
                    if known[instance.tag] not in (None, instance.id):  # one launch has made two
                        twins.append(instance)
                    continue
                before = store.of(instance.tag.removeprefix(self._prefix))
                if before is not None and before.ended_at is not None and before.ended_at >= asked_at:
                    continue  # the list is older than its end
                after = life.orphan(instance, before, instance.tag.removeprefix(self._prefix), now, self._owners[name])
                self._books.orphan(instance, tx)
                self._store(store, before or after.into(State.GONE, now), after, tx)
