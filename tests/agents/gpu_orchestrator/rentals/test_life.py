"""The life of a rental: what is asked of its provider, and what the answers make of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agents.gpu_orchestrator.providers.provider import Instance, NoCapacity, Phase, RateLimited, Unknown
from agents.gpu_orchestrator.rentals import life
from agents.gpu_orchestrator.rentals.life import Act, Limits
from agents.gpu_orchestrator.rentals.owner import Owner, out_of_sight
from agents.gpu_orchestrator.rentals.rental import Rental, State
from protocol.machine import Device, Listing

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
LIMITS = Limits()
GIB = 2**30


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def rental(state: State = State.ORDERED, **change: object) -> Rental:
    listing = Listing(
        provider="vast", id="1", gpu="T4", gpus=1, gpu_memory_bytes=16 * GIB, price_micros_per_hour=200_000, seen_at=NOON
    )
    made = Rental(
        id="r1", provider="vast", listing=listing, kind="base tier", tag="meetara-lab-r1", machine="worker-r1",
        needs_disk_bytes=10**10, limit_micros_per_hour=220_000, price_micros_per_hour=220_000, created_at=NOON, state_at=NOON,
    )  # fmt: skip
    if state is not State.ORDERED:
        made = life.asked(made, NOON).into(state, NOON, instance=None if state is State.UNCERTAIN else "i1")
    return made.model_copy(update=change)


def instance(phase: Phase = Phase.RUNNING, price: int | None = 200_000, tag: str = "meetara-lab-r1") -> Instance:
    return Instance("vast", "i1", tag, phase, "T4", price_micros_per_hour=price)


def test_before_a_launch_is_asked_for_it_is_written_down_as_uncertain_and_the_meter_runs() -> None:
    ordered = rental()
    assert life.due(ordered, NOON) is Act.LAUNCH
    asked = life.asked(ordered, NOON)
    assert (asked.state, asked.metered_from) == (State.UNCERTAIN, NOON)
    assert life.due(asked, NOON) is Act.FIND, "a process that was killed here must look before it launches anything"


def test_a_launch_that_surely_did_nothing_is_over_and_costs_nothing() -> None:
    over = life.refused(rental(State.UNCERTAIN), NoCapacity("vast", "sold out"), after(2), LIMITS)
    assert (over.state, over.fault, over.metered_from) == (State.GONE, "NoCapacity", None)


def test_a_launch_without_an_answer_is_looked_for_and_found() -> None:
    unsure = life.refused(rental(State.UNCERTAIN), Unknown("vast", "no answer"), after(30), LIMITS)
    assert unsure.state is State.UNCERTAIN
    assert life.due(unsure, after(40)) is Act.FIND
    there = life.found(unsure, [instance(tag="meetara-lab-other"), instance()], after(40), LIMITS)
    assert (there.state, there.instance, there.price_micros_per_hour) == (State.BOOTING, "i1", 200_000)


def test_an_uncertain_launch_is_over_only_when_the_provider_said_twice_that_it_has_none() -> None:
    once = life.found(rental(State.UNCERTAIN), [], after(1), LIMITS)
    assert once.state is State.UNCERTAIN
    soon = life.found(once, [], after(30), LIMITS)
    assert soon.state is State.UNCERTAIN, "lists lag behind"
    late = life.found(soon, [], after(62), LIMITS)
    assert (late.state, late.fault) == (State.GONE, "it never came to be")


def test_one_sight_of_it_forgets_that_it_was_missed() -> None:
    once = life.seen(rental(State.READY), None, after(1), LIMITS)
    again = life.seen(once, instance(), after(30), LIMITS)
    assert life.seen(again, None, after(62), LIMITS).state is State.READY


def test_a_provider_that_does_not_answer_has_said_nothing() -> None:
    ready = rental(State.READY)
    for second in range(0, 60_000, 30):
        ready = life.failed(ready, Unknown("vast", "500"), after(second), LIMITS)
    assert ready.state is State.READY
    assert ready.next_at == after(59_970) + LIMITS.backoff[1]


def test_too_many_launches_put_the_order_off_instead_of_giving_it_up() -> None:
    later = life.refused(rental(State.UNCERTAIN), RateLimited("lambda", "slow down", 10), NOON, LIMITS)
    assert (later.state, later.metered_from) == (State.ORDERED, None)
    assert life.due(later, after(9)) is None
    assert life.due(later, after(10)) is Act.LAUNCH


def test_a_machine_that_costs_more_than_was_agreed_is_ended() -> None:
    dear = life.launched(rental(State.UNCERTAIN), instance(price=1_600_000), after(1), LIMITS)
    assert (dear.state, dear.fault) == (State.ENDING, "its price was wrong")
    assert dear.price_micros_per_hour == 1_600_000, "the meter tells what it really costs"


def test_terminate_is_asked_again_until_the_provider_proves_the_end() -> None:
    ending = life.ending(rental(State.READY), after(1), "nobody needs it")
    assert life.due(ending, after(1)) is Act.TERMINATE
    ending = life.failed(ending, Unknown("vast", "500"), after(1), LIMITS)
    assert life.due(ending, after(2)) is Act.TERMINATE
    ending = life.terminated(ending, instance(Phase.STOPPING), after(2), LIMITS)
    assert (ending.state, life.due(ending, after(7))) == (State.ENDING, Act.TERMINATE)
    over = life.terminated(ending, instance(Phase.GONE), after(7), LIMITS)
    assert (over.state, over.ended_at, over.fault) == (State.GONE, after(7), "")


def test_an_instance_that_vanished_from_the_list_while_it_ends_is_looked_for_twice() -> None:
    ending = life.ending(rental(State.READY), after(0), "over")
    once = life.terminated(ending, None, after(1), LIMITS)
    assert once.state is State.ENDING
    assert life.terminated(once, None, after(11), LIMITS).state is State.GONE


def test_an_end_that_was_wanted_while_the_launch_was_under_way_terminates_what_comes_of_it() -> None:
    ending = life.ending(rental(State.UNCERTAIN), after(1), "cancelled")
    assert life.due(ending, after(1)) is Act.FIND
    known = life.launched(ending, instance(), after(2), LIMITS)
    assert (known.state, life.due(known, after(2))) == (State.ENDING, Act.TERMINATE)


def test_what_was_never_asked_for_ends_at_once() -> None:
    assert life.ending(rental(), after(1), "cancelled").state is State.GONE


def test_a_machine_that_was_taken_away_is_a_fault_and_one_that_was_ended_is_none() -> None:
    assert life.seen(rental(State.READY), instance(Phase.GONE), after(5), LIMITS).fault == "it was taken away"
    assert life.seen(rental(State.READY), instance(Phase.STOPPING), after(5), LIMITS).state is State.ENDING


@pytest.mark.parametrize(
    ("state", "seconds", "becomes"),
    [
        (State.BOOTING, 899, State.BOOTING), (State.BOOTING, 901, State.ENDING),
        (State.LEAVING, 19, State.LEAVING), (State.LEAVING, 21, State.ENDING),
        (State.READY, 86_400, State.READY),
    ],
)  # fmt: skip
def test_time_alone_ends_what_takes_too_long(state: State, seconds: int, becomes: State) -> None:
    assert life.passed(rental(state), after(seconds), LIMITS).state is becomes


def test_a_machine_that_nobody_needs_is_ended_after_a_while() -> None:
    quiet = rental(State.READY, quiet_since=after(100))
    assert life.passed(quiet, after(160), LIMITS).state is State.READY
    assert life.passed(quiet, after(161), LIMITS).state is State.ENDING


@pytest.mark.parametrize(
    ("gpu", "gib", "lies"), [("Tesla T4", 15, False), ("Tesla T4", 8, True), ("", 0, True)]
)  # fmt: skip
def test_a_host_that_has_less_than_it_sold_is_found_out(gpu: str, gib: int, lies: bool) -> None:
    device = Device(cores=4, memory_bytes=GIB, disk_free_bytes=GIB, gpu=gpu, gpu_memory_bytes=gib * GIB)
    assert (life.lie(rental(), device) is not None) is lies


def test_an_instance_that_was_believed_to_be_gone_and_still_costs_is_ended_and_metered_on() -> None:
    over = life.gone(life.ending(rental(State.READY), NOON, "over"), after(10), LIMITS)
    back = life.orphan(instance(), over, "r1", after(70))
    assert (back.state, back.ended_at, back.metered_from) == (State.ENDING, None, NOON)
    assert life.due(back, after(70)) is Act.TERMINATE


def test_an_instance_that_nobody_remembers_is_ended_and_its_bill_asked_for() -> None:
    stranger = life.orphan(instance(), None, "zz", after(0))
    assert life.due(stranger, after(0)) is Act.TERMINATE
    assert life.terminated(stranger, instance(Phase.GONE), after(5), LIMITS).bill_at is not None


OLD, NEW = Owner("0" * 16, "4711"), Owner("1" * 16)


def looked_for(state: State, owner: Owner, times: int = 4) -> Rental:
    """A rental of the old key that another one does not show, asked again and again."""
    found = rental(state).model_copy(update=OLD.mark(rental()))
    for look in range(times):
        found = life.passed(life.seen(found, None, after(70 * look), LIMITS, owner), after(70 * look), LIMITS)
    return found


@pytest.mark.parametrize("state", [State.UNCERTAIN, State.BOOTING, State.READY, State.LEAVING, State.ENDING])
def test_what_a_key_of_perhaps_another_account_does_not_show_is_never_gone(state: State) -> None:
    kept = looked_for(state, NEW)
    assert (kept.state, kept.unseen_by, kept.key) == (State.ENDING, NEW.key, OLD.key)
    told = out_of_sight("vast", [kept])
    assert kept.tag in told and f"MEETARA_REPLACED_KEYS={OLD.key}" in told


@pytest.mark.parametrize("owner", [OLD, Owner(NEW.key, "4711"), Owner(NEW.key, replaced=frozenset({OLD.key})), Owner(OLD.key)])
def test_the_same_key_the_same_account_or_the_owners_word_prove_that_it_is_gone(owner: Owner) -> None:
    assert looked_for(State.READY, owner).state is State.GONE


def test_another_key_that_shows_the_machine_is_of_its_account_from_then_on() -> None:
    kept = life.seen(looked_for(State.ENDING, NEW), instance(), after(300), LIMITS, NEW)
    assert (kept.key, kept.unseen_by, kept.account) == (NEW.key, "", "4711")
    assert life.missed(life.missed(kept, after(301), LIMITS, NEW), after(320), LIMITS, NEW).state is State.GONE


def test_a_key_that_is_put_back_must_be_told_twice_again() -> None:
    kept = looked_for(State.ENDING, NEW)
    assert life.missed(kept, after(400), LIMITS, OLD).state is State.ENDING


def test_a_launch_is_of_the_key_that_asks_for_it_whatever_was_tried_before() -> None:
    again = life.refused(life.asked(rental(), NOON, OLD), RateLimited("vast", "slow", 5), NOON, LIMITS)
    assert (again.state, again.account) == (State.ORDERED, "4711")
    asked = life.asked(again, NOON, NEW)
    assert (asked.key, asked.account) == (NEW.key, "")
