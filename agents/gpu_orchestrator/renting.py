"""The rented side of the orchestrator: machines of providers for jobs that wait for one, for as long as they are needed.

A part of the agent, with its store, its fleet and its transactions: `office` decides, `keeper` speaks with the providers.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from agents.gpu_orchestrator import queue
from agents.gpu_orchestrator.clouds import Clouds
from agents.gpu_orchestrator.fleet import Fleet
from agents.gpu_orchestrator.market import history
from agents.gpu_orchestrator.market.desk import Desk
from agents.gpu_orchestrator.providers.provider import Instance, ProviderError
from agents.gpu_orchestrator.rentals import purse
from agents.gpu_orchestrator.rentals.keeper import Keeper
from agents.gpu_orchestrator.rentals.office import Asking, Office
from agents.gpu_orchestrator.rentals.owner import out_of_sight
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import Rentals
from bus import Answer, Transaction, Wiring
from bus.freeze import read_freeze
from bus.lease import Leases
from bus.redact import of_error
from protocol import LabError, Topics, uuid7
from protocol.machine import LeaseRequest, ProviderStatus, RequoteRequest
from protocol.money import BudgetMode, Reservation

CROWD = 20
"""From so many waiting jobs on they are placed together, at most once in PLACE: with a thousand, one look takes 0.1 s."""
PLACE = timedelta(seconds=2)

LAB_IN_TAG = 32
"""Characters of the lab's name in a tag: with mark and rental it has to fit Lambda's 64. The mark tells labs apart."""


class Host(Protocol):
    """What renting needs of the agent that it is a part of."""

    log: Any
    home: Path
    topics: Topics
    wiring: Wiring
    timer_handlers: dict[str, Any]

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a transaction."""

    async def until_stored(self, work: Callable[[], None]) -> None:
        """Repeat until the store takes it."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something until the agent ends."""

    def watch(self, topic_filter: str, callback: Any) -> None:
        """Be told what is published on a topic."""

    def hand_out(self, tx: Transaction) -> None:
        """Answer who can be answered now."""

    def grant(self, job: LeaseRequest, machine: str, price: int, requests: Mapping[str, LeaseRequest], tx: Transaction) -> None:
        """Lease a machine to a job."""

    def waiting(self, tx: Transaction, job: str | None = None) -> list[Any]:
        """Return the calls that wait for a machine."""


class Renting:
    """Rents machines, gives them to jobs, and ends them.

    Args:
        host: the agent.
        clouds: what machines are rented with.
        desk: what is for sale.
        fleet: who is online.
    """

    def __init__(self, host: Host, clouds: Clouds, desk: Desk, fleet: Fleet) -> None:
        self._host, self._desk, self._fleet, self._tick = host, desk, fleet, clouds.tick
        self.log = host.log
        self._trouble: dict[str, str] = {}
        self._told: dict[str, ProviderStatus] = {}
        self._by_bus: tuple[datetime | None, str] | None = None
        self._by_file: tuple[datetime | None, str] | None = None
        self._frozen: datetime | None = None
        self._reported: list[tuple[str, datetime | None]] = []
        self._placed: datetime | None = None
        self._asleep = asleep()
        prefix = self._prefix()
        billing = frozenset(name for name, provider in clouds.providers.items() if provider.bills)
        self._office = Office(
            desk, lambda: uuid7()[-12:], clouds.admission.token, prefix, clouds.limits, billing,
            frozenset(clouds.providers), clouds.closed,
        )  # fmt: skip
        self._keeper = Keeper(
            clouds.providers, self, clouds.admission, prefix=prefix, image=clouds.image, limits=clouds.limits, tick=clouds.tick,
            replaced=clouds.replaced,
        )  # fmt: skip
        host.timer_handlers["extend"] = self._extend_due
        host.watch(host.topics.of("cost_mode"), self._mode_heard)

    def _prefix(self) -> str:
        """Return what this lab's tags begin with: its name, and what tells it from a lab of the same name elsewhere."""
        with self.transaction() as tx:
            tx.connection.execute("INSERT OR IGNORE INTO self VALUES ('mark', ?)", (uuid7()[-8:],))
            mark = tx.connection.execute("SELECT value FROM self WHERE name = 'mark'").fetchone()[0]
        return f"meetara-{self._host.topics.lab[:LAB_IN_TAG]}-{mark}-"

    def start(self) -> None:
        """Take up the rentals that the last process left."""
        with self.transaction() as tx:
            for rental in Rentals(tx.connection).living():
                if rental.provider not in self._keeper.providers:
                    self.log.error("a machine costs money and its provider has no key", rental=rental.id, provider=rental.provider)
        for name in self._keeper.providers:
            self._host.spawn(self._keeper.keep(name))
        self._host.spawn(self._keeper.keep_logins())
        self._host.spawn(self._tend())

    def tell_again(self, tx: Transaction) -> None:
        """Tell a broker that has forgotten everything how providers are, and who may come in."""
        self._told.clear()
        self._tell_providers(tx)
        self._let_in(Rentals(tx.connection).living(), tx)

    # jobs

    def hand_out(self, jobs: Sequence[LeaseRequest], requests: Mapping[str, LeaseRequest], tx: Transaction) -> None:
        """Give waiting jobs the rented machines of their kind, and rent more where that is too few."""
        if not jobs or self._frozen is not None:
            return
        store = Rentals(tx.connection)
        machines = {m.name: m for m in self._fleet.machines(Leases(tx.connection).live()) if m.rental is not None and m.free > 0}
        free = [rental for rental in store.living() if rental.state is State.READY and rental.machine in machines]
        together = len(jobs) > CROWD and self._placed is not None and timedelta(0) <= tx.now - self._placed < PLACE
        if together:
            assert self._placed is not None
            tx.timer("place", "", self._placed + PLACE)  # soon, together with what else comes until then
            kinds = {rental.kind for rental in free}
            jobs = [job for job in jobs if job.kind in kinds]
        askings = {asking.request.job: asking for asking in self._askings(jobs, tx)}
        for rental in free:
            fitting = [
                asking.request for asking in askings.values()
                if asking.request.kind == rental.kind and asking.accepts(rental)
            ]  # fmt: skip
            for waiting, _ in queue.assign(map(queue.waiting, fitting), [machines[rental.machine]], tx.now):
                self._begin(askings.pop(waiting.job), rental, requests, tx)
        self._office.till.settle(tx)  # who has handed a machine over
        if not together:
            self._placed = tx.now
            if self._office.place(askings.values(), tx):
                tx.after_commit(self._keeper.wake)

    def _askings(self, jobs: Sequence[LeaseRequest], tx: Transaction) -> list[Asking]:
        """Return jobs with what their quotes were asked with."""
        if not jobs:
            return []
        rows = tx.connection.execute("SELECT job, request FROM asked WHERE job IN (SELECT job FROM waiting)")
        quotes = {row["job"]: row["request"] for row in rows}
        return [Asking(job, queue.quote_of(quotes[job.job])) for job in jobs if job.job in quotes]

    def _begin(self, asking: Asking, rental: Rental, requests: Mapping[str, LeaseRequest], tx: Transaction) -> None:
        """Let a job begin on a rented machine, and pay for it."""
        store, job = Rentals(tx.connection), asking.request
        account, payer = store.account(job.job), store.payer(rental.id)
        assert account is not None and job.offer is not None
        if payer is not None and payer.job == job.job and job.offer.gpu == rental.listing.gpu:
            taken = job.offer.model_copy(update={"provider": rental.provider})  # where the quoted one was sold out
            history.begin(tx.connection, job.job, taken, rental.created_at)  # not of a machine that is warm
        store.pays(rental, account, tx.now)
        self._host.grant(job, rental.machine, rental.price_micros_per_hour, requests, tx)
        self._office.granted(asking, rental, tx.now)
        self._let_in([rental], tx)

    def released(self, over: bool, tx: Transaction) -> None:
        """A job has given back what it had; `over`: it has ended."""
        if over:
            self._office.till.settle(tx)
        self.look(tx)

    def probed(self, request: RequoteRequest, tx: Transaction) -> None:
        """The first steps of a job are measured: see whether its money and its time hold."""
        lease = Leases(tx.connection).of(request.job)
        rental = next((r for r in Rentals(tx.connection).living() if lease is not None and r.machine == lease.machine), None)
        if lease is not None and rental is not None and request.fence in (None, lease.fence):
            rest = self._desk.rest(request, rental.listing, rental.price_micros_per_hour)
            purse.probed(request, rest, lease, rental, tx)

    def answered(self, answer: Answer, tx: Transaction) -> None:
        """Take in an answer of the cost monitor."""
        if answer.method == "budget.settle":
            self._office.till.settled(answer.context["payer"], tx)
        elif answer.method == "budget.extend":
            word = answer.error or answer.result
            assert isinstance(word, LabError | Reservation)
            purse.extended(answer.key, word, tx, likely=answer.context.get("likely"))
            if isinstance(word, Reservation):
                self._host.hand_out(tx)

    def _let_in(self, rentals: Sequence[Rental], tx: Transaction) -> None:
        """Tell the broker for which jobs workers are in, once the leases are stored."""
        tx.after_commit(lambda: self._keeper.admit(rentals))

    async def _tend(self) -> None:
        """Look after the rentals for ever: workers that came or went silent, money that runs out."""
        while True:
            await asyncio.sleep(self._tick)
            await self._host.until_stored(self._tend_once)

    def _tend_once(self) -> None:
        freeze = read_freeze(self._host.home)
        self._by_file = None if freeze is None else (freeze.at, freeze.note or f"the {freeze.period}'s budget is used up")
        with self.transaction() as tx:
            self._follow_freeze(tx)
            if self.look(tx):
                self._host.hand_out(tx)
            self._tell_providers(tx)

    def clock_was_set(self, seconds: float, tx: Transaction) -> None:
        """Follow the wall clock."""
        slept = asleep() - self._asleep
        self._asleep += slept
        self._office.clock_was_set(seconds, min(slept, seconds) if seconds > 0 else 0.0, tx)

    # the freeze

    def _mode_heard(self, topic: str, payload: bytes) -> None:
        """The cost monitor tells how paid work goes on; the stop file in the home says the same without the bus."""
        try:
            mode = BudgetMode.model_validate_json(payload) if payload else None
        except ValidationError as error:
            self.log.warning("not understood", topic=topic, **of_error(LabError.from_validation(error, "mode")))
            return
        self._desk.distrusted = mode.frozen_providers if mode is not None else {}
        frozen = mode is not None and mode.mode == "frozen"
        self._by_bus = (mode.at, f"the {mode.period}'s budget is used up") if mode is not None and frozen else None
        with self.transaction() as tx:
            self._follow_freeze(tx)

    def _follow_freeze(self, tx: Transaction) -> None:
        """End everything that is rented while there is a freeze, by the bus or by the file, and rent nothing more."""
        word = self._by_file or self._by_bus
        if word is None:
            if self._frozen is not None:
                self._frozen = None
                self.log.info("paid work goes on")
                self._host.hand_out(tx)
            return
        if self._frozen is None:
            self._frozen = word[0] or tx.now
            self.log.warning("paid work is frozen", reason=word[1])
        self._store_changes(self._office.freeze(self._frozen, word[1], tx), tx)
        report = self._office.till.report(self._frozen, tx)
        ends = [(item.rental, item.verified_gone_at) for item in report.stopped]  # not what they cost: that grows each second
        if ends != self._reported:
            self._reported = ends
            tx.publish("cost_stopped", report)

    def look(self, tx: Transaction) -> bool:
        """Compare rentals with who is online; tells whether anything has changed."""
        online = {m.name: m.device for m in self._fleet.machines(()) if m.rental is not None}

        def wanted() -> set[str]:
            waiting = (queue.request_of(row["request"]) for row in self._host.waiting(tx))
            return {request.kind for request in waiting if request.offer is not None and request.offer.paid}

        changes = self._office.look(online, wanted, tx)
        self._store_changes(changes, tx)
        return bool(changes)

    def _store_changes(self, changes: Iterable[tuple[Rental, Rental]], tx: Transaction) -> None:
        for before, after in changes:
            Rentals(tx.connection).save(after)
            if after.state is not before.state:
                self.changed(before, after, tx)
            else:
                tx.after_commit(self._keeper.wake)

    # what the keeper asks and tells

    async def until_stored(self, work: Callable[[], None]) -> None:
        """Repeat until the store takes it."""
        await self._host.until_stored(work)

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a transaction."""
        return self._host.transaction()

    def now(self) -> datetime:
        """Read the clock."""
        return self._host.wiring.now()

    def changed(self, before: Rental, after: Rental, tx: Transaction) -> None:
        """Follow a rental into a new state."""
        self.log.info(
            "rental", rental=after.id, provider=after.provider, state=after.state.value, instance=after.instance,
            reason=after.reason or None, fault=after.fault or None,
        )  # fmt: skip
        self._office.changed(before, after, tx)
        self._tell_providers(tx)
        tx.after_commit(self._keeper.wake)
        if after.state in (State.READY, State.GONE):
            tx.timer("place", "", tx.now)

    def billed(self, rental: Rental, tx: Transaction) -> None:
        """Tell the cost monitor what a provider charges."""
        self._office.till.bill(rental, tx)

    def _extend_due(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        Rentals(tx.connection).refuse(key, "")
        self._host.hand_out(tx)

    def orphan(self, instance: Instance, tx: Transaction) -> None:
        """Tell that an instance runs which should not."""
        self.log.error("orphan found", provider=instance.provider, instance=instance.id, tag=instance.tag)

    def trouble(self, provider: str, error: ProviderError | None) -> None:
        """Note how the last look at a provider went."""
        if error is not None:
            self.log.warning("provider in trouble", provider=provider, error=type(error).__name__, reason=error.reason)
        self._trouble[provider] = "" if error is None else str(error)

    def _tell_providers(self, tx: Transaction) -> None:
        """Publish the status of paid providers where it has changed: slots are the machines that are rented there."""
        leased = Leases(tx.connection).machines()
        living = Rentals(tx.connection).living()
        slots = Counter(rental.provider for rental in living)
        free = Counter(rental.provider for rental in living if rental.state is State.READY and rental.machine not in leased)
        for name in self._keeper.providers:
            unseen = [rental for rental in living if rental.unseen_by and rental.provider == name]
            trouble = out_of_sight(name, unseen) if unseen else self._trouble.get(name, "")
            status = ProviderStatus(
                provider=name, status="degraded" if trouble else "up", slots=slots[name], free=free[name], reason=trouble, at=tx.now
            )
            told = self._told.get(name)
            if told is None or told.model_copy(update={"at": status.at}) != status:
                if unseen and (told is None or told.reason != trouble):
                    self.log.error("machines out of sight", provider=name, reason=trouble)
                self._told[name] = status
                tx.publish("provider_status", status, provider=name)


def asleep() -> float:
    """Return the seconds for which this machine has slept since it was booted; 0 where the system does not tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
