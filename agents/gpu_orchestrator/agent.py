"""The orchestrator's shell: cards and presences in; quotes, leases and the provider's status out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, cast

from pydantic import ValidationError

from agents.gpu_orchestrator import queue
from agents.gpu_orchestrator.clouds import Clouds
from agents.gpu_orchestrator.fleet import Fleet
from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market import history
from agents.gpu_orchestrator.market.desk import Desk, nobody_online
from agents.gpu_orchestrator.providers.provider import Instance, Provider, ProviderError
from agents.gpu_orchestrator.queue import Waiting
from agents.gpu_orchestrator.rentals.keeper import Keeper
from agents.gpu_orchestrator.rentals.office import Asking, Office
from agents.gpu_orchestrator.rentals.rental import Rental, State
from agents.gpu_orchestrator.rentals.store import SCHEMA as RENTALS
from agents.gpu_orchestrator.rentals.store import Rentals
from bus import DEFERRED, Answer, BaseAgent, Deferred, Transaction, Wiring
from bus.freeze import read_freeze
from bus.lease import SCHEMA as LEASES
from bus.lease import TTL, Lease, Leases
from bus.redact import of_error
from configs import Configs, load
from protocol import Code, LabError, MCPMessage, uuid7
from protocol.access import rental_of
from protocol.job import Empty
from protocol.machine import (
    Card,
    LeaseGrant,
    LeaseLost,
    LeaseRelease,
    LeaseRenewal,
    LeaseRequest,
    ListingPage,
    ListingQuery,
    Offer,
    Presence,
    ProviderStatus,
    Quote,
    QuoteRequest,
    RequoteRequest,
)  # fmt: skip
from protocol.money import BudgetMode, Reservation, StoppedRental

PROVIDER = "local"
LATE = timedelta(seconds=5)
"""A lease found so long past its end was not watched: this agent was stopped, or its file locked. Its loop is late by
milliseconds otherwise."""
QUOTE_WAIT = timedelta(seconds=10)
"""How long a quote waits for the first factory, and for the first word of each provider: a factory that is being restarted
is back in about 5 s."""

QUEUE = """
CREATE TABLE waiting (               -- lease.request calls that are not answered
    message TEXT PRIMARY KEY,
    job TEXT NOT NULL,
    request TEXT NOT NULL            -- the LeaseRequest as JSON
) WITHOUT ROWID;
CREATE INDEX waiting_job ON waiting (job);
CREATE TABLE quotes (                -- offer.quote calls that wait for a factory
    message TEXT PRIMARY KEY,
    request TEXT NOT NULL            -- the QuoteRequest as JSON
) WITHOUT ROWID;
"""


ASKED = """
CREATE TABLE asked (                 -- what the quotes of jobs on rented machines were asked with, for further launches
    job TEXT PRIMARY KEY,
    request TEXT NOT NULL            -- the QuoteRequest as JSON
) WITHOUT ROWID;
CREATE TABLE self (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class GpuOrchestratorAgent(BaseAgent):
    """Quotes jobs on the machines that are online, and leases their slots: highest priority first, then the oldest."""

    role: ClassVar[str] = "gpu_orchestrator"
    migrations: ClassVar[tuple[str, ...]] = (LEASES, QUEUE, RENTALS + ASKED, history.SCHEMA)

    def __init__(
        self, wiring: Wiring, configs: Configs | None = None, clouds: Clouds | None = None,
        sellers: Mapping[str, Provider] | None = None,
    ) -> None:  # fmt: skip
        """Make the agent; `sellers` are asked what they sell, of `clouds` it can be rented, too. None: those of `clouds`."""
        self._configs = configs or load()  # before the store is opened: a bad value must leave nothing behind
        rents = clouds.providers if clouds is not None else {}
        self._desk = Desk(self._configs, rents if sellers is None else sellers, rents)
        super().__init__(wiring)
        self._trouble: dict[str, str] = {}
        self._providers_told: dict[str, ProviderStatus] = {}
        self._by_bus: tuple[datetime | None, str] | None = None
        self._by_file: tuple[datetime | None, str] | None = None
        self._frozen: datetime | None = None
        self._reported: list[StoppedRental] = []
        self._desk.history = history.read(self.store.connection)
        self._keeper: Keeper | None = None
        self._office: Office | None = None
        if clouds is not None:
            self._rent_with(clouds)
        self._fleet = Fleet()
        self._grace_given = False
        self._told: ProviderStatus | None = None
        self.message_handlers.update(
            {
                "offer.quote": self._quote,
                "offer.requote": self._requote,
                "offer.list": self._list,
                "lease.request": self._request,
                "lease.renew": self._renew,
                "lease.release": self._release,
            }
        )
        self.timer_handlers.update({"lease": self._lease_due, "quote": self._quote_due})
        for method in ("lease.lost", "lease.recall", "lease.delay", "budget.release", "budget.bill"):
            self.reply_handlers[method] = self._answered
        self.reply_handlers["budget.settle"] = self._settled
        self.reply_handlers["budget.extend"] = self._extended
        self.timer_handlers["extend"] = self._extend_due
        self.timer_handlers["place"] = lambda key, data, tx: self._hand_out(tx)
        if clouds is not None:
            self.watch(self.topics.of("cost_mode"), self._mode_heard)
        for topic in ("card", "presence"):
            self.watch(self.topics.of(topic, role="gguf_factory", agent="+"), self._heard)

    async def started(self) -> None:
        """Give every lease one ttl, tell the provider's status, and take up the rentals that the last process left."""
        with self.transaction() as tx:
            self._grace(tx)
            self._tell(tx)
        if self._keeper is not None:
            for name in self._keeper.providers:
                self.spawn(self._keeper.keep(name))
            self.spawn(self._keeper.keep_logins())
            self.spawn(self._tend())
        self.spawn(self._desk.keep_fresh(self._listed))

    def broker_forgot(self) -> None:
        """Tell the provider's status again, and who may come in."""
        self._told = None
        self._providers_told.clear()
        with self.transaction() as tx:
            self._tell(tx)
            for provider in self._keeper.providers if self._keeper is not None else ():
                self._tell_provider(provider, tx)
            self._let_in(Rentals(tx.connection).living(), tx)

    # machines

    def _heard(self, topic: str, payload: bytes) -> None:
        *_, machine, kind = self.topics.levels(topic)
        if not payload:
            self._fleet.forget(machine)
        else:
            try:
                word = (Card if kind == "card" else Presence).model_validate_json(payload)
            except ValidationError as error:
                self.log.warning("not understood", topic=topic, **of_error(LabError.from_validation(error, kind)))
                return
            # the broker binds a topic to a login, so the topic tells who speaks, and a worker's name whose rental it is
            if word.agent != machine or (isinstance(word, Card) and word.rental != rental_of(machine)):
                self.log.warning("speaks for another", topic=topic, agent=word.agent)
                return
            self._fleet.note(word)
        with self.transaction() as tx:
            self._look(tx)
            self._hand_out(tx)

    def _tell(self, tx: Transaction) -> None:
        """Publish the provider's status where it has changed."""
        status = self._fleet.status(PROVIDER, self._leases(tx).live(), tx.now)
        if self._told is not None and self._told.model_copy(update={"at": status.at}) == status:
            return
        tx.publish("provider_status", status, provider=PROVIDER)

        def told() -> None:
            self._told = status

        tx.after_commit(told)

    # quotes

    def _quote(self, message: MCPMessage, tx: Transaction) -> Quote | Deferred:
        request = cast(QuoteRequest, self.params(message))
        self._desk.requirements(request)  # what is wrong with it is told at once
        if self._desk.ready(request, self._own(())):
            return self._quoted(request, tx)
        tx.connection.execute("INSERT OR REPLACE INTO quotes VALUES (?, ?)", (message.id, request.model_dump_json()))
        tx.timer("quote", message.id, tx.now + QUOTE_WAIT)
        return DEFERRED

    def _quoted(self, request: QuoteRequest, tx: Transaction) -> Quote:
        quote = self._desk.quote(request, self._own(self._leases(tx).live()), tx.now)
        self.log.info("quoted", job=request.job, provider=quote.choice.provider, machine=quote.choice.machine)
        if quote.choice.paid:
            tx.connection.execute("INSERT OR REPLACE INTO asked VALUES (?, ?)", (request.job, request.model_dump_json()))
        return quote

    def _answer_quotes(self, tx: Transaction) -> None:
        for row in tx.connection.execute("SELECT * FROM quotes").fetchall():
            request = QuoteRequest.model_validate_json(row["request"])
            if self._desk.ready(request, self._own(())):
                self._answer_quote(row["message"], request, tx)
                tx.cancel_timer("quote", row["message"])

    def _answer_quote(self, message: str, request: QuoteRequest, tx: Transaction) -> None:
        try:
            tx.reply(message, self._quoted(request, tx))
        except LabError as error:
            tx.reply(message, error)
        tx.connection.execute("DELETE FROM quotes WHERE message = ?", (message,))

    def _quote_due(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        row = tx.connection.execute("SELECT request FROM quotes WHERE message = ?", (key,)).fetchone()
        if self._office is not None or self._own(()):
            self._answer_quote(key, QuoteRequest.model_validate_json(row["request"]), tx)
            return
        tx.connection.execute("DELETE FROM quotes WHERE message = ?", (key,))
        tx.reply(key, nobody_online(QUOTE_WAIT.total_seconds()))

    def _requote(self, message: MCPMessage, tx: Transaction) -> Offer:
        return self._desk.requote(cast(RequoteRequest, self.params(message)))

    def _list(self, message: MCPMessage, tx: Transaction) -> ListingPage:
        return self._desk.page(cast(ListingQuery, self.params(message)), self._own(()), tx.now)

    def _listed(self) -> None:
        """A provider has told what it sells, or failed to."""
        with self.transaction() as tx:
            self._hand_out(tx)

    def _worked(self, job: str, done: bool, tx: Transaction) -> None:
        history.end(tx.connection, job, tx.now, done=done)
        if done:
            self._desk.history = history.read(tx.connection)

    # leases

    def _leases(self, tx: Transaction) -> Leases:
        return Leases(tx.connection)

    def _request(self, message: MCPMessage, tx: Transaction) -> Deferred:
        request = cast(LeaseRequest, self.params(message))
        tx.connection.execute(
            "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?)", (message.id, request.job, request.model_dump_json())
        )
        if request.offer is not None and request.offer.paid:
            Rentals(tx.connection).open_account(request.job, request.reservation, request.offer.reservation_micros)
        self._hand_out(tx)
        return DEFERRED

    def _renew(self, message: MCPMessage, tx: Transaction) -> LeaseGrant:
        request = cast(LeaseRenewal, self.params(message))
        self._grace(tx)
        lease = self._leases(tx).renew(request.job, request.lease, request.fence, tx.now)
        tx.timer("lease", lease.job, lease.expires_at)
        return self._granted(lease, tx)

    def _release(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(LeaseRelease, self.params(message))
        if self._leases(tx).release(request.job, request.lease) is not None:
            tx.cancel_timer("lease", request.job)
        if request.lease is None:
            gone = LabError(Code.CANCELLED, f"job {request.job} has left the queue for a machine.", job=request.job)
            for row in self._waiting(tx, request.job):
                self._answer_waiting(row["message"], gone, tx)
        if request.over:
            Rentals(tx.connection).end_account(request.job)
            if self._office is not None:
                self._office.settle(tx)
        self._worked(request.job, request.done, tx)
        self._look(tx)
        self._hand_out(tx)
        return Empty()

    def _lease_due(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        leases = self._leases(tx)
        if not self._grace_given:
            self._grace(tx)
            return
        over = leases.expired(tx.now)
        if self._session is None or (over and tx.now - over[0].expires_at > LATE):
            self._extend(tx)  # off the bus, or stopped, nobody could renew; what is late is not therefore dead
            return
        for lease in leases.take_expired(tx.now):
            self.log.warning("lease lost", job=lease.job, machine=lease.machine, fence=lease.fence)
            tx.cancel_timer("lease", lease.job)
            self._worked(lease.job, False, tx)
            lost = LeaseLost(job=lease.job, lease=lease.lease, fence=lease.fence, machine=lease.machine)
            tx.call("lease.lost", lost, key=lease.job, id=f"{lease.lease}:lost")
        rest = leases.of(key)
        if rest is not None:  # it was renewed in the meantime
            tx.timer("lease", key, rest.expires_at)
        self._hand_out(tx)

    def _grace(self, tx: Transaction) -> None:
        """Once per process: nobody could renew while this agent was away."""
        if self._grace_given:
            return
        self._extend(tx)

        def given() -> None:
            self._grace_given = True

        tx.after_commit(given)

    def clock_was_set(self, seconds: float, tx: Transaction) -> None:
        self._leases(tx).shift(seconds)
        history.shift(tx.connection, seconds)

    def _extend(self, tx: Transaction) -> None:
        for lease in self._leases(tx).grace(tx.now):
            tx.timer("lease", lease.job, lease.expires_at)

    # the queue

    def _hand_out(self, tx: Transaction) -> None:
        """Answer who can be answered now: waiting quotes, holders who asked again, jobs for which a slot is free."""
        leases = self._leases(tx)
        self._answer_quotes(tx)
        requests = {row["message"]: LeaseRequest.model_validate_json(row["request"]) for row in self._waiting(tx)}
        for message, request in list(requests.items()):
            held = leases.of(request.job)
            if held is not None:
                self._answer_waiting(message, self._granted(held, tx), tx)
                del requests[message]
        jobs = {request.job: request for request in requests.values()}
        own = [job for job in jobs.values() if job.offer is None or not job.offer.paid]
        for waiting, machine in queue.assign(map(_waiting, own), self._own(leases.live())):
            price = self._configs.providers.local.price_micros_per_hour
            self._grant(jobs[waiting.job], machine, price, requests, tx)
            if (offer := jobs[waiting.job].offer) is not None:
                history.begin(tx.connection, waiting.job, offer, tx.now)
        self._hand_out_rented([job for job in jobs.values() if job.offer is not None and job.offer.paid], requests, tx)
        self._tell(tx)

    def _grant(
        self, job: LeaseRequest, machine: str, price: int, requests: Mapping[str, LeaseRequest], tx: Transaction
    ) -> None:
        lease = self._leases(tx).grant(
            job.job, uuid7(), machine, tx.now, memory_bytes=job.memory_bytes, price_micros_per_hour=price
        )
        asked = [message for message, request in requests.items() if request.job == job.job]
        stored = tx.message(asked[0])  # not the message that is being handled: that may be another job's
        with tx.about(stored.traceparent if stored else None, job=lease.job):
            tx.timer("lease", lease.job, lease.expires_at)
            self.log.info("leased", machine=machine, fence=lease.fence)
        for message in asked:
            self._answer_waiting(message, self._granted(lease, tx), tx)

    def _granted(self, lease: Lease, tx: Transaction) -> LeaseGrant:
        return LeaseGrant(
            job=lease.job, lease=lease.lease, fence=lease.fence, machine=lease.machine, ttl_s=TTL.total_seconds(),
            provider=next((r.provider for r in Rentals(tx.connection).living() if r.machine == lease.machine), PROVIDER),
            price_micros_per_hour=lease.price_micros_per_hour, expires_at=lease.expires_at,
        )  # fmt: skip

    # rented machines

    def _rent_with(self, clouds: Clouds) -> None:
        prefix = self._prefix()
        billing = frozenset(name for name, provider in clouds.providers.items() if provider.bills)
        self._office = Office(
            clouds.market or self._desk, lambda: uuid7()[-12:], clouds.admission.token, prefix, clouds.limits, billing
        )
        self._keeper = Keeper(
            clouds.providers, self, clouds.admission, prefix=prefix, image=clouds.image, limits=clouds.limits, tick=clouds.tick
        )
        self._tick = clouds.tick

    def _prefix(self) -> str:
        """Return what this lab's tags begin with: its name, and what tells it from a lab of the same name elsewhere."""
        with self.transaction() as tx:
            tx.connection.execute("INSERT OR IGNORE INTO self VALUES ('mark', ?)", (uuid7()[-8:],))
            mark = tx.connection.execute("SELECT value FROM self WHERE name = 'mark'").fetchone()[0]
        return f"meetara-{self.topics.lab}-{mark}-"

    def _own(self, leases: Iterable[Lease]) -> list[Machine]:
        """Return the machines that are not rented."""
        return [machine for machine in self._fleet.machines(leases) if machine.rental is None]

    def _hand_out_rented(self, jobs: Sequence[LeaseRequest], requests: Mapping[str, LeaseRequest], tx: Transaction) -> None:
        """Give waiting jobs the rented machines of their kind, and rent more where that is too few."""
        if self._office is None or not jobs or self._frozen is not None:
            return
        store, left = Rentals(tx.connection), {job.job: job for job in jobs}
        for rental in store.living():
            if rental.state is not State.READY:
                continue
            machines = [m for m in self._fleet.machines(self._leases(tx).live()) if m.name == rental.machine]
            fitting = [job for job in left.values() if job.kind == rental.kind]
            for waiting, machine in queue.assign(map(_waiting, fitting), machines):
                job = left.pop(waiting.job)
                account = store.account(job.job)
                assert account is not None and job.offer is not None
                payer = store.payer(rental.id)
                if payer is not None and payer.job == job.job and job.offer.gpu == rental.listing.gpu:
                    history.begin(tx.connection, job.job, job.offer, rental.created_at)  # not of a machine that is warm
                store.pays(rental, account, tx.now)
                self._grant(job, machine, rental.price_micros_per_hour, requests, tx)
                self._let_in([rental], tx)
        askings = []
        for job in left.values():
            row = tx.connection.execute("SELECT request FROM asked WHERE job = ?", (job.job,)).fetchone()
            if row is not None:
                askings.append(Asking(job, QuoteRequest.model_validate_json(row["request"])))
        self._office.settle(tx)  # who has handed a machine over
        self._office.place(askings, tx)
        if self._keeper is not None:
            tx.after_commit(self._keeper.wake)

    def _let_in(self, rentals: Sequence[Rental], tx: Transaction) -> None:
        """Tell the broker for which jobs workers are in, once the leases are stored."""
        if self._keeper is not None:
            keeper = self._keeper
            tx.after_commit(lambda: keeper.admit(rentals))

    async def _tend(self) -> None:
        """Look after the rentals for ever: workers that came or went silent, money that runs out."""
        while True:
            await asyncio.sleep(self._tick)
            with self.transaction() as tx:
                freeze = read_freeze(self.home)
                self._by_file = None if freeze is None else (freeze.at, freeze.note or f"the {freeze.period}'s budget is used up")
                self._follow_freeze(tx)
                if self._look(tx):
                    self._hand_out(tx)

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
        assert self._office is not None
        word = self._by_file or self._by_bus
        if word is None:
            if self._frozen is not None:
                self._frozen = None
                self.log.info("paid work goes on")
                self._hand_out(tx)
            return
        if self._frozen is None:
            self._frozen = word[0] or tx.now
            self.log.warning("paid work is frozen", reason=word[1])
        self._store_changes(self._office.freeze(self._frozen, word[1], tx), tx)
        report = self._office.report(self._frozen, tx)
        if report.stopped != self._reported:
            self._reported = report.stopped
            tx.publish("cost_stopped", report)

    def _look(self, tx: Transaction) -> bool:
        """Compare rentals with who is online; tells whether anything has changed."""
        if self._office is None:
            return False
        online = {m.name: m.device for m in self._fleet.machines(()) if m.rental is not None}
        kinds = [
            request.kind for row in self._waiting(tx)
            if (request := LeaseRequest.model_validate_json(row["request"])).offer is not None and request.offer.paid
        ]  # fmt: skip
        changes = self._office.look(online, kinds, tx)
        self._store_changes(changes, tx)
        return bool(changes)

    def _store_changes(self, changes: Iterable[tuple[Rental, Rental]], tx: Transaction) -> None:
        for before, after in changes:
            Rentals(tx.connection).save(after)
            if after.state is not before.state:
                self.changed(before, after, tx)
            elif self._keeper is not None:
                tx.after_commit(self._keeper.wake)

    def now(self) -> datetime:
        """Read the clock."""
        return self.wiring.now()

    def changed(self, before: Rental, after: Rental, tx: Transaction) -> None:
        """Follow a rental into a new state."""
        assert self._office is not None and self._keeper is not None
        self.log.info(
            "rental", rental=after.id, provider=after.provider, state=after.state.value, instance=after.instance,
            reason=after.reason or None, fault=after.fault or None,
        )  # fmt: skip
        self._office.changed(before, after, tx)
        self._tell_provider(after.provider, tx)
        tx.after_commit(self._keeper.wake)
        if after.state in (State.READY, State.GONE):
            tx.timer("place", "", tx.now)

    def billed(self, rental: Rental, tx: Transaction) -> None:
        """Tell the cost monitor what a provider charges."""
        assert self._office is not None
        self._office.bill(rental, tx)

    def _extended(self, answer: Answer, tx: Transaction) -> None:
        assert self._office is not None
        word = answer.error or answer.result
        assert isinstance(word, LabError | Reservation)
        self._office.extended(answer.key, word, tx)
        if isinstance(word, Reservation):
            self._hand_out(tx)

    def _extend_due(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        Rentals(tx.connection).refuse(key, "")
        self._hand_out(tx)

    def orphan(self, instance: Instance, tx: Transaction) -> None:
        """Tell that an instance runs which should not."""
        self.log.error("orphan found", provider=instance.provider, instance=instance.id, tag=instance.tag)

    def trouble(self, provider: str, error: ProviderError | None) -> None:
        """Note how the last look at a provider went."""
        if error is not None:
            self.log.warning("provider in trouble", provider=provider, error=type(error).__name__, reason=error.reason)
        self._trouble[provider] = "" if error is None else str(error)
        with self.transaction() as tx:
            self._tell_provider(provider, tx)

    def _tell_provider(self, provider: str, tx: Transaction) -> None:
        """Publish a paid provider's status where it has changed: slots are the machines that are rented there."""
        rented = Rentals(tx.connection).living(provider)
        leased = {lease.machine for lease in self._leases(tx).live()}
        free = sum(1 for rental in rented if rental.state is State.READY and rental.machine not in leased)
        trouble = self._trouble.get(provider, "")
        status = ProviderStatus(
            provider=provider, status="degraded" if trouble else "up", slots=len(rented), free=free, reason=trouble, at=tx.now
        )
        told = self._providers_told.get(provider)
        if told is None or told.model_copy(update={"at": status.at}) != status:
            self._providers_told[provider] = status
            tx.publish("provider_status", status, provider=provider)

    def _settled(self, answer: Answer, tx: Transaction) -> None:
        self._answered(answer, tx)
        if self._office is not None:
            self._office.settled(answer.context["rental"], answer.context["since"], tx)

    def _answered(self, answer: Answer, tx: Transaction) -> None:
        if answer.error is not None:
            self.log.error("refused", method=answer.method, job=answer.key, **of_error(answer.error))

    def _waiting(self, tx: Transaction, job: str | None = None) -> list[Any]:
        return tx.connection.execute("SELECT * FROM waiting WHERE ? IN (job, '')", (job or "",)).fetchall()

    def _answer_waiting(self, message: str, result: LeaseGrant | LabError, tx: Transaction) -> None:
        tx.reply(message, result)
        tx.connection.execute("DELETE FROM waiting WHERE message = ?", (message,))


def _waiting(job: LeaseRequest) -> Waiting:
    return Waiting(job.job, job.priority, job.submitted_at, job.memory_bytes, frozenset(job.avoid))
