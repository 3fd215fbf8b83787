"""The conductor's shell: turns messages into happenings, commits what `decide` says, publishes facts and snapshots."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from agents.conductor import quoting
from agents.conductor.decide import decide, late, submitted
from agents.conductor.decision import Decision
from agents.conductor.happening import (
    Approved,
    CancelAsked,
    Happening,
    ModeChanged,
    Refused,
    Requoted,
    Resume,
    Routed,
    Stopped,
    Twin,
    TwinEnded,
)
from agents.conductor.record import Fact, JobRecord
from bus import DEFERRED, Answer, BaseAgent, Deferred, Transaction, Wiring, keys
from bus.redact import of_error
from protocol.envelope import MAX_BYTES, MCPMessage
from protocol.errors import Code, LabError
from protocol.job import (
    ApproveRequest,
    Empty,
    Finished,
    JobEvent,
    JobEvents,
    JobList,
    JobSnapshot,
    Plan,
    Report,
    RoutedRequest,
    State,
    Submitted,
)
from protocol.machine import LeaseDelay, LeaseLost, LeaseRecall, Offer
from protocol.money import BudgetMode
from protocol.signature import signed_text, submission

SCHEMA = """
CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    record TEXT NOT NULL,          -- JobRecord as JSON: the fold of the job's events
    route_call TEXT NOT NULL,      -- the train.route call, answered when the job is admitted or refused
    submitted_at REAL NOT NULL
);
CREATE INDEX jobs_by_time ON jobs (submitted_at);
CREATE TABLE cancels (job TEXT NOT NULL, call TEXT NOT NULL, PRIMARY KEY (job, call)) WITHOUT ROWID;
"""
SHARING = """
CREATE TABLE making (            -- models that are being made, by Plan.key
    key TEXT PRIMARY KEY,
    job TEXT NOT NULL UNIQUE     -- has not ended
);
CREATE TABLE sharing (           -- jobs that wait for the model which another one makes; the oldest first
    number INTEGER PRIMARY KEY,
    job TEXT NOT NULL UNIQUE,
    maker TEXT NOT NULL
);
CREATE INDEX sharing_by_maker ON sharing (maker);
"""
ECONOMISING = """
CREATE TABLE economising (job TEXT PRIMARY KEY) WITHOUT ROWID;   -- jobs that wait for another mode of the budget
"""

LIST_BYTES = MAX_BYTES // 2
"""Bytes of snapshots in one list: two hundred finished jobs have twice a message's limit. Half of it leaves room for the
envelope, and for one more long reason."""


class ConductorAgent(BaseAgent):
    """Coordinates jobs; the only one that says what state a job is in."""

    role = "conductor"
    migrations: ClassVar[tuple[str, ...]] = (SCHEMA, SHARING, ECONOMISING)
    synchronous: ClassVar[Literal["FULL", "NORMAL"]] = "FULL"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers |= {
            "train.route": self.route,
            "job.quote": self.quote,
            "job.get": self.get,
            "job.list": self.page,
            "job.events": self.events,
            "job.cancel": self.cancel,
            "job.approve": self.approve,
            "job.report": self.report,
            "lease.lost": self.lease_told,
            "lease.recall": self.lease_told,
            "lease.delay": self.lease_told,
        }
        for method in ("budget.reserve", "lease.request"):
            self.reply_handlers[method] = self.answered
        self.reply_handlers["offer.quote"] = self.quoted
        self.reply_handlers["offer.requote"] = self.requoted
        self.reply_handlers["job.plan"] = self.planned
        self.reply_handlers["job.run"] = self.run_answered
        self.reply_handlers["job.stop"] = self.stop_answered
        for method in ("budget.settle", "budget.release", "lease.release", "model.remember"):
            self.reply_handlers[method] = self.closing_answered
        self._mode: BudgetMode | None = None
        self.watch(self.topics.of("cost_mode"), self.mode_heard)
        self.timer_handlers |= {"resume": self.resume, "stop": self.stop_overdue}

    # calls

    def route(self, message: MCPMessage, tx: Transaction) -> Submitted | Deferred:
        """Take over a job from the router; answered when it is admitted or refused."""
        routed: RoutedRequest = self.params(message)
        known = self.find(routed.job, tx)
        if known is not None:
            if known.digest != routed.digest:
                raise LabError(
                    Code.CONFLICT, f"the job {routed.job!r} exists with another request.",
                    advice="Send the same request again, or choose a new id.", field="id",
                )  # fmt: skip
            return submitted(known)
        request, signer = routed.request.model_copy(update={"signature": None}), None  # whom it is handed to need not see it
        if routed.request.signature is not None:
            signer = keys.who(self.home / keys.FOLDER, routed.request.signature, submission(self.topics.lab, routed.job, routed.digest))
        record = JobRecord(
            job=routed.job, digest=routed.digest, request=request, route=routed.route, approved_by=signer, submitted_at=tx.now,
            updated_at=tx.now,
        )  # fmt: skip
        tx.connection.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?)",
            (record.job, record.model_dump_json(), message.id, tx.now.timestamp()),
        )
        first = Fact(type="submitted", data={"request": request.model_dump(mode="json"), "signed_by": signer})
        self.publish_fact(record, first, tx)
        self.happen(record.job, Routed(), tx)
        return DEFERRED

    def quote(self, message: MCPMessage, tx: Transaction) -> Deferred:
        """Tell what a request would take and cost; nothing is kept of it."""
        quoting.ask(message, self.params(message), tx)
        return DEFERRED

    def get(self, message: MCPMessage, tx: Transaction) -> JobSnapshot:
        return self.known(self.params(message).job, tx).snapshot()

    def page(self, message: MCPMessage, tx: Transaction) -> JobList:
        """Give a page of jobs, newest first."""
        before = self.params(message).before
        if before is not None:
            self.known(before, tx)
        rows = tx.connection.execute(
            "SELECT record FROM jobs WHERE ? IS NULL OR rowid < (SELECT rowid FROM jobs WHERE job = ?) ORDER BY rowid DESC",
            (before, before),
        )
        found: list[JobSnapshot] = []
        size = 0
        for row in rows:
            snapshot = brief(JobRecord.model_validate_json(row["record"]).snapshot())
            size += len(snapshot.model_dump_json().encode())
            if found and size > LIST_BYTES:
                return JobList(jobs=found, more=True)
            found.append(snapshot)
        return JobList(jobs=found)

    def events(self, message: MCPMessage, tx: Transaction) -> JobEvents:
        query = self.params(message)
        self.known(query.job, tx)
        found = tx.events(query.job, query.since)[:200]
        return JobEvents(
            events=[JobEvent(job=query.job, seq=e.seq, type=e.type, data=e.data, at=e.at) for e in found]
        )

    def cancel(self, message: MCPMessage, tx: Transaction) -> JobSnapshot | Deferred:
        """End a job; answered when it has ended."""
        job = self.params(message).job
        if self.known(job, tx).final:
            return self.known(job, tx).snapshot()
        tx.connection.execute("INSERT OR IGNORE INTO cancels VALUES (?, ?)", (job, message.id))
        self.happen(job, CancelAsked(), tx)
        return DEFERRED

    def approve(self, message: MCPMessage, tx: Transaction) -> JobSnapshot:
        """Let a job go on that waits for approval. A signature is asked of everybody: the broker does not tell who has called."""
        asked: ApproveRequest = self.params(message)
        record = self.known(asked.job, tx)
        text = signed_text(self.topics.lab, "job.approve", asked.job, asked.amount_micros)
        by = keys.signer(self.home / keys.FOLDER, asked.signature, text)
        if record.state is not State.AWAITING_APPROVAL:
            if (record.approved_by, record.approved_micros) == (by, asked.amount_micros):
                return record.snapshot()
            raise LabError(
                Code.CONFLICT, f"the job {asked.job} is {record.state.value}; it does not wait for approval.",
                advice=f"See `meetara job {asked.job}`.", field="job",
            )  # fmt: skip
        self.log.info("approved", job=asked.job, by=by, amount_micros=asked.amount_micros)
        self.happen(asked.job, Approved(by, asked.amount_micros), tx, record)
        return self.known(asked.job, tx).snapshot()

    def report(self, message: MCPMessage, tx: Transaction) -> Empty | Deferred:
        report: Report = self.params(message)
        record = self.known(report.job, tx)
        self.happen(report.job, report, tx, record)
        if not record.believes(report):
            # answered here, not raised: the fact that it was fenced must be kept
            tx.reply(
                message.id,
                LabError(
                    Code.FENCED, f"the lease {report.fence} of {report.job} is over; {record.fence} is the newest.",
                    advice="Stop working on this job.",
                ),
            )  # fmt: skip
            return DEFERRED
        return Empty()

    def lease_told(self, message: MCPMessage, tx: Transaction) -> Empty:
        """The orchestrator tells that a lease is over, is wanted back, or takes its time."""
        word: LeaseLost | LeaseRecall | LeaseDelay = self.params(message)
        self.happen(word.job, word, tx)
        return Empty()

    # the budget

    def mode_heard(self, topic: str, payload: bytes) -> None:
        """Let jobs go on that wait for the budget, when its mode lets them."""
        if not payload:
            return
        try:
            self._mode = BudgetMode.model_validate_json(payload)
        except ValidationError as error:
            self.log.warning("not understood", topic=topic, **of_error(LabError.from_validation(error, "cost/mode")))
            return
        with self.transaction() as tx:
            for row in tx.connection.execute("SELECT job FROM economising").fetchall():
                self.happen_elsewhere(row["job"], ModeChanged(), tx)

    # answers

    def planned(self, answer: Answer, tx: Transaction) -> None:
        """Go on with the plan, or wait where another job makes the same model already."""
        if quoting.answered(answer, tx):
            return
        plan = answer.result
        if isinstance(plan, Plan) and plan.key is not None and plan.finished is None and not self.known(answer.key, tx).final:
            row = tx.connection.execute("SELECT job FROM making WHERE key = ?", (plan.key,)).fetchone()
            if row is not None:
                tx.connection.execute("INSERT INTO sharing (job, maker) VALUES (?, ?)", (answer.key, row["job"]))
                self.happen(answer.key, Twin(row["job"], plan), tx)
                return
            tx.connection.execute("INSERT INTO making VALUES (?, ?)", (plan.key, answer.key))
        self.answered(answer, tx)

    def quoted(self, answer: Answer, tx: Transaction) -> None:
        if not quoting.answered(answer, tx):
            self.answered(answer, tx)

    def requoted(self, answer: Answer, tx: Transaction) -> None:
        if isinstance(answer.result, Offer):  # what is refused, for instance after an upgrade, leaves the old quote as it was
            self.happen(answer.key, Requoted(answer.result), tx)

    def answered(self, answer: Answer, tx: Transaction) -> None:
        happening: Any = Refused(answer.error) if answer.error else answer.result
        self.happen(answer.key, happening, tx)

    def run_answered(self, answer: Answer, tx: Transaction) -> None:
        if answer.error is not None:
            self.happen(answer.key, Refused(answer.error), tx)

    def stop_answered(self, answer: Answer, tx: Transaction) -> None:
        self.happen(answer.key, Stopped(), tx)

    def closing_answered(self, answer: Answer, tx: Transaction) -> None:
        if answer.error is not None:
            self.log.error("closing a job was refused", job=answer.key, method=answer.method, **of_error(answer.error))

    # timers

    def resume(self, job: str, data: dict[str, Any], tx: Transaction) -> None:
        self.happen(job, Resume(), tx)

    def stop_overdue(self, job: str, data: dict[str, Any], tx: Transaction) -> None:
        self.log.warning("the factory did not confirm the stop", job=job)
        self.happen(job, Stopped(), tx)

    # after a broker that lost its memory

    def broker_forgot(self) -> None:
        """Retain the newest snapshots again: whoever looks at a job with nothing but MQTT finds it there."""
        with self.transaction() as tx:
            rows = tx.connection.execute("SELECT record FROM jobs ORDER BY submitted_at DESC LIMIT 200").fetchall()
            for row in reversed(rows):
                record = JobRecord.model_validate_json(row["record"])
                tx.publish("job_state", record.snapshot(), job=record.job)

    # the core

    def find(self, job: str, tx: Transaction) -> JobRecord | None:
        row = tx.connection.execute("SELECT record FROM jobs WHERE job = ?", (job,)).fetchone()
        return JobRecord.model_validate_json(row["record"]) if row else None

    def known(self, job: str, tx: Transaction) -> JobRecord:
        record = self.find(job, tx)
        if record is None:
            raise LabError(Code.NOT_FOUND, f"there is no job {job!r}.", advice="`meetara jobs` lists them.", field="job")
        return record

    def happen(self, job: str, happening: Happening, tx: Transaction, record: JobRecord | None = None) -> None:
        """Decide, and put everything that follows into the transaction."""
        record = record or self.known(job, tx)
        if record.final:
            for call in late(record, happening):
                tx.call(call.method, call.params, to=call.to, key=job, id=call.id)
            return
        decision = decide(record, happening, tx.now, self._mode)
        if decision.record.state is not record.state and not decision.record.final:
            self.log.info("job goes on", job=job, state=decision.record.state.value, stage=decision.record.stage)
        self.commit(decision, tx)

    def commit(self, decision: Decision, tx: Transaction) -> None:
        record = decision.record
        job = record.job
        for fact in decision.facts:
            self.publish_fact(record, fact, tx)
        for method in decision.drop:
            tx.drop_calls(job, method)
        for call in decision.calls:
            tx.call(call.method, call.params, to=call.to, key=job, id=call.id, priority=record.request.priority)
        for name, due in decision.timers.items():
            if due is None:
                tx.cancel_timer(name, job)
            else:
                tx.timer(name, job, due)
        if decision.facts:
            tx.connection.execute("UPDATE jobs SET record = ? WHERE job = ?", (record.model_dump_json(), job))
            tx.publish("job_state", record.snapshot(), job=job)
            if record.economises:
                tx.connection.execute("INSERT OR IGNORE INTO economising VALUES (?)", (job,))
            else:
                tx.connection.execute("DELETE FROM economising WHERE job = ?", (job,))
        if decision.admitted is not None:
            row = tx.connection.execute("SELECT route_call FROM jobs WHERE job = ?", (job,)).fetchone()
            tx.reply(row["route_call"], decision.admitted)
        if record.final:
            for row in tx.connection.execute("SELECT call FROM cancels WHERE job = ?", (job,)).fetchall():
                tx.reply(row["call"], record.snapshot())
            tell = self.log.error if record.state is State.FAILED else self.log.info
            tell("job ended", job=job, state=record.state.value, attempts=record.attempt)
            self.share(record, tx)

    def share(self, maker: JobRecord, tx: Transaction) -> None:
        """Give a finished model to the jobs that wait for it; where there is none, the first of them makes it."""
        tx.connection.execute("DELETE FROM sharing WHERE job = ?", (maker.job,))
        tx.connection.execute("DELETE FROM making WHERE job = ?", (maker.job,))
        rows = tx.connection.execute("SELECT job FROM sharing WHERE maker = ? ORDER BY number", (maker.job,)).fetchall()
        waiting = [row["job"] for row in rows]
        if not waiting:
            return
        if maker.state is State.DONE:
            finished = Finished(job=maker.job, artefacts=maker.artefacts, gates=maker.gates, results=maker.results)
            for job in waiting:
                self.happen_elsewhere(job, TwinEnded(finished, ""), tx)
            return
        first, *others = waiting
        assert maker.plan is not None and maker.plan.key is not None
        tx.connection.execute("DELETE FROM sharing WHERE job = ?", (first,))
        tx.connection.execute("INSERT INTO making VALUES (?, ?)", (maker.plan.key, first))
        self.happen_elsewhere(first, TwinEnded(None, f"the job {maker.job} is {maker.state.value}"), tx)
        for job in others:
            tx.connection.execute("UPDATE sharing SET maker = ? WHERE job = ?", (first, job))
            self.happen_elsewhere(job, Twin(first), tx)

    def happen_elsewhere(self, job: str, happening: Happening, tx: Transaction) -> None:
        """Let something happen to another job than the message is about, under that job's own trace."""
        row = tx.connection.execute("SELECT route_call FROM jobs WHERE job = ?", (job,)).fetchone()
        stored = tx.message(row["route_call"])
        with tx.about(stored.traceparent if stored else None, job=job):
            self.happen(job, happening, tx)

    def publish_fact(self, record: JobRecord, fact: Fact, tx: Transaction) -> None:
        seq = tx.event(record.job, fact.type, fact.data)
        at = datetime.fromtimestamp(tx.now.timestamp(), UTC)
        tx.publish("job_event", JobEvent(job=record.job, seq=seq, type=fact.type, data=fact.data, at=at), job=record.job)


def brief(snapshot: JobSnapshot) -> JobSnapshot:
    """A snapshot without the samples, so that a long list stays below the size limit of a message."""
    results = {name: value for name, value in snapshot.results.items() if not isinstance(value, list | dict)}
    return snapshot.model_copy(update={"results": results, "gates": {}})
