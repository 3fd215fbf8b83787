"""The orchestrator's shell: cards and presences in; quotes, leases and the provider's status out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, cast

from pydantic import ValidationError

from agents.gpu_orchestrator import queue
from agents.gpu_orchestrator.clouds import Clouds
from agents.gpu_orchestrator.fleet import Fleet
from agents.gpu_orchestrator.lending import Lending
from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market import history
from agents.gpu_orchestrator.market.desk import Desk, nobody_online
from agents.gpu_orchestrator.providers.provider import Provider
from agents.gpu_orchestrator.rentals.store import SCHEMA as RENTALS
from agents.gpu_orchestrator.rentals.store import SHUNNED_FOR_NOW, Rentals
from agents.gpu_orchestrator.renting import Renting
from bus import DEFERRED, Answer, BaseAgent, Deferred, Transaction, Wiring
from bus.lease import SCHEMA as LEASES
from bus.lease import TTL, Lease, Leases
from bus.redact import of_error
from configs import Configs, load
from protocol import Code, LabError, MCPMessage, uuid7
from protocol.access import is_lent, rental_of
from protocol.job import Empty
from protocol.machine import (
    LENT,
    LOCAL,
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
    migrations: ClassVar[tuple[str, ...]] = (LEASES, QUEUE, RENTALS + ASKED, history.SCHEMA, SHUNNED_FOR_NOW)

    def __init__(
        self, wiring: Wiring, configs: Configs | None = None, clouds: Clouds | None = None,
        sellers: Mapping[str, Provider] | None = None,
    ) -> None:  # fmt: skip
        """Make the agent; `sellers` are asked what they sell, of `clouds` it can be rented, too. None: those of `clouds`."""
        self._configs = configs or load()  # before the store is opened: a bad value must leave nothing behind
        rents = clouds.providers if clouds is not None and not clouds.closed else {}
        self._desk = Desk(self._configs, rents if sellers is None else sellers, rents)
        super().__init__(wiring)
        self._desk.history = history.read(self.store.connection)
        self._fleet = Fleet()
        self._renting = None if clouds is None else Renting(self, clouds, self._desk, self._fleet)
        self._lending = Lending(wiring.broker, wiring.lab)
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
        for method in ("lease.lost", "lease.recall", "lease.delay", "budget.release", "budget.bill", "budget.settle", "budget.extend"):
            self.reply_handlers[method] = self._answered
        self.timer_handlers["place"] = lambda key, data, tx: self.hand_out(tx)
        for topic in ("card", "presence"):
            self.watch(self.topics.of(topic, role="gguf_factory", agent="+"), self._heard)

    async def started(self) -> None:
        """Give every lease one ttl, tell the provider's status, and take up the rentals that the last process left."""
        with self.transaction() as tx:
            self._grace(tx)
            self._tell(tx)
            for machine in {lease.machine for lease in self._leases(tx).live()}:
                self._let_tell(machine, tx)  # the last process may not have come to it
        if self._renting is not None:
            self._renting.start()
        else:
            with self.transaction() as tx:
                for rental in Rentals(tx.connection).living():
                    self.log.error("a machine costs money and no key is set", rental=rental.id, provider=rental.provider, tag=rental.tag)
        self.spawn(self._desk.keep_fresh(self._listed))
        self.spawn(self._lending.keep())

    def broker_forgot(self) -> None:
        """Tell the provider's status again, and who may come in."""
        self._told = None
        with self.transaction() as tx:
            self._tell(tx)
            if self._renting is not None:
                self._renting.tell_again(tx)

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
            if self._renting is not None:
                self._renting.look(tx)
            self.hand_out(tx)

    def _tell(self, tx: Transaction) -> None:
        """Publish the provider's status where it has changed."""
        status = self._fleet.status(LOCAL, self._leases(tx).live(), tx.now)
        if self._told is not None and self._told.model_copy(update={"at": status.at}) == status:
            return
        tx.publish("provider_status", status, provider=LOCAL)

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
        if not request.dry_run and (quote.choice.provider != LOCAL or any(machine.lent for machine in self._own(()))):
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
        if self._renting is not None or self._own(()):
            self._answer_quote(key, QuoteRequest.model_validate_json(row["request"]), tx)
            return
        tx.connection.execute("DELETE FROM quotes WHERE message = ?", (key,))
        tx.reply(key, nobody_online(QUOTE_WAIT.total_seconds()))

    def _requote(self, message: MCPMessage, tx: Transaction) -> Offer:
        request = cast(RequoteRequest, self.params(message))
        if self._renting is not None:
            self._renting.probed(request, tx)
        return self._desk.requote(request)

    def _list(self, message: MCPMessage, tx: Transaction) -> ListingPage:
        return self._desk.page(cast(ListingQuery, self.params(message)), self._own(()), tx.now)

    def _listed(self) -> None:
        """A provider has told what it sells, or failed to."""

        def work() -> None:
            with self.transaction() as tx:
                self.hand_out(tx)

        self.spawn(self.until_stored(work))

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
        self.hand_out(tx)
        return DEFERRED

    def _renew(self, message: MCPMessage, tx: Transaction) -> LeaseGrant:
        request = cast(LeaseRenewal, self.params(message))
        self._grace(tx)
        lease = self._leases(tx).renew(request.job, request.lease, request.fence, tx.now)
        tx.timer("lease", lease.job, lease.expires_at)
        return self._granted(lease, tx)

    def _release(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(LeaseRelease, self.params(message))
        if (released := self._leases(tx).release(request.job, request.lease)) is not None:
            tx.cancel_timer("lease", request.job)
            self._let_tell(released.machine, tx)
        if request.lease is None:
            gone = LabError(Code.CANCELLED, f"job {request.job} has left the queue for a machine.", job=request.job)
            for row in self.waiting(tx, request.job):
                self._answer_waiting(row["message"], gone, tx)
        if request.over:
            tx.connection.execute("DELETE FROM asked WHERE job = ?", (request.job,))
            Rentals(tx.connection).end_account(request.job, request.reservation)
        self._worked(request.job, request.done, tx)
        if self._renting is not None:
            self._renting.released(request.over, tx)
        self.hand_out(tx)
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
            self._let_tell(lease.machine, tx)
            self._worked(lease.job, False, tx)
            rented = rental_of(lease.machine) is not None  # it may have been taken away, and its provider has not noticed
            lost = LeaseLost(
                job=lease.job, lease=lease.lease, fence=lease.fence, machine=lease.machine, counts=not rented
            )
            tx.call("lease.lost", lost, key=lease.job, id=f"{lease.lease}:lost")
        rest = leases.of(key)
        if rest is not None:  # it was renewed in the meantime
            tx.timer("lease", key, rest.expires_at)
        self.hand_out(tx)

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
        if self._renting is not None:
            self._renting.clock_was_set(seconds, tx)

    def _extend(self, tx: Transaction) -> None:
        for lease in self._leases(tx).grace(tx.now):
            tx.timer("lease", lease.job, lease.expires_at)

    # the queue

    def hand_out(self, tx: Transaction) -> None:
        """Answer who can be answered now: waiting quotes, holders who asked again, jobs for which a slot is free."""
        leases = self._leases(tx)
        self._answer_quotes(tx)
        requests = {row["message"]: queue.request_of(row["request"]) for row in self.waiting(tx)}
        held = {lease.job: lease for lease in leases.live()}
        for message, request in list(requests.items()):
            if request.job in held:
                self._answer_waiting(message, self._granted(held[request.job], tx), tx)
                del requests[message]
        jobs = {request.job: request for request in requests.values()}
        own = [job for job in jobs.values() if job.offer is None or not job.offer.paid]
        machines = self._own(leases.live())
        ordered = [queue.waiting(job, self._accepts(job, machines, tx)) for job in own]
        for waiting, machine in queue.assign(ordered, machines, tx.now):
            price = 0 if is_lent(rental_of(machine)) else self._configs.providers.local.price_micros_per_hour
            self.grant(jobs[waiting.job], machine, price, requests, tx)
            if (offer := jobs[waiting.job].offer) is not None and (offer.provider == LOCAL or offer.machine == machine):
                history.begin(tx.connection, waiting.job, offer, tx.now)
        if self._renting is not None:
            self._renting.hand_out([job for job in jobs.values() if job.offer is not None and job.offer.paid], requests, tx)
        self._tell(tx)

    def grant(
        self, job: LeaseRequest, machine: str, price: int, requests: Mapping[str, LeaseRequest], tx: Transaction
    ) -> None:
        lease = self._leases(tx).grant(
            job.job, uuid7(), machine, tx.now, memory_bytes=job.memory_bytes, price_micros_per_hour=price
        )
        self._let_tell(machine, tx)
        asked = [message for message, request in requests.items() if request.job == job.job]
        stored = tx.message(asked[0])  # not the message that is being handled: that may be another job's
        with tx.about(stored.traceparent if stored else None, job=lease.job):
            tx.timer("lease", lease.job, lease.expires_at)
            self.log.info("leased", machine=machine, fence=lease.fence)
        for message in asked:
            self._answer_waiting(message, self._granted(lease, tx), tx)

    def _let_tell(self, machine: str, tx: Transaction) -> None:
        """Let a lent machine's worker tell the progress of what is leased to it, and of nothing else."""
        if is_lent(rental_of(machine)):
            jobs = {lease.job for lease in self._leases(tx).live() if lease.machine == machine}
            tx.after_commit(lambda: self._lending.allow(machine, jobs))

    def _granted(self, lease: Lease, tx: Transaction) -> LeaseGrant:
        rental = Rentals(tx.connection).of(rental_of(lease.machine) or "")
        listing = None if rental is None else rental.listing
        own = LENT if is_lent(rental_of(lease.machine)) else LOCAL
        return LeaseGrant(
            job=lease.job, lease=lease.lease, fence=lease.fence, machine=lease.machine, ttl_s=TTL.total_seconds(),
            provider=own if rental is None else rental.provider,
            price_micros_per_hour=lease.price_micros_per_hour, expires_at=lease.expires_at,
            listing=listing.id if listing else "", gpu=listing.gpu if listing else "", spot=listing is not None and listing.spot,
        )  # fmt: skip

    def _own(self, leases: Iterable[Lease]) -> list[Machine]:
        """Return the machines that nobody bills for."""
        return [machine for machine in self._fleet.machines(leases) if machine.own]

    def _accepts(self, job: LeaseRequest, machines: Sequence[Machine], tx: Transaction) -> Callable[[Machine], bool]:
        """Return which of the machines that nobody bills for may have a job; where there are only this lab's, memory tells.

        Lent machines and the lab's own are no substitutes for each other: a job waits for the kind that it was quoted for, and gets the
        other one only when the quoted machine is gone.
        """
        offer = job.offer
        if (offer is None or offer.provider == LOCAL) and not any(machine.lent for machine in machines):
            return queue.anything
        row = tx.connection.execute("SELECT request FROM asked WHERE job = ?", (job.job,)).fetchone()
        if row is None or offer is None:
            return lambda machine: not machine.lent
        asked, lent = queue.quote_of(row["request"]), offer.provider == LENT
        there = any(machine.name == offer.machine for machine in machines)

        def may(machine: Machine) -> bool:
            if machine.name == offer.machine:
                return True
            if there and machine.lent != lent:
                return False
            try:
                return self._desk.instead(asked, machine, offer.reservation_micros, tx.now)
            except LabError:  # configs know its provider no more; what it was chosen for is not for machines elsewhere
                return not machine.lent

        return may

    def _answered(self, answer: Answer, tx: Transaction) -> None:
        if answer.error is not None and answer.method != "budget.extend":
            self.log.error("refused", method=answer.method, job=answer.key, **of_error(answer.error))
        if self._renting is not None:
            self._renting.answered(answer, tx)

    def waiting(self, tx: Transaction, job: str | None = None) -> list[Any]:
        return tx.connection.execute("SELECT * FROM waiting WHERE ? IN (job, '')", (job or "",)).fetchall()

    def _answer_waiting(self, message: str, result: LeaseGrant | LabError, tx: Transaction) -> None:
        tx.reply(message, result)
        tx.connection.execute("DELETE FROM waiting WHERE message = ?", (message,))
