"""The orchestrator's shell over a real store and a clock of the test's; cards and presences are handed in as bytes."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.gpu_orchestrator.agent import LATE, QUOTE_WAIT, GpuOrchestratorAgent
from bus import BrokerAddress, Wiring
from bus.lease import TTL
from configs import Settings
from protocol import MCPMessage, Topics
from protocol.machine import Card, Device, Presence

GIB = 2**30
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


class Rig:
    """An orchestrator without network: what it stores is what it would send."""

    def __init__(self, home: Path, price: float = 0.36) -> None:
        self.time = NOON
        self.home = home
        self.price = price
        self.agent = self._made()

    def _made(self) -> GpuOrchestratorAgent:
        wiring = Wiring("gpu_orchestrator-1", self.home, BrokerAddress("127.0.0.1", 1), now=lambda: self.time)
        agent = GpuOrchestratorAgent(wiring, configs.load(Settings.read(local_usd_per_hour=self.price)))
        agent._session = object()  # type: ignore[assignment]  # as while connected
        return agent

    def restart(self) -> None:
        self.agent.store.close()
        self.agent = self._made()

    def pass_time(self, by: timedelta) -> None:
        self.time += by
        self.agent.fire_due()

    def factory(self, name: str = "f1", slots: int = 1, online: bool = True, memory: int = 4 * GIB) -> None:
        device = Device(cores=2, memory_bytes=memory, disk_free_bytes=GIB)
        card = Card(agent=name, role="gguf_factory", version="1", methods={}, slots=slots, device=device)
        presence = Presence(agent=name, role="gguf_factory", online=online)
        for topic, word in (("card", card), ("presence", presence)):
            full = Topics().of(topic, role="gguf_factory", agent=name)
            self.agent._heard(full, word.model_dump_json().encode())

    async def ask(self, identity: str, method: str, **data: Any) -> dict[str, Any] | None:
        await self.agent.handle_message(MCPMessage(id=identity, type=method, data=data))
        return self.reply(identity)

    def reply(self, identity: str) -> dict[str, Any] | None:
        row = self.agent.store.find_call(identity)
        assert row is not None
        return json.loads(row["reply"]) if row["reply"] else None

    async def lease(self, job: str, identity: str | None = None, priority: int = 1, after: int = 0) -> dict[str, Any] | None:
        reply = await self.ask(
            identity or f"{job}:lease", "lease.request", job=job, reservation="r", priority=priority,
            submitted_at=(NOON + timedelta(seconds=after)).isoformat(), memory_bytes=GIB,
        )  # fmt: skip
        return reply["result"] if reply else None

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        rows = self.agent.store.connection.execute("SELECT id, message FROM outbox ORDER BY rowid")
        return [(row["id"], json.loads(row["message"])["data"]) for row in rows]

    def statuses(self) -> list[tuple[str, int, int]]:
        rows = self.agent.store.connection.execute("SELECT payload FROM publications ORDER BY number")
        words = [json.loads(row["payload"]) for row in rows]
        return [(word["status"], word["slots"], word["free"]) for word in words]


@pytest.fixture
async def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    await made.agent.started()
    yield made
    made.agent.store.close()


@pytest.fixture
async def free(tmp_path: Path) -> Iterator[Rig]:
    """A lab whose own machines cost nothing."""
    made = Rig(tmp_path, price=0.0)
    await made.agent.started()
    yield made
    made.agent.store.close()


def quote_request(budget: float | None = None) -> dict[str, Any]:
    plan = {
        "rows": 10, "held_out_rows": 2, "tokens": 100, "steps": 5, "parameters": {}, "base_parameters": 1, "file_bytes": 1,
        "disk_bytes": 1, "memory_bytes": GIB, "seconds_p50": 300.0, "seconds_p90": 600.0,
    }  # fmt: skip
    return {"job": "j", "tier": "starter", "plan": plan, "budget_usd": budget}


async def test_a_quote_names_the_factory_and_what_to_reserve(rig):
    rig.factory()
    reply = await rig.ask("q", "offer.quote", **quote_request())
    assert reply["result"]["choice"]["machine"] == "f1"
    assert reply["result"]["choice"]["reservation_micros"] == 73_150


async def test_a_quote_waits_for_the_first_factory(rig):
    assert await rig.ask("q", "offer.quote", **quote_request()) is None
    rig.pass_time(QUOTE_WAIT / 2)
    rig.factory()
    assert rig.reply("q")["result"]["choice"]["machine"] == "f1"
    rig.pass_time(QUOTE_WAIT)
    assert "result" in rig.reply("q")


async def test_a_quote_is_refused_when_no_factory_comes(rig):
    assert await rig.ask("q", "offer.quote", **quote_request()) is None
    rig.pass_time(QUOTE_WAIT)
    error = rig.reply("q")["error"]
    assert error["code"] == -32010 and error["data"]["retry"] == "later" and "within 10 s" in error["message"]


async def test_a_waiting_quote_that_fits_nowhere_gets_the_reason(rig):
    await rig.ask("q", "offer.quote", **quote_request(budget=0.01))
    rig.factory()
    assert rig.reply("q")["error"]["code"] == -32006


async def test_leases_go_by_priority_then_time_as_slots_come_free(rig):
    rig.factory()
    first = await rig.lease("a")
    assert (first["machine"], first["fence"], first["ttl_s"], first["price_micros_per_hour"]) == ("f1", 1, 30, 360_000)
    for job, priority, after in (("late", 1, 9), ("early", 1, 3), ("urgent", 3, 20)):
        assert await rig.lease(job, priority=priority, after=after) is None
    order = []
    holder = first
    for _ in range(3):
        await rig.ask(f"{holder['job']}:release", "lease.release", job=holder["job"], lease=holder["lease"])
        (holder,) = [
            reply["result"] for job in ("late", "early", "urgent")
            if job not in order and (reply := rig.reply(f"{job}:lease"))
        ]  # fmt: skip
        order.append(holder["job"])
    assert order == ["urgent", "early", "late"]


async def test_a_job_that_holds_a_lease_gets_the_same_again(rig):
    rig.factory(slots=2)
    first = await rig.lease("a")
    assert await rig.lease("a", "another message") == first


async def test_two_waiting_calls_of_one_job_take_one_slot_and_both_are_answered(rig):
    await rig.lease("a", "one")
    await rig.lease("a", "two")
    rig.factory(slots=2)
    assert rig.reply("one")["result"] == rig.reply("two")["result"]
    assert rig.statuses()[-1] == ("up", 2, 1)


async def test_a_renewed_lease_lives_and_an_unrenewed_one_is_lost_and_told_once(rig):
    rig.factory()
    lease = await rig.lease("a")
    await rig.lease("b")
    rig.pass_time(TTL / 2)
    renewed = await rig.ask("n", "lease.renew", job="a", lease=lease["lease"], fence=1)
    assert datetime.fromisoformat(renewed["result"]["expires_at"]) == rig.time + TTL
    rig.pass_time(TTL / 2)
    assert rig.calls() == [] and rig.reply("b:lease") is None
    rig.pass_time(TTL / 2)
    lost = {"job": "a", "lease": lease["lease"], "fence": 1, "machine": "f1", "reason": "", "counts": True}
    assert rig.calls() == [(f"{lease['lease']}:lost", lost)]
    assert rig.reply("b:lease")["result"]["machine"] == "f1"
    old = await rig.ask("o", "lease.renew", job="a", lease=lease["lease"], fence=1)
    assert old["error"]["code"] == -32007
    again = await rig.lease("a", "again")
    assert again is None
    await rig.ask("rb", "lease.release", job="b", lease=None)
    assert rig.reply("again")["result"]["fence"] == 2


async def test_a_lease_that_nobody_watched_is_not_lost_but_lives_for_another_ttl(rig):
    rig.factory()
    await rig.lease("a")
    await rig.agent.started()
    rig.pass_time(TTL + LATE + timedelta(seconds=1))  # this agent was held, or its file locked: no renewal could come in
    assert rig.calls() == []
    rig.pass_time(TTL)
    assert len(rig.calls()) == 1, "nobody has renewed it since"


@pytest.mark.parametrize("step", [3600, -3600])
async def test_a_clock_that_is_set_neither_loses_a_lease_nor_keeps_a_dead_one(rig, step):
    rig.factory()
    await rig.lease("a")
    await rig.agent.started()
    rig.time += timedelta(seconds=step)
    rig.agent.follow_clock(step)
    rig.pass_time(TTL - timedelta(seconds=1))
    assert rig.calls() == []
    rig.pass_time(timedelta(seconds=1))
    assert len(rig.calls()) == 1


async def test_after_a_restart_every_lease_gets_one_ttl(rig):
    rig.factory()
    lease = await rig.lease("a")
    rig.time += 3 * TTL
    rig.restart()
    rig.agent.fire_due()  # the clock runs before the broker is reached
    await rig.agent.started()
    assert rig.calls() == []
    rig.pass_time(TTL - timedelta(seconds=1))
    assert (await rig.ask("n", "lease.renew", job="a", lease=lease["lease"], fence=1))["result"]["fence"] == 1
    rig.pass_time(TTL)
    assert [name for name, _ in rig.calls()] == [f"{lease['lease']}:lost"]


async def test_the_queue_survives_a_restart(rig):
    await rig.lease("a")
    rig.restart()
    await rig.agent.started()
    rig.factory()
    assert rig.reply("a:lease")["result"]["machine"] == "f1"


async def test_off_the_bus_no_lease_expires(rig):
    rig.factory()
    await rig.lease("a")
    rig.agent._session = None
    rig.pass_time(3 * TTL)
    assert rig.calls() == []


async def test_an_offline_factory_keeps_its_lease_but_gets_no_new_job(rig):
    rig.factory(slots=2)
    lease = await rig.lease("a")
    rig.factory(slots=2, online=False)
    assert await rig.lease("b") is None
    assert rig.statuses()[-1] == ("down", 0, 0)
    assert "result" in await rig.ask("n", "lease.renew", job="a", lease=lease["lease"], fence=1)
    rig.factory(slots=2)
    assert rig.reply("b:lease")["result"]["machine"] == "f1"


async def test_releasing_without_a_lease_leaves_the_queue(rig):
    rig.factory()
    await rig.lease("a")
    await rig.lease("b")
    await rig.ask("x", "lease.release", job="b", lease=None)
    assert rig.reply("b:lease")["error"]["code"] == -32011 - 1
    await rig.ask("y", "lease.release", job="a", lease=None)
    assert rig.statuses()[-1] == ("up", 1, 1)


async def test_an_old_release_does_not_end_the_new_lease(rig):
    rig.factory()
    first = await rig.lease("a")
    await rig.ask("x", "lease.release", job="a", lease=first["lease"])
    second = await rig.lease("a", "again")
    await rig.ask("y", "lease.release", job="a", lease=first["lease"])
    assert second["fence"] == 2
    assert "result" in await rig.ask("n", "lease.renew", job="a", lease=second["lease"], fence=2)


async def test_status_is_told_when_it_changes_and_only_then(rig):
    rig.factory()
    rig.factory()
    await rig.lease("a")
    assert rig.statuses() == [("down", 0, 0), ("up", 1, 1), ("up", 1, 0)]
    rig.agent.broker_forgot()
    assert rig.statuses()[3:] == [("up", 1, 0)], "and again when the broker has lost its memory"


async def test_a_card_that_cannot_be_read_is_left_out(rig):
    rig.agent._heard(Topics().of("card", role="gguf_factory", agent="f1"), b'{"agent": 5}')
    assert await rig.ask("q", "offer.quote", **quote_request()) is None


def staged_request(job: str, **changes: Any) -> dict[str, Any]:
    """A job for a GPU, whose data are in the store."""
    plan = {
        **quote_request()["plan"], "working_bytes": GIB, "trained_tokens": 1_000_000, "base_parameters": 600_000_000,
        "staged": {"store": "s3://lab", "dataset": "s3://lab/data/a", "base": "org/base"}, **changes,
    }  # fmt: skip
    return {"job": job, "tier": "lightning", "plan": plan}


def lend(rig: Rig, name: str = "worker-lent-pc", gpu: str = "NVIDIA GeForce RTX 4090", online: bool = True) -> None:
    device = Device(cores=8, memory_bytes=32 * GIB, disk_free_bytes=99 * GIB, gpu=gpu, gpu_memory_bytes=24 * GIB)
    card = Card(
        agent=name, role="gguf_factory", version="1", methods={}, slots=1, device=device, provider="lent",
        rental=name.removeprefix("worker-"),
    )  # fmt: skip
    for topic, word in (("card", card), ("presence", Presence(agent=name, role="gguf_factory", online=online))):
        rig.agent._heard(Topics().of(topic, role="gguf_factory", agent=name), word.model_dump_json().encode())


async def quoted_lease(rig: Rig, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Ask for a quote and then for the machine that it names."""
    quote = await rig.ask(f"{asked['job']}:quote", "offer.quote", **asked)
    reply = await rig.ask(
        f"{asked['job']}:lease", "lease.request", job=asked["job"], reservation="r", priority=1, submitted_at=NOON.isoformat(),
        memory_bytes=GIB, offer=quote["result"]["choice"],
    )  # fmt: skip
    return reply["result"] if reply else None


async def test_a_lent_gpu_is_taken_for_nothing_by_a_job_whose_data_can_reach_it(rig):
    rig.factory()
    lend(rig)
    leased = await quoted_lease(rig, staged_request("a"))
    assert (leased["machine"], leased["provider"], leased["price_micros_per_hour"]) == ("worker-lent-pc", "lent", 0)
    assert rig.statuses()[-1] == ("up", 1, 1), "the lab's own machines are told apart from it"
    here = await quoted_lease(rig, staged_request("b", staged=None))
    assert (here["machine"], here["provider"]) == ("f1", "local")


async def test_a_job_quoted_for_a_lent_machine_runs_here_when_that_is_gone_but_not_where_it_does_not_fit(free):
    free.factory()
    lend(free)
    slow = {"seconds_p50": 40_000.0, "seconds_p90": 80_000.0}
    fits, not_here = staged_request("a", **slow), staged_request("b", **slow, not_here="it needs a GPU")
    quotes = [(await free.ask(f"{asked['job']}:quote", "offer.quote", **asked))["result"]["choice"] for asked in (fits, not_here)]
    assert {quote["provider"] for quote in quotes} == {"lent"}
    lend(free, online=False)
    answers = [
        await free.ask(
            f"{job}:lease", "lease.request", job=job, reservation="r", priority=1, submitted_at=NOON.isoformat(), memory_bytes=GIB,
            offer=quote,
        )
        for job, quote in zip("ab", quotes, strict=True)
    ]  # fmt: skip
    assert answers[0]["result"]["provider"] == "local" and answers[1] is None
    lend(free)
    assert free.reply("b:lease")["result"]["machine"] == "worker-lent-pc", "it waits for the machine to come back"


async def test_a_job_gets_the_lent_machine_that_it_was_quoted_for_and_waits_for_it_rather_than_for_days_here(rig):
    rig.factory(slots=3, memory=64 * GIB)
    lend(rig)
    first = await quoted_lease(rig, staged_request("a"))
    assert first["machine"] == "worker-lent-pc", "not the one with most memory"
    assert await quoted_lease(rig, {**staged_request("b", seconds_p90=400_000.0), "deadline_hours": 10}) is None
    await rig.ask("end", "lease.release", job="a", lease=first["lease"], over=True)
    assert rig.reply("b:lease")["result"]["machine"] == "worker-lent-pc"
    lend(rig, online=False)
    here = await quoted_lease(rig, staged_request("c"))
    assert here["machine"] == "f1"


async def test_a_job_for_which_nothing_is_reserved_does_not_move_to_a_machine_that_costs(rig):
    rig.factory()
    lend(rig)
    quote = (await rig.ask("a:quote", "offer.quote", **staged_request("a")))["result"]["choice"]
    assert quote["reservation_micros"] == 0
    lend(rig, online=False)
    waiting = await rig.ask(
        "a:lease", "lease.request", job="a", reservation="r", priority=1, submitted_at=NOON.isoformat(), memory_bytes=GIB, offer=quote
    )
    assert waiting is None, "an hour here costs $0.36, and the lent machine is to come back"


async def test_a_question_leaves_nothing_behind_and_counts_what_would_be_staged(rig):
    lend(rig)
    asked = {**staged_request("a", staged=None), "dry_run": True}
    assert "set MEETARA_STORE" in (await rig.ask("q", "offer.quote", **asked))["error"]["data"]["rejected"]["worker-lent-pc"]
    await rig.ask("q2", "offer.quote", **{**staged_request("b"), "dry_run": True})
    assert rig.agent.store.connection.execute("SELECT count(*) FROM asked").fetchone()[0] == 0


async def test_a_lent_machine_that_is_switched_off_is_no_failure_of_its_job(rig):
    lend(rig)
    await quoted_lease(rig, staged_request("a"))
    rig.pass_time(TTL + timedelta(seconds=1))
    [lost] = [data for identity, data in rig.calls() if identity.endswith(":lost")]
    assert lost["job"] == "a" and lost["counts"] is False


async def test_what_a_quote_was_asked_with_is_forgotten_with_its_job(rig):
    lend(rig)
    leased = await quoted_lease(rig, staged_request("a"))
    await rig.ask("end", "lease.release", job="a", lease=leased["lease"], over=True)
    assert rig.agent.store.connection.execute("SELECT count(*) FROM asked").fetchone()[0] == 0
