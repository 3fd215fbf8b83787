"""Jobs on rented machines: whatever goes wrong, every job ends, every machine ends, and the money is right.

The whole lab with the real adapters against the test clouds, in virtual time. After each life the invariants compare what the
vendors charge with the ledger, to the micro-dollar, and that nothing is left running.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from protocol.money import CapRequest
from tests.clouds.faults import Fault as Wrong
from tests.simulation.broker import Message
from tests.simulation.cloud import Vendor
from tests.simulation.people import Wish, call
from tests.simulation.plan import Fault, Plan, Request, Seller, rented
from tests.simulation.world import World

LIVES = 16
"""Lives in the tests of every day; `python -m tests.simulation --rented` lives as many as one likes."""
JOB = Request(paid=True)
VAST = (Seller("vast"),)


class Life(World):
    """A life whose books are kept: stores are closed at its end."""

    rentals: list[dict[str, Any]]
    frozen: list[str]

    def __init__(self, plan: Plan) -> None:
        self._upon: tuple[str, float, Callable[[World], object]] | None = None
        super().__init__(plan)
        self._check, self.invariants.end = self.invariants.end, self._keep  # type: ignore[method-assign]

    def upon(self, stage: str, seconds: float, happens: Callable[[World], object]) -> None:
        """Let something happen so long after a stage was begun for the first time."""
        self._upon = (stage, seconds, happens)

    def heard(self, message: Message) -> None:
        super().heard(message)
        if self._upon is not None and b"stage_started" in message.payload:
            stage, seconds, happens = self._upon
            if json.loads(message.payload).get("data", {}).get("stage") == stage:
                self._upon = None
                self.at(self.now + seconds, lambda: happens(self))

    def _keep(self) -> None:
        rows = self.nodes["gpu_orchestrator"].read("SELECT record FROM rentals")
        self.rentals = sorted((json.loads(row["record"]) for row in rows), key=lambda rental: rental["created_at"])
        self.frozen = [row[0] for row in self.nodes["cost_monitor"].read("SELECT provider FROM frozen_providers")]
        self._check()


def live(plan: Plan, *moments: tuple[float, Callable[[World], object]]) -> Life:
    """Live a life in which something happens at given seconds."""
    world = Life(plan)
    for second, happens in moments:
        world.at(second, lambda happens=happens: happens(world))  # type: ignore[misc]
    world.run()
    return world


def cloud(world: World, number: int = 0) -> Any:
    vendor: Vendor = world.vendors[number]
    return vendor.cloud


def states(world: World) -> list[str]:
    return [record["state"] for record in world.invariants.records.values()]


def facts(world: World, kind: str) -> list[dict[str, Any]]:
    return [data for told in world.invariants.events.values() for name, data in told if name == kind]


def taken_away(world: World) -> None:
    for instance in cloud(world).living():
        if instance.state in ("booting", "running"):
            cloud(world).preempt(instance.id)


@pytest.mark.parametrize("seed", range(LIVES))
def test_no_rented_life_violates_an_invariant(seed: int) -> None:
    world = World(rented(seed))
    try:
        world.run()
    except AssertionError:
        print(world.story())
        raise


def test_the_next_cheapest_is_taken_when_the_cheapest_is_sold_out_just_now() -> None:
    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=10), (0.1, lambda w: cloud(w).fail("launch", Wrong.SOLD_OUT)))
    first, second = world.rentals
    assert states(world) == ["done"]
    assert (first["fault"], first["metered_from"]) == ("NoCapacity", None)
    assert second["listing"]["price_micros_per_hour"] >= first["listing"]["price_micros_per_hour"]
    assert second["listing"]["id"] != first["listing"]["id"]
    assert [fact["lease"]["listing"] for fact in facts(world, "leased")] == [second["listing"]["id"]], "people are told which one"


def test_a_machine_whose_price_moved_between_listing_and_launch_is_not_kept() -> None:
    def dearer(world: World) -> None:
        cloud(world).stock["7001"].micros_per_hour *= 3

    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=10), (3.0, dearer))
    assert states(world) == ["done"]
    assert all(
        rental["fault"] for rental in world.rentals if rental["price_micros_per_hour"] > rental["limit_micros_per_hour"]
    )


def test_a_job_waits_while_everything_is_sold_out_and_says_so() -> None:
    def sold_out(world: World) -> None:
        cloud(world).fail("launch", Wrong.SOLD_OUT, None)

    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=3000), (0.1, sold_out), (200, lambda w: cloud(w).heal()))
    assert states(world) == ["done"]
    assert any("no machine can be rented now" in fact["reason"] for fact in facts(world, "delayed"))


def test_six_small_jobs_pay_one_set_up() -> None:
    world = live(Plan(requests=tuple(Request(at=n, paid=True) for n in range(6)), sellers=VAST, affordable=50))
    assert states(world) == ["done"] * 6
    assert len(world.rentals) == 1


@pytest.mark.parametrize(("stage", "seconds"), [("data", 0.0), ("train", 0.4), ("train", 3.0), ("publish", 0.4)])
def test_a_machine_that_is_taken_away_costs_no_attempt_and_its_job_goes_on_elsewhere(stage: str, seconds: float) -> None:
    world = Life(Plan(requests=(JOB,), sellers=VAST, trouble=1000))
    world.upon(stage, seconds, taken_away)
    world.run()
    record = next(iter(world.invariants.records.values()))
    assert (record["state"], record["failures"]) == ("done", 0)
    assert len(world.rentals) == 2


def test_a_launch_without_an_answer_is_found_and_not_made_again() -> None:
    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=10), (0.1, lambda w: cloud(w).fail("launch", Wrong.HANG_AFTER)))
    assert states(world) == ["done"]
    assert len(cloud(world).instances) == 1


def test_terminate_is_asked_until_the_machine_is_gone() -> None:
    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=10), (0.1, lambda w: cloud(w).fail("terminate", Wrong.ERROR, 5)))
    assert list(cloud(world).calls).count("terminate") >= 6


def test_a_provider_that_lists_nothing_because_it_is_down_loses_no_machine() -> None:
    def down(world: World) -> None:
        cloud(world).fail("list", Wrong.EMPTY, None)
        cloud(world).fail("status", Wrong.ERROR, None)

    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=1500), (48, down), (140, lambda w: cloud(w).heal()))
    assert states(world) == ["done"]
    assert len(world.rentals) == 1 and facts(world, "interrupted") == []


def test_a_revoked_key_is_told_and_its_machine_is_ended_once_it_is_mended() -> None:
    def mend(world: World) -> None:
        cloud(world).key = cloud(world)._own_key

    world = live(Plan(requests=(JOB,), sellers=VAST, trouble=4000), (48, lambda w: cloud(w).revoke()), (300, mend))
    assert states(world) == ["done"], "its worker needs no key of the vendor"
    assert world.rentals[0]["state"] == "gone"


@pytest.mark.parametrize(("seller", "mend"), [("vast", "the old key"), ("lambda", "the owner's word")])
def test_a_machine_that_the_key_of_another_account_does_not_show_is_kept_in_the_books_until_it_is_mended(seller: str, mend: str) -> None:
    held: dict[str, Any] = {}

    def other(world: World) -> None:
        world.vendors[0].open_account()
        world.nodes["gpu_orchestrator"].kill(1.0)

    def look(world: World) -> None:
        orchestrator, monitor = world.nodes["gpu_orchestrator"], world.nodes["cost_monitor"]
        first = json.loads(orchestrator.read("SELECT record FROM rentals ORDER BY record ->> 'created_at'")[0]["record"])
        held.update(state=first["state"], reserved=[row[0] for row in monitor.read("SELECT reservation FROM open_reservations")], key=first["key"])
        words = [json.loads(m.payload) for m in world.said if m.topic.endswith(f"provider/{seller}/status") and m.payload]
        held.update(status=words[-1]["status"], reason=words[-1]["reason"], living=len(world.vendors[0].accounts[0].living()))

    def mended(world: World) -> None:
        vendor = world.vendors[0]
        old = vendor.accounts[0]
        if mend == "the old key":
            vendor.cloud = old
        else:
            old.end(old.living()[0])
            world.replaced = frozenset({held["key"]})
        world.nodes["gpu_orchestrator"].kill(1.0)

    plan = Plan(requests=(JOB, Request(at=1500, paid=True)), sellers=(Seller(seller),), trouble=4500, affordable=20)
    world = live(plan, (48, other), (300, look), (320, mended))
    assert (held["state"], held["living"], held["status"]) == ("ending", 1, "degraded")
    assert "job-0:budget.reserve" in held["reserved"], "what its job owes is not known yet"
    assert "Put the old key back" in held["reason"] and held["key"] in held["reason"] and "key-of" not in held["reason"]
    assert states(world) == ["done", "done"] and [rental["state"] for rental in world.rentals] == ["gone", "gone"]
    assert len(world.vendors[0].accounts[1].instances) == 1, "the second job was not given to it, though its worker is there"


def test_a_key_that_was_rotated_within_its_account_changes_nothing() -> None:
    def rotated(world: World) -> None:
        cloud(world).rotate("key-of-account-0-rotated")
        world.nodes["gpu_orchestrator"].kill(1.0)

    world = live(Plan(requests=(JOB,), sellers=(Seller("runpod"),), trouble=1500), (48, rotated))
    assert states(world) == ["done"] and facts(world, "interrupted") == [] and len(world.rentals) == 1


def test_a_host_with_less_memory_than_it_sold_is_not_kept_nor_taken_again() -> None:
    world = live(Plan(seed=3, requests=(JOB,), sellers=(Seller("vast", lies=1.0),), trouble=600))
    assert states(world) == ["done"]
    liars = [rental for rental in world.rentals if "its worker sees" in rental["fault"]]
    assert liars and len({rental["listing"]["id"] for rental in liars}) == len(liars)


def test_a_job_waits_where_the_only_machine_was_not_what_it_said() -> None:
    def alone(world: World) -> None:
        cloud(world).stock = {"7001": cloud(world).stock["7001"]}

    patient = Request(paid=True, cancel=4000)  # longer than one waits for lower prices
    world = live(Plan(requests=(patient,), sellers=(Seller("vast", lies=1.0),), trouble=4100), (0.0, alone))
    assert states(world) == ["cancelled"] and len(world.rentals) == 1
    assert not any("budget_usd" in fact["reason"] for fact in facts(world, "delayed"))


def test_an_offer_of_nothing_is_never_taken() -> None:
    def gift(world: World) -> None:
        next(iter(cloud(world).stock.values())).micros_per_hour = 0

    world = live(Plan(requests=(JOB,), sellers=VAST), (0.0, gift))
    assert states(world) == ["done"]
    assert all(rental["listing"]["price_micros_per_hour"] > 0 for rental in world.rentals)


def test_a_bill_of_eight_times_the_price_is_entered_and_told_and_its_provider_left_alone() -> None:
    def dear(world: World) -> None:
        for stock in cloud(world).stock.values():
            stock.micros_per_hour *= 20

    world = live(Plan(requests=(JOB,), sellers=(Seller("runpod", billing_factor=8),), affordable=90), (0.0, dear))
    assert states(world) == ["done"]
    assert any(message.topic.endswith("cost/alert") and b"runpod" in message.payload for message in world.said)
    assert world.frozen == ["runpod"]


def test_what_a_probe_finds_dearer_is_set_aside_at_once() -> None:
    world = Life(Plan(requests=(Request(paid=True, pace=0.2),), sellers=VAST, affordable=20))
    extended: list[int] = []

    def look(world: World) -> None:
        extended.extend(row[0] for row in world.nodes["cost_monitor"].read("SELECT amount_micros FROM entries WHERE kind = 'extend'"))

    world.upon("train", 5.0, look)
    world.run()
    assert states(world) == ["done"] and len(extended) == 1


def test_a_job_that_its_budget_will_likely_not_hold_is_given_up_after_its_first_steps() -> None:
    world = live(Plan(requests=(Request(paid=True, pace=0.4, budget_usd=0.25),), sellers=VAST, affordable=20))
    [record] = world.invariants.records.values()
    assert (record["state"], record["failures"]) == ("failed", 0)
    assert "it would likely cost $0." in record["reason"] and "more than what was agreed to, $0.25" in record["reason"]
    assert cloud(world).bill() < 100_000, "the reservation is not burnt"


def test_a_month_that_ends_while_a_machine_runs_leaves_the_money_right() -> None:
    assert states(live(Plan(requests=(JOB,), sellers=VAST, start="month"))) == ["done"]


def test_what_another_lab_of_the_same_name_has_rented_is_left_alone() -> None:
    strangers: list[str] = []

    def other(world: World) -> None:
        stranger = cloud(world).rent(
            next(iter(cloud(world).stock.values())), None, tag="meetara-lab-00000000-000000000000", image="x", environment={}, disk_gb=10, bid_micros=None
        )
        strangers.append(stranger.id)

    def gone(world: World) -> None:
        assert cloud(world).instances.pop(strangers[0]).state not in ("ending", "gone")

    live(Plan(requests=(JOB,), sellers=VAST, trouble=4000), (30, other), (380, gone))


def test_an_orchestrator_killed_in_the_moment_of_a_launch_finds_what_it_has_launched() -> None:
    for moment in ("before_commit", "after_commit", "now"):
        world = live(Plan(requests=(JOB,), sellers=VAST, faults=(Fault(47, "kill", "gpu_orchestrator", 30, moment),)))
        assert states(world) == ["done"]


def test_a_worker_that_comes_back_after_its_lease_changes_nothing() -> None:
    def cut(world: World) -> None:
        worker = next(node for name, node in world.nodes.items() if name.startswith("worker-"))
        worker.up_cut = worker.down_cut = True
        assert worker.connection is not None
        worker.connection.cut(up=True, down=True)

        def mend() -> None:
            worker.up_cut = worker.down_cut = False

        world.at(world.now + 45, mend)

    assert states(live(Plan(requests=(JOB,), sellers=VAST, trouble=1500), (52, cut))) == ["done"]


@pytest.mark.parametrize("trouble", ["none", "terminate fails at first", "the broker is down"])
def test_at_95_percent_running_jobs_are_saved_and_their_machines_gone_within_a_minute(trouble: str) -> None:
    """A budget is lowered while three jobs run, so that all thresholds are crossed in one jump."""
    at: dict[str, float] = {}

    def lower(world: World) -> None:
        used = world.nodes["cost_monitor"].read("SELECT sum(amount_micros) FROM open_reservations")[0][0]
        cap = CapRequest(name="daily_usd", usd=round(used / 0.96) / 1e6)
        node = world.person("owner")
        node.begin(call(node, Wish("owner", "", "budget.set", cap), 0.0, "lower"))
        if trouble == "terminate fails at first":
            cloud(world).fail("terminate", Wrong.ERROR, 3)
        watch(world)

    def watch(world: World) -> None:
        if "frozen" not in at and (world.home / "freeze.json").exists():
            at["frozen"] = world.now
            if trouble == "the broker is down":
                world.broker.kill("kept")
                world.at(world.now + 90, lambda: setattr(world.broker, "up", True))
        if not cloud(world).living():
            at["gone"] = world.now
            return
        world.at(world.now + 0.5, lambda: watch(world))

    jobs = tuple(Request(paid=True, long=True, cancel=3000) for _ in range(3))
    world = Life(Plan(requests=jobs, sellers=(Seller("runpod"),), cap_usd=1000.0, trouble=3000))
    world.upon("train", 0.4, lower)
    world.run()
    assert at["gone"] - at["frozen"] < 60
    if trouble != "the broker is down":
        assert len(facts(world, "recalled")) >= 2, "those that ran were asked to save"
    alerts = [json.loads(message.payload) for message in world.said if message.topic.endswith("cost/alert") and message.payload]
    assert [alert["threshold"] for alert in alerts if alert["period"] == "day" and not alert["note"]] == [50, 80, 90, 95]
    told = [message for message in world.said if message.topic.endswith("cost/stopped")]
    assert len(told) <= 4, "again when one more is gone, and not each second because its cost grows"
    report = json.loads(told[-1].payload)
    assert len(report["stopped"]) == 3 and all(item["verified_gone_at"] for item in report["stopped"])
    assert states(world) == ["cancelled"] * 3
