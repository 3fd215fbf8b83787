from datetime import UTC, datetime

from agents.gpu_orchestrator.fleet import Fleet
from bus.lease import Lease
from protocol.machine import Card, Device, Presence

GIB = 2**30
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


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
