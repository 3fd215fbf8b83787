"""The money that is set aside for one job on rented machines: more of it, and a job that is given up before it is used up for nothing.

Everything here happens within a transaction of the agent.
"""

from __future__ import annotations

from datetime import timedelta

from agents.gpu_orchestrator.market.estimate import Rest
from agents.gpu_orchestrator.rentals.rental import Rental
from agents.gpu_orchestrator.rentals.store import Account, Rentals
from bus import Transaction
from bus.lease import Lease, Leases
from protocol import LabError, Retry
from protocol.machine import LeaseDelay, LeaseRecall, RequoteRequest
from protocol.money import ExtendRequest, Reservation, dollars

AGAIN = timedelta(minutes=5)
"""How soon more money is asked for again where it was refused for now."""
OVERRUN = 4
"""How many times the quoted reservation a job may need in all, with what it lost with machines that were taken away: a run that
needs more was quoted wrongly or never ends."""


def extend(account: Account, needed: int, tx: Transaction, likely: int | None = None) -> str:
    """Ask for more money; returns what the job waits for.

    Args:
        likely: what the job that runs will likely cost in all, where a probe has told it.
    """
    if not account.refused:
        more = ExtendRequest(reservation=account.reservation, job=account.job, amount_micros=needed)
        context = {} if likely is None else {"likely": likely}
        tx.call("budget.extend", more, key=account.job, id=f"{account.reservation}:extend:{needed}", context=context)
    return account.refused or "more money is asked for: the next machine costs more, or earlier ones were lost."


def probed(request: RequoteRequest, rest: Rest, lease: Lease, rental: Rental, tx: Transaction) -> None:
    """See whether money and time hold by what a job's first steps took: more is set aside at once, or the job is given up
    while little is lost.

    Set aside is what it may cost (P90), given up is what will likely not do (P50): a chance of one in ten is not worth a job.
    """
    store = Rentals(tx.connection)
    account, payer = store.account(request.job), store.payer(rental.id)
    if account is None or payer is None or payer.job != account.job:
        return
    seconds = (tx.now - payer.since).total_seconds() + rest.seconds
    spent = store.spent(account.job, tx.now)
    likely, most = spent + rest.likely_micros, account.agreed_micros * OVERRUN
    whose = f"{OVERRUN} times what was quoted"
    if request.limit_micros is not None and request.limit_micros < most:
        most, whose = request.limit_micros, "what was agreed to"
    needed = min(spent + rest.aside_micros, most)
    if request.deadline_hours is not None and seconds > request.deadline_hours * 3600:
        hours = f"{seconds / 3600:.2f} hours on this machine, longer than the {request.deadline_hours:g} of deadline_hours"
        _give_up(lease, f"it would likely take {hours}. Allow more, or ask for a smaller job.", tx)
    elif likely > most:
        cost = f"it would likely cost {dollars(likely)} in all, more than {whose}, {dollars(most)}"
        _give_up(lease, f"{cost}. Allow more with budget_usd, or ask for a smaller job.", tx)
    elif needed > account.reserved_micros:
        extend(account, needed, tx, likely)
        if account.refused:
            _short(account, likely, lease, tx)


def _short(account: Account, likely: int, lease: Lease, tx: Transaction) -> None:
    """No more is set aside for a job that runs: it goes on if what it will likely cost is."""
    if likely > account.reserved_micros:
        cost = f"it would likely cost {dollars(likely)} in all, {dollars(account.reserved_micros)} are set aside"
        _give_up(lease, f"{cost}, and more is refused: {account.refused}", tx)


def _give_up(lease: Lease, reason: str, tx: Transaction) -> None:
    reason = f"stopped after its first steps on {lease.machine}, by which {reason}"
    recall = LeaseRecall(job=lease.job, lease=lease.lease, fence=lease.fence, reason=reason, final=True)
    tx.call("lease.recall", recall, key=lease.job, id=f"{lease.lease}:give-up")


def extended(job: str, answer: Reservation | LabError, tx: Transaction, likely: int | None = None) -> None:
    """Take in the cost monitor's answer; `likely` as it was asked with."""
    store = Rentals(tx.connection)
    if isinstance(answer, LabError):
        store.refuse(job, str(answer))
        account, lease = store.account(job), Leases(tx.connection).of(job)
        if likely is not None and account is not None and lease is not None:
            _short(account, likely, lease, tx)
        if answer.retry is Retry.NEVER:
            refuse(job, str(answer), tx)
        else:
            tx.timer("extend", job, tx.now + AGAIN)
    else:
        store.extended(job, answer.amount_micros)


def refuse(job: str, reason: str, tx: Transaction) -> None:
    """Tell that a job gets no machine; what it was told before and has not heard, while the conductor is away, is over."""
    tx.drop_calls(job, "lease.delay")
    tx.call("lease.delay", LeaseDelay(job=job, reason=reason, final=True), key=job)
