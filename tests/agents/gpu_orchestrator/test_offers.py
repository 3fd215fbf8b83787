from datetime import UTC, datetime

import pytest

from agents.gpu_orchestrator.fleet import Fleet
from agents.gpu_orchestrator.offers import Machine, cost, nobody_online, offer, quote
from bus.lease import Lease
from configs import Provider
from protocol import Code, LabError, Retry
from protocol.job import Plan
from protocol.machine import Card, Device, Presence

GIB = 2**30
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def plan(memory: int = GIB, p50: float = 300, p90: float = 600) -> Plan:
    return Plan(
        rows=10, held_out_rows=2, tokens=100, steps=5, parameters={}, base_parameters=1, file_bytes=1, disk_bytes=1,
        memory_bytes=memory, seconds_p50=p50, seconds_p90=p90,
    )  # fmt: skip


def terms(price: float = 3.6) -> Provider:
    return Provider(slots=None, threads_per_slot=2, price_usd_per_hour=price, provisioning_seconds=5, grace_seconds=60)


def machine(name: str = "m1", memory: int = 4 * GIB, free: int = 1, slots: int = 1) -> Machine:
    return Machine(name, slots, free, Device(cores=2, memory_bytes=memory, disk_free_bytes=GIB), memory)


def test_costs_are_rounded_up_to_a_micro_dollar():
    assert cost(3_600_000, 300) == 300_000
    assert cost(1, 1) == 1
    assert cost(0, 1e9) == 0


def test_a_reservation_holds_p90_provisioning_and_grace_and_a_tenth_more():
    made = offer("m1", plan(), terms())
    assert (made.cost_p50_micros, made.cost_p90_micros) == (300_000, 600_000)
    assert made.reservation_micros == 731_500  # $0.001 per second x (600 + 5 + 60) x 1.1
    assert offer("m1", plan(p90=0.1), terms(0.000001)).reservation_micros == 1


def test_free_machines_cost_and_reserve_nothing():
    made = quote("j", plan(), [machine()], terms(0), budget_usd=0, tier_cap_usd=None).choice
    assert (made.cost_p90_micros, made.reservation_micros, made.provider, made.machine) == (0, 0, "local", "m1")


def test_a_machine_with_a_free_slot_is_chosen_among_equals_and_the_others_have_a_reason():
    made = quote("j", plan(), [machine("m1", free=0), machine("m2"), machine("m3", memory=GIB // 2)], terms(), None)
    assert made.choice.machine == "m2"
    assert made.rejected["m1"] == "as good as the chosen one"
    assert "1.00 GiB of memory, the machine has 0.50 GiB" in made.rejected["m3"]


def test_busy_machines_are_quoted_too():
    assert quote("j", plan(), [machine(free=0)], terms(), None).choice.machine == "m1"


def test_too_little_memory_everywhere_is_no_capacity_with_the_reason():
    with pytest.raises(LabError, match=r"m1: the job needs 8\.00 GiB") as caught:
        quote("j", plan(memory=8 * GIB), [machine()], terms(), None)
    assert (caught.value.code, caught.value.retry) == (Code.NO_CAPACITY, Retry.NEVER)


def test_over_the_requests_budget_is_refused_with_what_it_would_need():
    with pytest.raises(LabError, match=r"must reserve \$0\.7315 there, more than \$0\.50, the request's budget_usd") as caught:
        quote("j", plan(), [machine()], terms(), 0.5)
    error = caught.value
    assert (error.code, error.data["field"]) == (Code.BUDGET, "budget_usd")
    assert (error.data["needed_micros"], error.data["cap_micros"]) == (731_500, 500_000)
    assert "0.74" in error.advice


def test_the_tiers_cap_counts_only_where_the_request_names_no_budget():
    with pytest.raises(LabError, match="the tier's cap"):
        quote("j", plan(), [machine()], terms(), None, 0.5)
    assert quote("j", plan(), [machine()], terms(), 0.8, 0.5).choice.machine == "m1"


def test_a_machine_that_does_not_say_what_it_has_is_not_chosen():
    with pytest.raises(LabError, match="does not say what memory"):
        quote("j", plan(), [Machine("m1", 1, 1, None)], terms(), None)
    with pytest.raises(LabError, match="no slots"):
        quote("j", plan(), [machine(slots=0, free=0)], terms(), None)


def test_nobody_online_may_be_tried_later():
    assert nobody_online(10).retry is Retry.LATER


def card(name: str, slots: int = 2) -> Card:
    device = Device(cores=4, memory_bytes=4 * GIB, disk_free_bytes=GIB)
    return Card(agent=name, role="gguf_factory", version="1", methods={}, slots=slots, device=device)


def presence(name: str, online: bool) -> Presence:
    return Presence(agent=name, role="gguf_factory", online=online)


def lease(job: str, name: str) -> Lease:
    return Lease(job, f"l-{job}", 1, name, GIB, 0, NOW)


def test_a_machine_is_online_when_card_and_presence_say_so():
    fleet = Fleet()
    fleet.note(card("m1"))
    assert fleet.machines([]) == []
    fleet.note(presence("m1", True))
    (found,) = fleet.machines([lease("a", "m1"), lease("b", "elsewhere")])
    assert (found.slots, found.free, found.free_memory_bytes) == (2, 1, 3 * GIB)
    fleet.note(presence("m1", False))
    assert fleet.machines([]) == []
    fleet.note(presence("m1", True))
    fleet.forget("m1")
    assert fleet.machines([]) == []


def test_the_providers_status_follows_its_machines():
    fleet = Fleet()
    assert fleet.status("local", [], NOW).status == "down"
    fleet.note(card("m1"))
    fleet.note(presence("m1", True))
    up = fleet.status("local", [lease("a", "m1")], NOW)
    assert (up.status, up.slots, up.free) == ("up", 2, 1)
    assert fleet.status("local", [lease("a", "gone")], NOW).status == "degraded"
