"""Circuits that open when launches fail, and close when one goes well."""

from __future__ import annotations

from datetime import timedelta

from agents.gpu_orchestrator.rentals.breaker import FIRST, LONGEST, Breaker
from tests.agents.gpu_orchestrator.rentals.test_life import NOON

EAST, WEST = ("vast", "T4", "east"), ("vast", "T4", "west")


def test_what_failed_is_left_alone_for_twice_as_long_each_time() -> None:
    breaker = Breaker()
    now = NOON
    for pause in (FIRST, FIRST * 2, FIRST * 4):
        breaker.failed(EAST, "sold out", now)
        assert breaker.open(EAST, now + pause - timedelta(seconds=1)) is not None
        now += pause
        assert breaker.open(EAST, now) is None, "one launch is let through"
    assert breaker.open(WEST, NOON) is None


def test_it_never_stays_open_for_longer_than_capacity_takes_to_come_back() -> None:
    breaker = Breaker()
    now = NOON
    for _ in range(20):
        breaker.failed(EAST, "sold out", now)
        now = breaker.next(now) or now
    breaker.failed(EAST, "sold out", now)
    assert breaker.next(now) == now + LONGEST


def test_launches_that_fail_together_are_one_failure() -> None:
    breaker = Breaker()
    for second in range(20):
        breaker.failed(EAST, "sold out", NOON + timedelta(seconds=second))
    assert breaker.next(NOON) == NOON + FIRST


def test_a_launch_that_worked_closes_it() -> None:
    breaker = Breaker()
    breaker.failed(EAST, "sold out", NOON)
    breaker.worked(EAST)
    breaker.failed(EAST, "sold out", NOON)
    assert breaker.next(NOON) == NOON + FIRST


def test_a_refused_key_opens_all_of_a_provider() -> None:
    breaker = Breaker()
    breaker.failed(("vast", "", ""), "the key was revoked", NOON)
    assert "the key was revoked" in (breaker.open(EAST, NOON) or "")
    assert breaker.open(("runpod", "T4", "east"), NOON) is None
