"""The orchestrator's shell: cards and presences in; quotes, leases and the provider's status out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar, cast

from pydantic import ValidationError

from agents.gpu_orchestrator import offers, queue
from agents.gpu_orchestrator.fleet import Fleet
from agents.gpu_orchestrator.queue import Waiting
from bus import DEFERRED, BaseAgent, Deferred, Transaction, Wiring
from bus.lease import SCHEMA as LEASES
from bus.lease import TTL, Lease, Leases
from bus.redact import of_error
from configs import Configs, load
from protocol import Code, LabError, MCPMessage, uuid7
from protocol.job import Empty
from protocol.machine import (
    Card,
    LeaseGrant,
    LeaseLost,
    LeaseRelease,
    LeaseRenewal,
    LeaseRequest,
    ListingPage,
    Presence,
    ProviderStatus,
    Quote,
    QuoteRequest,
)  # fmt: skip

PROVIDER = "local"
LATE = timedelta(seconds=5)
"""A lease found so long past its end was not watched: this agent was stopped, or its file locked. Its loop is late by
milliseconds otherwise."""
QUOTE_WAIT = timedelta(seconds=10)
"""How long a quote waits for the first factory: one that is being restarted is back in about 5 s."""

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


class GpuOrchestratorAgent(BaseAgent):
    """Quotes jobs on the machines that are online, and leases their slots: highest priority first, then the oldest."""

    role: ClassVar[str] = "gpu_orchestrator"
    migrations: ClassVar[tuple[str, ...]] = (LEASES, QUEUE)

    def __init__(self, wiring: Wiring, configs: Configs | None = None) -> None:
        self._configs = configs or load()  # before the store is opened: a bad value must leave nothing behind
        super().__init__(wiring)
        self._fleet = Fleet()
        self._grace_given = False
        self._told: ProviderStatus | None = None
        self.message_handlers.update(
            {
                "offer.quote": self._quote,
                "offer.list": self._list,
                "lease.request": self._request,
                "lease.renew": self._renew,
                "lease.release": self._release,
            }
        )
        self.timer_handlers.update({"lease": self._lease_due, "quote": self._quote_due})
        self.reply_handlers["lease.lost"] = lambda answer, tx: None  # the conductor knows; nothing is left to do
        for topic in ("card", "presence"):
            self.watch(self.topics.of(topic, role="gguf_factory", agent="+"), self._heard)

    async def started(self) -> None:
        """Give every lease one ttl, and tell the provider's status."""
        with self.transaction() as tx:
            self._grace(tx)
            self._tell(tx)

    def broker_forgot(self) -> None:
        """Tell the provider's status again."""
        self._told = None
        with self.transaction() as tx:
            self._tell(tx)

    # machines

    def _heard(self, topic: str, payload: bytes) -> None:
        *_, machine, kind = self.topics.levels(topic)
        if not payload:
            self._fleet.forget(machine)
        else:
            try:
                self._fleet.note((Card if kind == "card" else Presence).model_validate_json(payload))
            except ValidationError as error:
                self.log.warning("not understood", topic=topic, **of_error(LabError.from_validation(error, kind)))
                return
        with self.transaction() as tx:
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
        if self._fleet.machines(()):
            return self._quoted(request, tx)
        tx.connection.execute("INSERT OR REPLACE INTO quotes VALUES (?, ?)", (message.id, request.model_dump_json()))
        tx.timer("quote", message.id, tx.now + QUOTE_WAIT)
        return DEFERRED

    def _quoted(self, request: QuoteRequest, tx: Transaction) -> Quote:
        tier = self._configs.tiers.get(request.tier)
        machines = self._fleet.machines(self._leases(tx).live())
        cap = tier.cap_usd if tier else None
        quote = offers.quote(request.job, request.plan, machines, self._configs.providers.local, request.budget_usd, cap)
        self.log.info("quoted", job=request.job, machine=quote.choice.machine)
        return quote

    def _answer_quotes(self, tx: Transaction) -> None:
        for row in tx.connection.execute("SELECT * FROM quotes").fetchall():
            try:
                tx.reply(row["message"], self._quoted(QuoteRequest.model_validate_json(row["request"]), tx))
            except LabError as error:
                tx.reply(row["message"], error)
            tx.connection.execute("DELETE FROM quotes WHERE message = ?", (row["message"],))
            tx.cancel_timer("quote", row["message"])

    def _quote_due(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        tx.connection.execute("DELETE FROM quotes WHERE message = ?", (key,))
        tx.reply(key, offers.nobody_online(QUOTE_WAIT.total_seconds()))

    def _list(self, message: MCPMessage, tx: Transaction) -> ListingPage:
        return ListingPage(listings=[])

    # leases

    def _leases(self, tx: Transaction) -> Leases:
        return Leases(tx.connection)

    def _request(self, message: MCPMessage, tx: Transaction) -> Deferred:
        request = cast(LeaseRequest, self.params(message))
        tx.connection.execute(
            "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?)", (message.id, request.job, request.model_dump_json())
        )
        self._hand_out(tx)
        return DEFERRED

    def _renew(self, message: MCPMessage, tx: Transaction) -> LeaseGrant:
        request = cast(LeaseRenewal, self.params(message))
        self._grace(tx)
        lease = self._leases(tx).renew(request.job, request.lease, request.fence, tx.now)
        tx.timer("lease", lease.job, lease.expires_at)
        return _grant(lease)

    def _release(self, message: MCPMessage, tx: Transaction) -> Empty:
        request = cast(LeaseRelease, self.params(message))
        if self._leases(tx).release(request.job, request.lease) is not None:
            tx.cancel_timer("lease", request.job)
        if request.lease is None:
            gone = LabError(Code.CANCELLED, f"job {request.job} has left the queue for a machine.", job=request.job)
            for row in self._waiting(tx, request.job):
                self._answer_waiting(row["message"], gone, tx)
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

    def _extend(self, tx: Transaction) -> None:
        for lease in self._leases(tx).grace(tx.now):
            tx.timer("lease", lease.job, lease.expires_at)

    # the queue

    def _hand_out(self, tx: Transaction) -> None:
        """Answer who can be answered now: waiting quotes, holders who asked again, jobs for which a slot is free."""
        leases = self._leases(tx)
        if self._fleet.machines(()):
            self._answer_quotes(tx)
        requests = {row["message"]: LeaseRequest.model_validate_json(row["request"]) for row in self._waiting(tx)}
        for message, request in list(requests.items()):
            held = leases.of(request.job)
            if held is not None:
                self._answer_waiting(message, _grant(held), tx)
                del requests[message]
        jobs = {request.job: request for request in requests.values()}
        waiting = [
            Waiting(job.job, job.priority, job.submitted_at, job.memory_bytes, frozenset(job.avoid)) for job in jobs.values()
        ]
        for job, machine in queue.assign(waiting, self._fleet.machines(leases.live())):
            lease = leases.grant(
                job.job, uuid7(), machine, tx.now, memory_bytes=job.memory_bytes,
                price_micros_per_hour=self._configs.providers.local.price_micros_per_hour,
            )  # fmt: skip
            asked = [message for message, request in requests.items() if request.job == job.job]
            stored = tx.message(asked[0])  # not the message that is being handled: that may be another job's
            with tx.about(stored.traceparent if stored else None, job=lease.job):
                tx.timer("lease", lease.job, lease.expires_at)
                self.log.info("leased", machine=machine, fence=lease.fence)
            for message in asked:
                self._answer_waiting(message, _grant(lease), tx)
        self._tell(tx)

    def _waiting(self, tx: Transaction, job: str | None = None) -> list[Any]:
        return tx.connection.execute("SELECT * FROM waiting WHERE ? IN (job, '')", (job or "",)).fetchall()

    def _answer_waiting(self, message: str, result: LeaseGrant | LabError, tx: Transaction) -> None:
        tx.reply(message, result)
        tx.connection.execute("DELETE FROM waiting WHERE message = ?", (message,))


def _grant(lease: Lease) -> LeaseGrant:
    return LeaseGrant(
        job=lease.job, lease=lease.lease, fence=lease.fence, provider=PROVIDER, machine=lease.machine,
        price_micros_per_hour=lease.price_micros_per_hour, ttl_s=TTL.total_seconds(), expires_at=lease.expires_at,
    )  # fmt: skip
