"""Lives of whole labs in virtual time: nothing is lost, nothing happens twice, nothing gets stuck."""

from __future__ import annotations

import pytest

from tests.simulation.plan import Fault, Mishap, Plan, Request
from tests.simulation.search import search
from tests.simulation.world import World

LIVES = 120
"""Lives in the tests of every day; `make simulate` lives 10,000."""


def test_no_life_violates_an_invariant() -> None:
    found = search(LIVES)
    assert found.world is None, f"{found.world.story()}\n\n{found.violation}"
    assert found.lives == LIVES and sum(found.faults.values()) > LIVES, "the lives were too quiet to tell anything"


def test_the_same_plan_lives_the_same_life() -> None:
    plan = Plan(
        seed=7, requests=(Request(conflict=True), Request(at=20, how="nameless", priority=3)), factories=2, rough=True,
        faults=(Fault(30, "kill", "factory-1", 20, "published"), Fault(60, "broker_lost", lasts=30), Fault(90, "sleep")),
    )  # fmt: skip
    one, other = World(plan), World(plan)
    one.run()
    other.run()
    assert len(one.trace) > 100
    assert [line[:2] for line in one.trace] == [line[:2] for line in other.trace]
    assert one.invariants.records.keys() == other.invariants.records.keys()


FOUND = {
    "full disk at a factory whose job speaks": Plan(
        requests=(Request(), Request()), faults=(Fault(31, "full", "factory-1", 700),)
    ),
    "calls written between the clock's step and its notice": Plan(
        requests=(Request(), Request(), Request()), faults=(Fault(1, "sleep", "router", 1),)
    ),
    "clock set back while the conductor was away": Plan(
        faults=(Fault(60, "kill", "factory-1", 700), Fault(338, "kill", "conductor", 30), Fault(348, "clock_back", "conductor", 1))
    ),
    "broker lost its memory while the conductor was away": Plan(
        requests=(Request(), Request(plannable="no")),
        faults=(Fault(200, "broker_lost", lasts=3), Fault(200, "kill", "conductor", 15)),
    ),
    "a call sent between the clock's step and its notice": Plan(
        seed=165167812, factories=2, slots=2,
        requests=(Request(142, "publish"), Request(3, priority=2, mishaps=(Mishap("later", 1),)), Request(73)),
        faults=(
            Fault(117, "cut_down", "conductor", 10), Fault(132, "broker_lost"), Fault(417, "stall", "factory-3", 250),
            Fault(161, "broker_lost"), Fault(19, "sleep", lasts=100), Fault(358, "full", "factory-3"),
            Fault(261, "sleep", lasts=1), Fault(36, "clock_back", "router", 250),
        ),
    ),
    "plan asked for before the clock was set back, and made by the next process": Plan(
        requests=(Request(232),),
        faults=(
            Fault(264, "clock_back", "factory-1", 1), Fault(0, "kill", "router", 30, "acknowledged"),
            Fault(2, "kill", "factory-1", 1, "acknowledged"),
        ),
    ),
}
"""Plans that once failed, as they were left by shrinking."""


@pytest.mark.parametrize("plan", FOUND.values(), ids=FOUND.keys())
def test_life_that_once_failed(plan: Plan) -> None:
    World(plan).run()
