"""The factory's shell: plans on request, trains what it holds a lease for, and reports every stage to the conductor."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from agents.gguf_factory import recovery
from agents.gguf_factory.cache import Cache, look_up
from agents.gguf_factory.device import device
from agents.gguf_factory.launcher import Launcher
from agents.gguf_factory.pace import Pace
from agents.gguf_factory.process import CANCEL_GRACE, CHECKPOINT_GRACE, JobProcess, make_plan
from bus import DEFERRED, Answer, BaseAgent, Deferred, Transaction, Wiring, trace
from bus.lease import TTL
from bus.redact import of_error
from configs import Configs, load
from protocol.envelope import MCPMessage
from protocol.errors import Code, ErrorBody, LabError, Retry
from protocol.job import Empty, Plan, PlanRequest, Probe, Progress, Remember, Report, RunRequest, Stage, StopRequest
from protocol.machine import Card, LeaseGrant, LeaseRenewal

RENEW = TTL * 4 / 15
"""How often a lease of 30 s is renewed (8 s): three renewals may be lost before it runs out."""
PLAN_ATTEMPTS = 3
"""How often a plan is made when its process ends without a word: one that was killed is no reason to refuse a job."""
UNHEARD = 3 * TTL
"""Without a renewal for so long a job is checkpointed and given up: nobody may still be counting its cost."""

Waiting = tuple[int, int, str, PlanRequest, str | None]
"""A plan that is asked for: -priority, how many were asked for before, the call, its request, its trace."""
PLANNERS = 2
"""Plans made at a time: each is a process of 100 MB for a second, and two hundred requests may come at once."""

SCHEMA = """
CREATE TABLE runs (                  -- jobs this factory holds a lease for
    job TEXT PRIMARY KEY,
    request TEXT NOT NULL,           -- the RunRequest as JSON
    renewed_at REAL NOT NULL,
    reports INTEGER NOT NULL DEFAULT 0
);
"""


class FactoryAgent(BaseAgent):
    """Turns leased jobs into proven GGUF files, each in a process of its own."""

    role = "gguf_factory"
    migrations: ClassVar[tuple[str, ...]] = (SCHEMA,)

    def __init__(self, wiring: Wiring, configs: Configs | None = None) -> None:
        self.configs = configs or load()
        self.slots = self.configs.providers.local.slots_for(os.cpu_count() or 1)
        super().__init__(wiring)
        self.message_handlers |= {
            "job.plan": self.plan, "model.remember": self.remember, "job.run": self.start, "job.stop": self.stop,
        }  # fmt: skip
        self.reply_handlers |= {"job.report": self.report_answered, "lease.renew": self.renewed}
        self.timer_handlers["renew"] = self.renew
        self.launcher = Launcher(self.home)
        self.processes: dict[str, JobProcess] = {}
        self.stop_calls: dict[str, list[str]] = {}
        self.paces: dict[tuple[str, int], Pace] = {}  # by job and fence
        self.leaving = False
        self.cache = Cache(self.home, self.configs.storage)
        self.plans: asyncio.PriorityQueue[Waiting] = asyncio.PriorityQueue()
        self.plans_asked = 0
        self.unused: dict[str, str] = {}
        """By call: why a finished model is not taken."""

    def card(self) -> Card:
        return super().card().model_copy(update={"slots": self.slots, "device": device(self.home)})

    async def started(self) -> None:
        """Take up the plans and jobs that the last process left."""
        for _ in range(PLANNERS):
            self.spawn(self.answer_plans())
        with self.transaction() as tx:
            tx.store.reopen(["job.plan", "job.stop"])
            tx.hasten_timers("renew")  # not asked here: the timers know under which traces the jobs were started

    async def stopping(self) -> None:
        """Checkpoint every job and tell the conductor, so that it goes on when a factory is there again."""
        self.leaving = True
        await asyncio.gather(*(process.stop(CHECKPOINT_GRACE) for process in list(self.processes.values())))
        while self.processes:
            await asyncio.sleep(0.01)  # the listening tasks read the last lines
        await self.launcher.close()

    # planning

    def plan(self, message: MCPMessage, tx: Transaction) -> Deferred:
        request: PlanRequest = self.params(message)
        self.plans_asked += 1
        waiting = (-request.request.priority, self.plans_asked, message.id, request, message.traceparent)
        tx.after_commit(lambda: self.spawn(self.find(waiting)))
        return DEFERRED

    async def find(self, waiting: Waiting) -> None:
        """Answer with a model that is finished already, before and beside those that must be planned."""
        _, _, call, request, _ = waiting
        found = await look_up(self.cache, request, self.configs.tiers)
        if found.why:
            self.log.warning("a finished model is not used", job=request.job, reason=found.why)
            self.unused[call] = found.why
        if found.plan is None:
            self.plans.put_nowait(waiting)
            return
        self.log.info("finished already", job=request.job)
        await self.answer(call, found.plan)

    def remember(self, message: MCPMessage, tx: Transaction) -> Empty:
        """Put a model that was made elsewhere into the cache."""
        made: Remember = self.params(message)
        try:
            self.cache.keep(made.key, made.plan, made.model)
        except OSError as error:  # the model is finished and proven; that it is not remembered costs money only if it is asked for again
            self.log.warning("not kept for the same request", job=made.model.job, reason=str(error))
        return Empty()

    async def answer_plans(self) -> None:
        """Answer the plans that are asked for, one after another, the most urgent first."""
        while True:
            _, _, call, request, traceparent = await self.plans.get()
            with trace.bound(traceparent, job=request.job):
                await self.answer_plan(call, request)

    async def answer_plan(self, call: str, request: PlanRequest) -> None:
        for _ in range(PLAN_ATTEMPTS):
            answer = await make_plan(request, self.home, self.launcher)
            if "crash" not in answer:
                break
            self.log.warning("planning crashed", job=request.job, reason=answer["crash"])
        result: Plan | LabError
        if "plan" in answer:
            result = Plan.model_validate(answer["plan"])
            if why := self.unused.pop(call, ""):
                result.warnings.append(why)
            self.log.info("planned", rows=result.rows, steps=result.steps)
        elif "error" in answer:
            result = LabError.from_body(ErrorBody.model_validate(answer["error"]))
            self.log.warning("no plan", **of_error(result))
        else:
            result = LabError(Code.INTERNAL, answer["crash"], retry=Retry.LATER)
            self.log.error("planning crashed")
        await self.answer(call, result)

    async def answer(self, call: str, result: Plan | LabError) -> None:
        def reply() -> None:
            with self.transaction() as tx:
                tx.reply(call, result)

        await self.until_stored(reply)

    # running

    def start(self, message: MCPMessage, tx: Transaction) -> Empty:
        """Take a leased job and start it; the same lease again changes nothing."""
        run: RunRequest = self.params(message)
        known = self.held(run.job, tx)
        if known is not None and known.fence >= run.fence:
            return Empty()
        others = tx.connection.execute("SELECT count(*) FROM runs WHERE job <> ?", (run.job,)).fetchone()[0]
        if others >= self.slots:
            raise LabError(
                Code.BUSY, f"{self.agent} trains {others} jobs already, it has {self.slots} slots.",
                retry=Retry.LATER,
            )  # fmt: skip
        tx.connection.execute(
            "INSERT OR REPLACE INTO runs (job, request, renewed_at) VALUES (?, ?, ?)",
            (run.job, run.model_dump_json(), tx.now.timestamp()),
        )
        tx.timer("renew", run.job, tx.now + RENEW)
        tx.after_commit(lambda: self.launch(run))
        return Empty()

    def held(self, job: str, tx: Transaction) -> RunRequest | None:
        row = tx.connection.execute("SELECT request FROM runs WHERE job = ?", (job,)).fetchone()
        return RunRequest.model_validate_json(row["request"]) if row else None

    def launch(self, run: RunRequest) -> None:
        """Start the job's process, after the one of an older lease and those whose jobs are over have ended."""
        with self.transaction() as tx:
            if not self.current(run, tx):
                return  # stopped before it could start
            over = [process for job, process in self.processes.items() if job == run.job or self.held(job, tx) is None]
        folder = self.home / "jobs" / run.job
        process = JobProcess(
            folder, self.slots,
            lambda line: self.until_stored(lambda: self.heard(run, line)),
            lambda status: self.until_stored(lambda: self.ended(run, process, status)),
            launcher=self.launcher, agent=self.agent,
        )  # fmt: skip
        self.processes[run.job] = process

        async def work() -> None:
            # a process takes a second to leave after its last word; until then it has its memory and its cores
            await asyncio.gather(*(old.stop(CANCEL_GRACE) for old in over))
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_job(folder, run)
                self.log.info("job started", attempt=run.attempt, fence=run.fence)
                await process.run()
            finally:  # a stopping factory waits for what is in here
                if self.processes.get(run.job) is process:
                    del self.processes[run.job]

        self.spawn(work())

    def heard(self, run: RunRequest, line: dict[str, Any]) -> None:
        """Pass on what the job's process says."""
        kind = line["kind"]
        if kind == "progress":
            self.progress(run, line)
            return
        with self.transaction() as tx:
            if not self.current(run, tx):
                return
            if kind in ("stage_started", "stage_done"):
                self.report(
                    run, kind, tx, stage=line["stage"], seconds=line.get("seconds"), results=line.get("results"),
                    again=line.get("again"),
                )  # fmt: skip
            elif kind == "done":
                self.report(run, "done", tx, artefacts=line["artefacts"], gates=line["gates"], results=line["results"])
                self.forget(run.job, tx)
            elif kind == "failed":
                error = LabError.from_body(ErrorBody.model_validate(line["error"]))
                self.report(
                    run, "failed", tx, stage=line["stage"], reason=str(error), retry=error.retry.value,
                    gates=error.data.get("gates"), results=error.data.get("results"),
                )  # fmt: skip
                self.forget(run.job, tx)
            elif kind == "stopped" and run.job not in self.stop_calls:
                reason = "the factory was asked to stop; the job is checkpointed."
                self.report(run, "interrupted", tx, stage=line["stage"], reason=reason)
                self.forget(run.job, tx)

    def ended(self, run: RunRequest, process: JobProcess, status: int) -> None:
        """The process is gone: answer who waited for that; if it said nothing, tell the conductor."""
        self.log.info("job's process ended", status=status)
        if self.processes.get(run.job) is process:
            del self.processes[run.job]
        with self.transaction() as tx:
            stops = list(self.stop_calls.get(run.job, []))
            tx.after_commit(lambda: self.stop_calls.pop(run.job, None))
            for call in stops:
                tx.reply(call, Empty())
            if not self.current(run, tx):
                return
            if not stops and not self.leaving:
                reason, retry = recovery.ended(status, str(process.folder / "log.txt"))
                self.report(run, "failed", tx, reason=reason, retry=retry.value)
            elif self.leaving:
                self.report(run, "interrupted", tx, reason="the factory stopped before the job could checkpoint.")
            self.forget(run.job, tx)

    def current(self, run: RunRequest, tx: Transaction) -> bool:
        """Whether this factory still holds this lease."""
        held = self.held(run.job, tx)
        return held is not None and held.fence == run.fence

    def forget(self, job: str, tx: Transaction) -> None:
        self.paces = {key: pace for key, pace in self.paces.items() if key[0] != job}
        tx.connection.execute("DELETE FROM runs WHERE job = ?", (job,))
        tx.cancel_timer("renew", job)
        tx.drop_calls(job, "lease.renew")

    def report(self, run: RunRequest, kind: str, tx: Transaction, **facts: Any) -> None:
        number = tx.connection.execute(
            "UPDATE runs SET reports = reports + 1 WHERE job = ? RETURNING reports", (run.job,)
        ).fetchone()[0]
        given = {name: value for name, value in facts.items() if value is not None}
        report = Report.model_validate({"job": run.job, "fence": run.fence, "lease": run.lease, "kind": kind, **given})
        tx.call("job.report", report, key=run.job, id=f"{run.job}:{run.fence}:{self.agent}:{number}")

    def progress(self, run: RunRequest, line: dict[str, Any]) -> None:
        with_time = datetime.fromtimestamp(self.now().timestamp(), tz=self.now().tzinfo)
        with self.transaction() as tx:
            row = tx.connection.execute("SELECT renewed_at FROM runs WHERE job = ?", (run.job,)).fetchone()
        if row is None:
            return
        known = {name: value for name, value in line.items() if name in Progress.model_fields}
        progress = Progress.model_validate(
            {
                **known, "job": run.job, "attempt": run.attempt, "at": with_time, "stage": Stage(line["stage"]),
                "cost_usd": self.cost_usd(run, with_time),
            }
        )  # fmt: skip
        self.emit("job_progress", progress, job=run.job)
        if run.provider != "local" and progress.stage is Stage.TRAIN and progress.step:
            self.probe(run, progress.step, with_time)

    def probe(self, run: RunRequest, step: int, at: datetime) -> None:
        """Tell the conductor, once for each lease of a rented machine, what the first steps took."""
        found = self.paces.setdefault((run.job, run.fence), Pace()).heard(step, at)
        if found is None:
            return
        probe = Probe(steps=found[0], seconds=found[1], step=step, elapsed_s=self.elapsed(run, at))
        with self.transaction() as tx:
            if self.current(run, tx):
                self.report(run, "probed", tx, probe=probe)

    def cost_usd(self, run: RunRequest, at: datetime) -> float:
        """What the lease has cost so far; the conductor's books count the same time."""
        return run.price_micros_per_hour * self.elapsed(run, at) / 3600 / 1e6

    def elapsed(self, run: RunRequest, at: datetime) -> float:
        """Return the seconds since the job began on this machine."""
        return max(0.0, at.timestamp() - (self.home / "jobs" / run.job / "job.json").stat().st_mtime)

    # stopping

    def stop(self, message: MCPMessage, tx: Transaction) -> Empty | Deferred:
        """Stop a job; answered when its process is gone."""
        request: StopRequest = self.params(message)
        if request.job not in self.processes:
            self.forget(request.job, tx)
            return Empty()
        process = self.processes[request.job]
        grace = CANCEL_GRACE if request.mode == "cancel" else CHECKPOINT_GRACE

        def begin() -> None:
            self.stop_calls.setdefault(request.job, []).append(message.id)
            self.spawn(process.stop(grace))

        tx.after_commit(begin)
        return DEFERRED

    # leases

    def clock_was_set(self, seconds: float, tx: Transaction) -> None:
        tx.connection.execute("UPDATE runs SET renewed_at = renewed_at + ?", (seconds,))

    def renew(self, job: str, data: dict[str, Any], tx: Transaction) -> None:
        run = self.held(job, tx)
        if run is None:
            return
        tx.timer("renew", job, tx.now + RENEW)
        row = tx.connection.execute("SELECT renewed_at FROM runs WHERE job = ?", (job,)).fetchone()
        process = self.processes.get(job)
        if process is not None and tx.now.timestamp() - row["renewed_at"] > UNHEARD.total_seconds():
            self.log.warning("lease not renewed for too long; checkpointing", job=job)
            tx.after_commit(lambda: self.spawn(process.stop(CHECKPOINT_GRACE)))
        elif process is None or process.working():
            self.ask_renewal(job, tx)

    def ask_renewal(self, job: str, tx: Transaction) -> None:
        run = self.held(job, tx)
        if run is not None:
            renewal = LeaseRenewal(job=job, lease=run.lease, fence=run.fence)
            tx.call("lease.renew", renewal, key=job, context={"fence": run.fence}, deadline=tx.now + RENEW)

    def renewed(self, answer: Answer, tx: Transaction) -> None:
        """Go on, or stop working on a job whose lease belongs to another."""
        job = answer.key
        run = self.held(job, tx)
        if run is None or run.fence != answer.context["fence"]:
            return
        if isinstance(answer.result, LeaseGrant):
            tx.connection.execute("UPDATE runs SET renewed_at = ? WHERE job = ?", (tx.now.timestamp(), job))
            if job not in self.processes and not self.leaving:
                self.log.info("going on with a job", job=job)
                tx.timer("renew", job, tx.now + RENEW)
                tx.after_commit(lambda: self.launch(run))
        elif answer.error is not None and answer.error.code is Code.EXPIRED:
            if job not in self.processes:
                self.ask_renewal(job, tx)
        else:
            self.give_up(job, answer.error, tx)

    def report_answered(self, answer: Answer, tx: Transaction) -> None:
        if answer.error is not None and answer.error.code is Code.FENCED:
            run = self.held(answer.key, tx)
            if run is not None and answer.call_id.startswith(f"{run.job}:{run.fence}:"):
                self.give_up(answer.key, answer.error, tx)
        elif answer.error is not None:
            self.log.error("a report was refused", job=answer.key, report=answer.call_id, **of_error(answer.error))

    def give_up(self, job: str, error: LabError | None, tx: Transaction) -> None:
        facts = of_error(error) if error is not None else {}
        self.log.warning("the lease is over; stopping the job", job=job, **facts)
        self.forget(job, tx)
        process = self.processes.get(job)
        if process is not None:
            tx.after_commit(lambda: self.spawn(process.stop(CHECKPOINT_GRACE)))


def write_job(folder: Path, run: RunRequest) -> None:
    """Write job.json whole or not at all."""
    temporary = folder / "job.json.tmp"
    temporary.write_text(run.model_dump_json(), encoding="utf-8")
    temporary.replace(folder / "job.json")
