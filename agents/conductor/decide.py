"""What the conductor does when something happens: a pure function of the job's record and the happening.

`decide(record, happening, now)` returns facts to store, calls to make, timers to set and answers to give. It never
waits, reads a clock or does I/O; the shell commits all of it in one transaction.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256

from agents.conductor.approval import approved, economises, limit, question
from agents.conductor.decision import Call, Decision
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
from agents.conductor.questions import plan_request, quote_request
from agents.conductor.record import JobRecord, price
from protocol.errors import Code, LabError
from protocol.job import (
    Finished,
    Plan,
    Remember,
    Report,
    RunRequest,
    State,
    StopRequest,
    Submitted,
)
from protocol.machine import (
    LOCAL,
    OWN,
    LeaseDelay,
    LeaseGrant,
    LeaseLost,
    LeaseRecall,
    LeaseRelease,
    LeaseRequest,
    Offer,
    Quote,
    RequoteRequest,
)
from protocol.money import BudgetMode, ReleaseRequest, Reservation, ReserveRequest, SettleRequest

ATTEMPTS = 3
"""Attempts of a job before it fails for good (architecture §6)."""
BACKOFF = timedelta(seconds=2)
"""Least pause before the second attempt; doubles with each. `pause` adds up to as much again."""
SOLD_OUT = (timedelta(minutes=1), timedelta(minutes=10))
"""First and longest pause before the market is looked at again for a job that was taken on; listings are asked for every five minutes."""
STOP_LIMIT = timedelta(seconds=4)
"""How long a factory may take to confirm a stop; a cancel must be over within 5 s, so then the lease is taken away."""


def decide(record: JobRecord, happening: Happening, now: datetime, mode: BudgetMode | None = None) -> Decision:
    """Return what follows from a happening; nothing does once the job's state is final."""
    decision = Decision(record, now, mode)
    if record.final:
        return decision
    match happening:
        case Routed():
            decision.fact("routed", domain=record.route.domain, tier=record.route.tier, base=record.route.base)
            decision.call("job.plan", plan_request(record.job, record.request, record.route))
        case Plan(finished=None):
            planned(decision, happening)
            quote(decision)
        case Plan(finished=finished):
            assert finished is not None
            planned(decision, happening)
            take(decision, finished)
        case Twin():
            if happening.plan is not None:
                planned(decision, happening.plan)
            decision.fact("sharing", job=happening.job)
            decision.admitted = submitted(decision.record)
        case TwinEnded(finished=None):
            if record.sharing is not None:
                decision.fact("alone", reason=happening.reason)
                quote(decision)
        case TwinEnded(finished=finished):
            if record.sharing is not None and finished is not None:
                take(decision, finished)
        case Quote():
            offer = happening.choice
            decision.fact("quoted", offer=offer.model_dump(mode="json"), rejected=happening.rejected)
            afford(decision, offer)
        case Approved():
            if record.state is State.AWAITING_APPROVAL:
                go_on(decision, happening)
        case ModeChanged():
            if record.economises:
                look_again(decision)
        case Reservation():
            decision.fact("reserved", reservation=happening.reservation, amount_micros=happening.amount_micros)
            decision.admitted = submitted(decision.record)
            provision(decision)
        case Refused():
            refuse(decision, happening.error)
        case LeaseGrant():
            leased(decision, happening)
        case Report():
            reported(decision, happening)
        case LeaseLost():
            lost(decision, happening)
        case LeaseRecall():
            recall(decision, happening)
        case LeaseDelay(final=True):
            if record.state is State.PROVISIONING and record.lease is None:
                finish(decision, "failed", reason=happening.reason)
        case LeaseDelay():
            if record.state is State.PROVISIONING and record.lease is None and record.reason != happening.reason:
                decision.fact("delayed", reason=happening.reason)
        case CancelAsked():
            cancel(decision)
        case Stopped():
            if record.cancelling:
                finish(decision, "cancelled", reason="cancelled by the user")
            elif record.recalled is not None:
                interrupt(decision, record.recalled, counts=False, release=True)
        case Requoted():
            decision.fact("requoted", offer=happening.offer.model_dump(mode="json"))
        case Resume():
            if record.state is State.INTERRUPTED:
                provision(decision)
            elif record.sold_out:
                quote(decision)
    return decision


def submitted(record: JobRecord) -> Submitted:
    """The answer to the submitter."""
    message = f"watch it: meetara watch {record.job}"
    if record.cached_from is not None:
        message = f"nothing is trained: the job {record.cached_from} made this model from the same data and parameters"
    elif record.sharing is not None or record.state is State.AWAITING_APPROVAL or record.economises:
        message = f"{record.reason} {message}"
    return Submitted(
        job=record.job, state=record.state, domain=record.route.domain, tier=record.route.tier, base=record.route.base,
        message=message,
    )  # fmt: skip


def planned(decision: Decision, plan: Plan) -> None:
    """Keep the plan; a finished model that came with it is told of by the job's end."""
    decision.fact("planned", plan=plan.model_copy(update={"finished": None}).model_dump(mode="json"))


def quote(decision: Decision) -> None:
    """Ask what the planned job takes and costs."""
    record = decision.record
    assert record.plan is not None
    asked = quote_request(record.job, record.request, record.route, record.plan)
    short = decision.mode is not None and decision.mode.mode != "normal"
    again = f":{record.quotes}" if record.quotes else ""
    decision.call("offer.quote", asked.model_copy(update={"economy": short}), again)


def afford(decision: Decision, offer: Offer) -> None:
    """Reserve what the chosen machine will cost; one that costs money may have to wait before that."""
    record = decision.record
    if offer.paid and (why := economises(record, decision.mode)) is not None:
        decision.fact("economising", reason=why)
        decision.admitted = submitted(decision.record)
    elif offer.paid and not approved(record, offer):
        decision.fact("awaiting_approval", reason=question(record, offer), price=price(offer).model_dump(mode="json"))
        decision.admitted = submitted(decision.record)
    else:
        decision.call(
            "budget.reserve",
            ReserveRequest(
                job=record.job, amount_micros=offer.reservation_micros, provider=offer.provider,
                domain=record.route.domain, priority=record.request.priority,
                limit_micros=limit(record) if offer.paid else None,
            ),
        )  # fmt: skip


def go_on(decision: Decision, approval: Approved) -> None:
    """Go on at the price that was approved; where the quote has expired, ask for a new one, and compare."""
    decision.fact("approved", by=approval.by, amount_micros=approval.amount_micros)
    offer = decision.record.offer
    assert offer is not None
    if offer.expires_at is not None and offer.expires_at <= decision.now:
        quote(decision)
    else:
        afford(decision, offer)


def look_again(decision: Decision) -> None:
    """Ask for a new price when the budget lets a job go on that waited for it; prices of long ago say nothing."""
    why = economises(decision.record, decision.mode)
    if why is None:
        quote(decision)
    elif why != decision.record.reason:
        decision.fact("economising", reason=why)


def take(decision: Decision, finished: Finished) -> None:
    """End with a model that another job has made: no quote, no reservation, no machine."""
    finish(decision, "done", finished)
    decision.admitted = submitted(decision.record)


def provision(decision: Decision) -> None:
    """Ask for a slot for the next attempt."""
    record = decision.record
    assert record.plan is not None and record.reservation is not None
    decision.fact("provisioning", attempt=record.attempt + 1)
    decision.call(
        "lease.request",
        LeaseRequest(
            job=record.job, reservation=record.reservation, priority=record.request.priority,
            submitted_at=record.submitted_at, memory_bytes=record.plan.memory_bytes, avoid=record.avoid,
            offer=record.offer, kind=f"{record.route.base} {record.route.tier}", domain=record.route.domain,
            limit_micros=limit(record) if record.offer is not None and record.offer.paid else None,
        ),
        f":{decision.record.attempt}",
    )  # fmt: skip


def refuse(decision: Decision, error: LabError) -> None:
    """Nothing has started: the job is refused. Later refusals are a failed attempt.

    A job that was taken on, and waited for the budget or an approval, waits on while nothing that would fit is for sale.
    """
    record = decision.record
    by_market = error.code is Code.NO_CAPACITY or (error.code is Code.BUDGET and "rejected" in error.data)
    if by_market and record.quotes and record.reservation is None:
        decision.fact("sold_out", reason=str(error))
        decision.timers["resume"] = decision.now + min(SOLD_OUT[0] * 2 ** min(record.quotes - 1, 10), SOLD_OUT[1])
        return
    if record.lease is not None:
        interrupt(decision, str(error), counts=True, release=True, avoid=record.lease.machine)
        return
    if record.attempt:
        finish(decision, "failed", reason=str(error))
        return
    decision.admitted = error
    finish(decision, "refused", reason=str(error))


def leased(decision: Decision, grant: LeaseGrant) -> None:
    """A slot is ours: hand the job to the factory that owns it."""
    record = decision.record
    if record.state is not State.PROVISIONING or record.lease is not None:
        return
    if grant.fence <= record.fence:  # given back, but the release was not there yet: ask again, or wait for ever
        interrupt(decision, f"the lease on {grant.machine} was over before the job began.", counts=False, release=False)
        decision.timers["resume"] = decision.now + BACKOFF
        return
    assert record.plan is not None
    decision.fact("leased", lease=grant.model_dump(mode="json"))
    decision.call(
        "job.run",
        RunRequest(
            job=record.job, request=record.request, route=record.route, plan=record.plan, lease=grant.lease,
            fence=grant.fence, attempt=record.attempt, price_micros_per_hour=grant.price_micros_per_hour,
            provider=grant.provider, spot=grant.spot,
        ),
        f":{grant.fence}",
        to=grant.machine,
    )  # fmt: skip


def lost(decision: Decision, loss: LeaseLost) -> None:
    """A lease ran out: the one that the job has, or one whose grant never arrived here."""
    record = decision.record
    if record.lease is not None and loss.fence == record.fence:
        reason = loss.reason or f"the lease on {loss.machine} ran out: the factory did not renew it."
        interrupt(decision, reason, counts=loss.counts, release=False)
    elif record.lease is None and record.state is State.PROVISIONING and loss.fence > record.fence:
        reason = f"the lease on {loss.machine} ran out before its grant arrived."
        interrupt(decision, reason, counts=False, release=False, fence=loss.fence)


def recall(decision: Decision, wanted: LeaseRecall) -> None:
    """The machine is needed back: the factory checkpoints the job and reports it as interrupted."""
    record = decision.record
    if record.lease is None or wanted.fence != record.fence or record.cancelling or (record.given_up and not wanted.final):
        return
    decision.fact("recalled", reason=wanted.reason, final=wanted.final)
    stop = StopRequest(job=record.job, mode="cancel" if wanted.final else "checkpoint")
    again = ":final" if wanted.final else ""
    decision.call("job.stop", stop, f":recall:{record.fence}{again}", to=record.lease.machine)  # that it has stopped, the answer tells


def reported(decision: Decision, report: Report) -> None:
    """A factory tells where the job stands; reports under an old lease are counted and dropped."""
    record = decision.record
    if not record.believes(report):
        decision.fact("fenced", fence=report.fence, expected=record.fence, kind=report.kind)
        return
    assert record.lease is not None
    match report.kind:
        case "stage_started":
            assert report.stage is not None
            decision.fact("stage_started", stage=report.stage.value, attempt=record.attempt)
        case "stage_done" if report.again and report.stage in record.stages_done:
            pass  # a resumed job tells of the stages that it skips
        case "stage_done":
            assert report.stage is not None
            decision.fact(
                "stage_done", stage=report.stage.value, seconds=report.seconds, attempt=record.attempt,
                results=report.results,
            )  # fmt: skip
        case "probed":
            probed(decision, report)
        case "done":
            finish(decision, "done", report)
        case "interrupted":
            interrupt(decision, report.reason, counts=False, release=True)
        case "failed" if report.retry == "never" and not record.cancelling:
            finish(decision, "failed", report, reason=report.reason)
        case "failed":
            interrupt(
                decision, report.reason, counts=True, release=True,
                avoid=record.lease.machine if record.lease and report.retry == "other-worker" else None,
            )  # fmt: skip
        case _:
            pass  # "started" changes nothing: the first stage tells it


def probed(decision: Decision, report: Report) -> None:
    """The first steps on a rented machine are measured: ask what the whole job takes by them."""
    record = decision.record
    assert report.probe is not None
    decision.fact("probed", probe=report.probe.model_dump(mode="json"))
    if record.offer is None or record.plan is None or record.lease is None:
        return
    lease = record.lease
    leased: dict[str, object] = {"price_micros_per_hour": lease.price_micros_per_hour}
    if lease.listing:  # perhaps another one than was quoted
        leased |= {"provider": lease.provider, "machine": lease.listing, "gpu": lease.gpu, "spot": lease.spot}
    offer = record.offer.model_copy(update=leased)
    request = RequoteRequest(
        job=record.job, offer=offer, plan=record.plan, probe=report.probe, limit_micros=limit(record),
        deadline_hours=record.request.deadline_hours, fence=record.fence,
    )  # fmt: skip
    decision.call("offer.requote", request, f":{record.fence}")


def interrupt(
    decision: Decision, reason: str, *, counts: bool, release: bool, avoid: str | None = None, fence: int = 0
) -> None:
    """The job stopped on its machine; it goes on elsewhere or later, unless it was cancelled or failed too often."""
    record = decision.record
    if record.cancelling:
        finish(decision, "cancelled", reason="cancelled by the user")
        return
    if record.given_up:
        finish(decision, "failed", reason=record.recalled)
        return
    lease = record.lease
    decision.fact("interrupted", reason=reason, counts=counts, avoid=avoid, fence=max(fence, record.fence))
    # Calls of one job and method go out one after another: one that a dead machine never answers would hold up the next,
    # and a factory that comes back later must not start under the old lease.
    decision.drop = ["lease.request", "job.run", "job.stop", "offer.requote"]
    if release and lease is not None:
        decision.call("lease.release", LeaseRelease(job=record.job, lease=lease.lease), f":{lease.lease}")
    failures = decision.record.failures
    if failures >= ATTEMPTS:
        logs = f"`meetara logs --job {record.job}` tells of all"
        finish(decision, "failed", reason=f"{reason} (attempt {failures} of {ATTEMPTS}; {logs})")
        return
    decision.timers["resume"] = decision.now + (pause(record.job, failures) if counts else timedelta(0))


def pause(job: str, failures: int) -> timedelta:
    """Return how long a job waits after its n-th failure: half of it exponential, half spread over the jobs.

    Jobs that one fault has stopped together must not come back together ("equal jitter", Brooker, Exponential Backoff And
    Jitter, AWS 2015). The spread follows from the job's id, so that the same happening has the same consequence.
    """
    spread = int.from_bytes(sha256(f"{job}:{failures}".encode()).digest()[:4]) / 2**32
    return BACKOFF * 2 ** (failures - 1) * (1 + spread)


def cancel(decision: Decision) -> None:
    """End the job: at once when nothing runs, after the factory's word when it trains."""
    record = decision.record
    if record.cancelling:
        return
    if record.lease is None:
        if record.attempt == 0:
            decision.admitted = LabError(Code.CANCELLED, f"the job {record.job} was cancelled.")
        finish(decision, "cancelled", reason="cancelled by the user")
        return
    decision.fact("cancelling")
    decision.timers["stop"] = decision.now + STOP_LIMIT
    decision.call("job.stop", StopRequest(job=record.job, mode="cancel"), f":{record.fence}", to=record.lease.machine)


def finish(
    decision: Decision, state: str, report: Report | Finished | None = None, reason: str | None = None
) -> None:
    """Enter a final state: pay what was used, free the rest, give back the slot, forget what is still asked for."""
    record = decision.record
    lease = record.lease
    data: dict[str, object] = {"reason": reason}
    if report is not None:
        seconds = (decision.now - record.submitted_at).total_seconds()
        data |= {
            "artefacts": [item.model_dump(mode="json") for item in report.artefacts],
            "gates": {name: gate.model_dump(mode="json") for name, gate in report.gates.items()},
            "results": {**report.results, "seconds_total": round(seconds, 2)},
        }
    if isinstance(report, Finished):
        data["cached_from"] = report.job
    elif report is not None and state == "done" and lease is not None and lease.provider != LOCAL:
        assert record.plan is not None
        if record.plan.key is not None and _may_be_shared(record, lease, report):
            model = Finished(job=record.job, artefacts=report.artefacts, gates=report.gates, results=report.results)
            decision.call("model.remember", Remember(key=record.plan.key, plan=record.plan, model=model))
    decision.drop = ["job.plan", "offer.quote", "lease.request", "job.run", "job.stop"]
    waiting = record.state is State.PROVISIONING and lease is None
    decision.fact(state, **data)
    record = decision.record
    rents = record.offer is not None and record.offer.paid  # then the orchestrator settles: it knows what the machine cost
    if record.reservation is not None and not rents:
        if record.spent_micros:
            decision.call(
                "budget.settle",
                SettleRequest(reservation=record.reservation, job=record.job, amount_micros=record.spent_micros),
            )
        else:
            decision.call("budget.release", ReleaseRequest(reservation=record.reservation, job=record.job))
    aside = record.reservation if rents else None
    if lease is not None:
        back = LeaseRelease(job=record.job, lease=lease.lease, over=True, reservation=aside, done=state == "done")
        decision.call("lease.release", back, f":{lease.lease}")
    elif waiting or (rents and record.reservation is not None):
        decision.call("lease.release", LeaseRelease(job=record.job, over=True, reservation=aside), f":queue:{record.attempt}")
    decision.timers |= {"resume": None, "stop": None}


def _may_be_shared(record: JobRecord, lease: LeaseGrant, report: Report) -> bool:
    """Tell whether others may get a model that was made elsewhere: not one that a stranger may have made, and files only where this lab
    has its own, as it will look at them."""
    stranger = record.request.untrusted_hosts and lease.provider not in OWN
    staged = record.plan.staged if record.plan is not None else None
    if stranger or staged is None:
        return False
    root = f"{staged.store.rstrip('/')}/"
    return all(item.uri.startswith(root) and ".." not in item.uri.split("/") and "::" not in item.uri for item in report.artefacts)


def late(record: JobRecord, happening: Happening) -> list[Call]:
    """What must be given back when it arrives after the job's end: a reservation, a slot."""
    if isinstance(happening, Reservation):
        release = ReleaseRequest(reservation=happening.reservation, job=record.job)
        return [Call(f"{record.job}:budget.release", "budget.release", release)]
    if isinstance(happening, LeaseGrant):
        back = LeaseRelease(job=record.job, lease=happening.lease)
        return [Call(f"{record.job}:lease.release:{happening.lease}", "lease.release", back)]
    return []
