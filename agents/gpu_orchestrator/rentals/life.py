"""What is done next for a rental, and what an answer of its provider makes of it. Pure.

`due` tells the one call that is due; the others turn what came back into the next state. The order of the
steps is the order of safety: a launch is written down as uncertain before it is asked for, and only the provider's word,
twice and some time apart, makes anything gone, and only its word to the account that rented it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from agents.gpu_orchestrator.providers.provider import Instance, Phase, ProviderError, RateLimited
from agents.gpu_orchestrator.rentals import meter
from agents.gpu_orchestrator.rentals.owner import Owner
from agents.gpu_orchestrator.rentals.rental import Rental, State
from protocol.access import worker_name
from protocol.machine import Device, Listing


@dataclass(frozen=True)
class Limits:
    """How long things may take.

    Attributes:
        setup: what a quote counts for setting a machine up, which jobs that share one need once.
        order: from the decision until the provider is asked; then another machine is looked for.
        boot: from launch until the worker must be online; images of some GB and slow hosts take minutes.
        idle: a ready machine that nobody wants is kept so long, for a request that is being quoted just now.
        leave: how long jobs may save before the machine is terminated all the same.
        end: how long the end of a machine takes, from the decision to the provider's proof; what it costs is kept back.
        absent: a provider must say twice, so far apart, that it has no such instance; lists lag behind by seconds.
        gone: the same for an instance whose end was asked for.
        look: between two looks at an instance that is where it should be.
        pause: between two looks at one that is on its way.
        backoff: first and longest pause after a failed call.
        dear: how long a job waits while everything that fits costs more than it may; prices come down within the hour or not soon.
        bill: how long after the end the provider is asked what it charges; bills lag behind.
        bills: for how long it is asked again: some vendors count by the day.
    """

    setup: timedelta = timedelta(minutes=10)
    order: timedelta = timedelta(minutes=5)
    boot: timedelta = timedelta(minutes=15)
    idle: timedelta = timedelta(seconds=60)
    leave: timedelta = timedelta(seconds=20)
    end: timedelta = timedelta(seconds=90)
    absent: timedelta = timedelta(seconds=60)
    gone: timedelta = timedelta(seconds=10)
    look: timedelta = timedelta(seconds=60)
    pause: timedelta = timedelta(seconds=5)
    backoff: tuple[timedelta, timedelta] = (timedelta(seconds=1), timedelta(seconds=30))
    dear: timedelta = timedelta(hours=1)
    bill: timedelta = timedelta(minutes=2)
    bills: timedelta = timedelta(hours=26)


class Act(StrEnum):
    """A call of the provider."""

    LAUNCH = "launch"
    FIND = "find"
    """Look for it by its tag: its id is not known."""
    LOOK = "look"
    TERMINATE = "terminate"
    BILL = "bill"


UNKNOWN = Owner()
"""Of providers without keys."""
TRUE_MEMORY = 0.9
"""Share of the listed GPU memory that must be there: drivers keep up to a tenth of it from what they report."""


def due(rental: Rental, now: datetime) -> Act | None:
    """Return the call that is due for a rental, or None."""
    if rental.next_at is not None and now < rental.next_at:
        return None
    match rental.state:
        case State.ORDERED:
            return Act.LAUNCH
        case State.UNCERTAIN:
            return Act.FIND
        case State.BOOTING | State.READY | State.LEAVING:
            return Act.LOOK
        case State.ENDING:
            return Act.FIND if rental.instance is None else Act.TERMINATE
        case State.GONE if rental.bill_at is not None and now >= rental.bill_at:
            return Act.BILL
    return None


def passed(rental: Rental, now: datetime, limits: Limits) -> Rental:
    """Return what time alone makes of a rental."""
    age = now - rental.state_at
    if rental.state is State.ORDERED and age > limits.order:
        return ending(rental, now, rental.error or "it could not be ordered", fault="it could not be ordered")
    if rental.state is State.UNCERTAIN and age > limits.boot:
        return ending(rental, now, "what came of its launch was not told in time", fault="its launch was not answered")
    if rental.state is State.BOOTING and age > limits.boot:
        minutes = limits.boot.total_seconds() / 60
        return ending(rental, now, f"its worker did not come within {minutes:g} minutes", fault="it did not boot")
    if rental.state is State.LEAVING and age > limits.leave:
        return rental.into(State.ENDING, now)
    if rental.state is State.READY and rental.quiet_since is not None and now - rental.quiet_since > limits.idle:
        return rental.into(State.ENDING, now, reason="nobody needs it")
    return rental


def leaving(rental: Rental, now: datetime, reason: str) -> Rental:
    """Let a rental's jobs save, and end it then; one without a worker ends at once."""
    if rental.state is State.READY:
        return rental.into(State.LEAVING, now, reason=reason)
    return ending(rental, now, reason)


def ending(rental: Rental, now: datetime, reason: str, fault: str = "") -> Rental:
    """End a rental: terminate what may exist, forget what was never asked for."""
    if rental.state in (State.ENDING, State.GONE):
        return rental
    told = {"reason": rental.reason or reason, "fault": rental.fault or fault}
    if rental.state is State.ORDERED:
        return rental.into(State.GONE, now, ended_at=now, **told)
    return rental.into(State.ENDING, now, **told)


def asked(rental: Rental, now: datetime, owner: Owner = UNKNOWN) -> Rental:
    """Return an ordered rental as it must be stored before its launch is asked for."""
    return rental.into(State.UNCERTAIN, now, metered_from=now, key=owner.key, account=owner.account)


def launched(rental: Rental, instance: Instance, now: datetime, limits: Limits, owner: Owner = UNKNOWN) -> Rental:
    """Take in the provider's word that the rental exists: whoever is shown it is of its account."""
    if rental.state is State.GONE:
        return rental
    known = {"instance": instance.id, "missed_at": None, "failures": 0, "error": "", **owner.mark(rental)}
    if instance.price_micros_per_hour:  # a price of nothing is none
        known["price_micros_per_hour"] = instance.price_micros_per_hour
    rental = rental.model_copy(update=known)
    if rental.state is State.UNCERTAIN:
        rental = rental.into(State.BOOTING, now)
    if rental.open and rental.price_micros_per_hour > rental.limit_micros_per_hour:
        return ending(rental, now, "it costs more than was agreed", fault="its price was wrong")
    return rental


def found(rental: Rental, listed: Sequence[Instance], now: datetime, limits: Limits, owner: Owner = UNKNOWN) -> Rental:
    """Take in what the provider lists, looking for a rental whose id is not known."""
    mine = [instance for instance in listed if instance.tag == rental.tag]
    living = [instance for instance in mine if instance.phase is not Phase.GONE]
    if living:
        return launched(rental, living[0], now, limits, owner)
    return missed(rental, now, limits, owner)


def seen(rental: Rental, instance: Instance | None, now: datetime, limits: Limits, owner: Owner = UNKNOWN) -> Rental:
    """Take in what the provider says of the instance; None: that it has none such."""
    if instance is None:
        return missed(rental, now, limits, owner)
    if instance.phase is Phase.GONE:
        return gone(rental, now, limits)
    rental = launched(rental, instance, now, limits, owner)
    if instance.phase is Phase.STOPPING and rental.open:
        return ending(rental, now, "the provider is taking it away", fault="it was taken away")
    pause = limits.look if rental.state is State.READY else limits.pause
    return rental.model_copy(update={"next_at": now + pause})


def terminated(rental: Rental, instance: Instance | None, now: datetime, limits: Limits, owner: Owner = UNKNOWN) -> Rental:
    """Take in what the provider says of an instance after its end was asked for."""
    if instance is not None and instance.phase is Phase.GONE:
        return gone(rental, now, limits)
    if instance is None:
        return missed(rental, now, limits, owner)
    update = {"next_at": now + limits.pause, "missed_at": None, "failures": 0, **owner.mark(rental)}
    return rental.model_copy(update=update)


def missed(rental: Rental, now: datetime, limits: Limits, owner: Owner = UNKNOWN) -> Rental:
    """The provider has no such instance: twice, some time apart, makes it true, unless it may mean another account's."""
    if rental.state is State.GONE:
        return rental
    wait = limits.gone if rental.state is State.ENDING and rental.instance else limits.absent
    if rental.missed_at is not None and now - rental.missed_at >= wait:
        return gone(rental, now, limits) if owner.speaks_for(rental) else unseen(rental, now, limits, owner)
    first = rental.missed_at or now
    again = min(first + wait, now + limits.pause) if now < first + wait else now
    return rental.model_copy(update={"missed_at": first, "next_at": again, "failures": 0})


def unseen(rental: Rental, now: datetime, limits: Limits, owner: Owner) -> Rental:
    """The present key does not show it, and may be another account's: nothing is proved, so it is to end until something is."""
    if rental.open:
        rental = leaving(rental, now, f"the present key of {rental.provider} does not show it, and may be another account's")
    return rental.model_copy(update={"unseen_by": owner.key, "missed_at": None, "next_at": now + limits.look, "failures": 0})


def orphan(instance: Instance, known: Rental | None, id: str, now: datetime, owner: Owner = UNKNOWN) -> Rental:
    """Return a rental for an instance that should not be: it is ended, and what it costs is told.

    Args:
        known: the rental of its tag, which was believed to be gone; None: nobody remembers one.
        id: what the tag names.
    """
    since = instance.since or now
    if known is not None:
        metered = known.metered_from or since
        back = {"instance": instance.id, "ended_at": None, "bill_at": None, "metered_from": metered, "reason": "it is still there"}
        return known.into(State.ENDING, now, **back, **owner.mark(known))
    price = instance.price_micros_per_hour or 0
    listing = Listing(
        provider=instance.provider, id="", gpu=instance.gpu, region=instance.region, price_micros_per_hour=None, seen_at=now
    )
    return Rental(
        id=id, provider=instance.provider, listing=listing, kind="", tag=instance.tag, machine=worker_name(id),
        needs_disk_bytes=0, limit_micros_per_hour=price, price_micros_per_hour=price, state=State.ENDING, instance=instance.id,
        created_at=now, state_at=now, metered_from=since, reason="nobody ordered it", key=owner.key, account=owner.account,
    )  # fmt: skip


def gone(rental: Rental, now: datetime, limits: Limits) -> Rental:
    """The rental is over. Where nobody wanted that, the provider took it away."""
    if rental.state is State.GONE:
        return rental
    wanted = rental.state is State.ENDING
    fault = "" if wanted else "it never came to be" if rental.instance is None else "it was taken away"
    return rental.into(
        State.GONE, now, ended_at=now, fault=rental.fault or fault, token="",
        metered_from=rental.metered_from if rental.instance else None,  # what never was has cost nothing
        bill_at=now + limits.bill if rental.instance else None,
        reason=rental.reason or ("the provider ended it" if rental.instance else "the launch came to nothing"),
    )  # fmt: skip


def billed(rental: Rental, micros: int | None, now: datetime, limits: Limits) -> Rental:
    """Take in what the provider charges so far; None: it has not told yet. It is asked again, ever more rarely: bills lag."""
    ended = rental.ended_at or now
    again = now + max(limits.bill, (now - ended) / 2)
    told = rental.billed_micros if micros is None else micros
    return rental.model_copy(
        update={"billed_micros": told, "bill_at": again if again - ended <= limits.bills else None, "failures": 0}
    )


def tells(before: Rental, after: Rental) -> bool:
    """Tell whether a bill is to be told now: it has changed and is not far below the own meter, or it is the last word.

    Vendors count in hours and days: a bill that is told too soon is too low, and what it would free is spent by others.
    """
    if after.state is not State.GONE or after.ended_at is None:
        return False
    if before.bill_at is not None and after.bill_at is None:
        return True
    own = meter.reading(after, after.ended_at)
    return after.billed_micros != before.billed_micros and (after.billed_micros or 0) >= own * WHOLE


WHOLE = 0.9
"""Share of the own meter from which on a bill counts as a whole one; the own meter runs longer than the provider's."""


def shifted(rental: Rental, seconds: float, metered: float) -> Rental:
    """Return a rental as if all had happened so much later: the wall clock was set.

    Args:
        seconds: by which waits and limits move.
        metered: by which the meter moves: without the time for which this machine slept, as the rented one went on.
    """
    changes: dict[str, datetime] = {}
    for names, by in (
        (("state_at", "quiet_since", "missed_at", "next_at", "bill_at"), seconds), (("created_at", "metered_from", "ended_at"), metered),
    ):  # fmt: skip
        for name in names:
            if (old := getattr(rental, name)) is not None:
                changes[name] = old + timedelta(seconds=by)
    return rental.model_copy(update=changes)


def refused(rental: Rental, error: ProviderError, now: datetime, limits: Limits) -> Rental:
    """Take in that a launch failed: one that surely did nothing is over and cost nothing, of any other a trace is looked for."""
    if not error.sure or rental.state is State.GONE:
        return failed(rental, error, now, limits)
    if isinstance(error, RateLimited) and rental.state is State.UNCERTAIN:
        return failed(rental.into(State.ORDERED, now, metered_from=None), error, now, limits)
    return rental.into(
        State.GONE, now, ended_at=now, metered_from=None, fault=type(error).__name__, reason=rental.reason or str(error)
    )


def failed(rental: Rental, error: ProviderError, now: datetime, limits: Limits) -> Rental:
    """Take in that any other call failed: nothing is known by that, so it is made again later."""
    first, longest = limits.backoff
    pause = min(first * 2 ** min(rental.failures, 10), longest)
    if isinstance(error, RateLimited):
        pause = max(pause, timedelta(seconds=error.retry_after))
    over = rental.state is State.GONE and rental.ended_at is not None and now - rental.ended_at > limits.bills
    more = {"bill_at": None} if over else {}
    return rental.model_copy(update={"failures": rental.failures + 1, "next_at": now + pause, "error": str(error), **more})


def lie(rental: Rental, device: Device | None) -> str | None:
    """Tell what a worker's device lacks of what was listed; None: it is what was paid for."""
    listing = rental.listing
    if listing.gpus == 0:
        return None
    if device is None or not device.gpu:
        return f"{listing.gpu} was listed, its worker sees no GPU"
    if device.gpu_memory_bytes < listing.gpu_memory_bytes * TRUE_MEMORY:
        listed, real = listing.gpu_memory_bytes / 2**30, device.gpu_memory_bytes / 2**30
        return f"{listing.gpu} with {listed:.0f} GiB was listed, its worker sees {device.gpu} with {real:.0f} GiB"
    return None
