"""An agent on a real broker: nothing lost, nothing twice, answers kept."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from bus import DEFERRED, Answer, BaseAgent, BrokerAddress, Client, Deferred, Transaction, Wiring
from bus.session import Incoming, Refused
from protocol.envelope import MAX_BYTES, MCPMessage
from protocol.errors import Code, LabError
from protocol.job import Empty, JobList, JobQuery, JobSnapshot, Submitted, TrainRequest
from protocol.topics import Topics
from protocol.voice import VoiceList
from tests.conftest import PlainBroker, free_port
from tests.faults.proxy import Direction, Proxy, Rule


class Counter(BaseAgent):
    """Serves the router's method; counts its effects in a table of its own."""

    role = "router"
    migrations = ("CREATE TABLE effects (id TEXT, priority INTEGER)",)

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["train.submit"] = self.submit
        self.crashes = 0
        self.hold = False
        self.calls: list[str] = []

    def submit(self, message: MCPMessage, tx: Transaction) -> Submitted | Deferred:
        request: TrainRequest = self.params(message)
        self.calls.append(message.id)
        tx.connection.execute("INSERT INTO effects VALUES (?, ?)", (message.id, message.priority))
        if request.domain == "wrong":
            raise LabError(Code.UNKNOWN_DOMAIN, "no such domain.", field="domain")
        if self.crashes:
            self.crashes -= 1
            raise ZeroDivisionError("planted")
        if self.hold:
            return DEFERRED
        return Submitted(job=message.id, state="routed", domain=request.domain, tier="starter", base="b")  # type: ignore[arg-type]

    def effects(self) -> list[str]:
        return [row["id"] for row in self.store.connection.execute("SELECT id FROM effects ORDER BY rowid")]


class Asker(BaseAgent):
    """Calls durably and keeps the answers."""

    role = "conductor"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.reply_handlers["train.submit"] = lambda answer, tx: self.answers.put_nowait(answer)


@asynccontextmanager
async def running(agent: BaseAgent) -> AsyncIterator[asyncio.Task[None]]:
    online = asyncio.Event()

    async def started() -> None:
        online.set()

    agent.started = started  # type: ignore[method-assign]
    task = asyncio.create_task(agent.run())
    waiting = asyncio.create_task(online.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield task
    finally:
        agent._stop.set()
        await task


def agent_call(identity: str) -> Incoming:
    """Return a call as it comes from the bus."""
    return Incoming(
        topic=Topics().of("call", role="router", method="train.submit"), properties=(), response_topic=None,
        payload=json.dumps({"id": identity, "domain": "d", "dataset": "x"}).encode(), correlation=None, retain=False,
        duplicate=False, qos=1, mid=1,
    )  # fmt: skip


def wiring(broker: PlainBroker, tmp_path: Path, name: str) -> Wiring:
    return Wiring(name, tmp_path / "home", broker.address)


async def test_a_call_is_answered_with_its_typed_result(broker: PlainBroker, tmp_path: Path) -> None:
    async with running(Counter(wiring(broker, tmp_path, "router-1"))), Client(broker.address) as client:
        result = await client.call("train.submit", TrainRequest(domain="sleep", dataset="x"), id="one")
    assert result == Submitted(job="one", state="routed", domain="sleep", tier="starter", base="b")  # type: ignore[arg-type]


async def test_the_same_id_and_body_has_one_effect_and_the_same_reply(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    async with running(agent), Client(broker.address) as client:
        request = TrainRequest(domain="sleep", dataset="x")
        first = await client.call("train.submit", request, id="same")
        second = await client.call("train.submit", request, id="same")
        assert first == second
        assert agent.effects() == ["same"]
        with pytest.raises(LabError) as caught:
            await client.call("train.submit", TrainRequest(domain="sleep", dataset="other"), id="same")
        assert caught.value.code is Code.CONFLICT
        assert agent.effects() == ["same"]


async def test_an_error_reply_undoes_the_handler_and_names_the_field(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    async with running(agent), Client(broker.address) as client:
        with pytest.raises(LabError) as caught:
            await client.call("train.submit", TrainRequest(domain="wrong", dataset="x"))
        assert (caught.value.code, caught.value.data["field"]) == (Code.UNKNOWN_DOMAIN, "domain")
        assert agent.effects() == []


async def test_wrong_parameters_are_answered_with_the_fields(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    topic = Topics().of("call", role="router", method="train.submit")
    async with running(agent), Client(broker.address) as client:
        with pytest.raises(LabError) as caught:
            await client.call("train.submit", JobQuery(job="x"))
        assert caught.value.code is Code.INVALID_PARAMS
        assert "dataset: Field required" in caught.value.message and "job: Extra" in caught.value.message
        async with client.subscription("dead", role="router") as letters:
            await client._publish(topic, b"{not json")
            _, payload = await anext(letters)
        letter = json.loads(payload)
        assert letter["original"] == "{not json" and "line 1" in letter["reason"]


async def test_a_crashing_handler_is_tried_again_and_has_one_effect(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    agent.crashes = 2
    async with running(agent), Client(broker.address) as client:
        await client.call("train.submit", TrainRequest(domain="sleep", dataset="x"), id="job")
        assert agent.calls == ["job"] * 3 and agent.effects() == ["job"]


async def test_a_handler_that_always_crashes_is_given_up_with_a_dead_letter(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    agent.crashes = 99
    async with running(agent), Client(broker.address) as client, client.subscription("dead", role="router") as letters:
        with pytest.raises(LabError) as caught:
            await client.call("train.submit", TrainRequest(domain="sleep", dataset="x"), id="job")
        _, payload = await anext(letters)
        assert caught.value.code is Code.INTERNAL and "ZeroDivisionError" in caught.value.message
        assert json.loads(payload)["attempts"] == 5 and agent.effects() == []


async def test_a_durable_call_survives_an_absent_callee_and_a_killed_broker(
    broker: PlainBroker, tmp_path: Path
) -> None:
    asker = Asker(wiring(broker, tmp_path, "conductor-1"))
    async with running(asker):
        with asker.transaction() as tx:
            tx.call("train.submit", TrainRequest(domain="sleep", dataset="x"), id="job", key="k", context={"n": 1})
            tx.call("train.submit", TrainRequest(domain="sleep", dataset="x"), id="job", key="k")
        broker.kill()
        broker.start()
        agent = Counter(wiring(broker, tmp_path, "router-1"))
        async with running(agent):
            answer = await asyncio.wait_for(asker.answers.get(), 20)
            assert (answer.key, answer.context, answer.error) == ("k", {"n": 1}, None)
            assert agent.effects() == ["job"]
        assert asker.store.outgoing("job") is None


async def test_a_message_taken_in_before_a_kill_is_handled_after_it(broker: PlainBroker, tmp_path: Path) -> None:
    first = Counter(wiring(broker, tmp_path, "router-1"))
    message = MCPMessage(id="job", type="train.submit", data={"domain": "sleep", "dataset": "x"})
    with first.store.transaction():
        first.store.take_in("job", "digest", message.model_dump_json(), 1, (None, None), message.timestamp)
    first.store.close()
    second = Counter(wiring(broker, tmp_path, "router-1"))
    async with running(second):
        while not second.effects():
            second._wake.set()
            await asyncio.sleep(0)
        assert second.effects() == ["job"]


async def test_messages_published_while_an_agent_is_away_reach_it(broker: PlainBroker, tmp_path: Path) -> None:
    async with running(Counter(wiring(broker, tmp_path, "router-1"))):
        pass
    async with Client(broker.address) as client:
        topic = Topics().of("call", role="router", method="train.submit")
        for number in range(50):
            await client._publish(topic, json.dumps({"id": f"j{number}", "domain": "d", "dataset": "x"}).encode())
        agent = Counter(wiring(broker, tmp_path, "router-1"))
        async with running(agent):
            await client.call("train.submit", TrainRequest(domain="d", dataset="x"), id="last")
            assert sorted(agent.effects()) == sorted([*(f"j{number}" for number in range(50)), "last"])


def test_waiting_calls_are_handled_by_priority_then_time(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    for identity, priority in (("a", 1), ("b", 3), ("c", 2), ("d", 3)):
        message = MCPMessage(id=identity, type="train.submit", data={"domain": "d", "dataset": "x"}, priority=priority)
        with agent.store.transaction():
            agent.store.take_in(identity, identity, message.model_dump_json(), priority, (None, None), agent.now())
    agent.fire_due()
    assert agent.effects() == ["b", "d", "c", "a"]
    agent.store.close()


async def test_a_deferred_call_is_answered_later_and_only_once(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    agent.hold = True
    async with running(agent), Client(broker.address) as client:
        asking = asyncio.create_task(client.call("train.submit", TrainRequest(domain="d", dataset="x"), id="later"))
        while not agent.calls:
            await asyncio.sleep(0)
        with agent.transaction() as tx:
            tx.reply("later", LabError(Code.BUDGET, "too dear."))
            tx.reply("later", JobList(jobs=[]))
        with pytest.raises(LabError, match="too dear"):
            await asking


async def test_an_answer_that_is_too_large_is_an_error_at_once(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    agent.message_handlers["train.submit"] = lambda message, tx: Submitted(
        job="x", state="routed", domain="d", tier="starter", base="b", message="x" * MAX_BYTES,  # type: ignore[arg-type]
    )  # fmt: skip
    async with running(agent), Client(broker.address) as client:
        with pytest.raises(LabError, match=r"more than the limit of 262144\. Ask for less") as caught:
            await client.call("train.submit", TrainRequest(domain="d", dataset="x"), timeout=20)
        assert caught.value.code is Code.TOO_LARGE


async def test_a_reply_that_cannot_be_read_is_that_calls_error_and_no_others(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    agent.hold = True
    async with running(agent), Client(broker.address) as client:
        asking = asyncio.create_task(client.call("train.submit", TrainRequest(domain="d", dataset="x"), id="one", timeout=20))
        other = asyncio.create_task(client.call("train.submit", TrainRequest(domain="e", dataset="x"), id="two", timeout=20))
        while len(agent.calls) < 2:
            await asyncio.sleep(0)
        await client._publish(Topics().of("reply", client=client.name), b"noise", correlation=b"one")
        with pytest.raises(LabError, match="not JSON"):
            await asking
        with agent.transaction() as tx:
            tx.reply("two", LabError(Code.BUDGET, "too dear."))
        with pytest.raises(LabError, match="too dear"):
            await other


async def test_a_deadline_that_the_broker_counts_holds_on_a_machine_with_another_clock(
    broker: PlainBroker, tmp_path: Path
) -> None:
    ahead = timedelta(hours=1)
    agent = Counter(Wiring("router-1", tmp_path / "home", broker.address, now=lambda: datetime.now(UTC) + ahead))
    asker = Asker(wiring(broker, tmp_path, "conductor-1"))
    async with running(agent), running(asker):
        with asker.transaction() as tx:
            tx.call("train.submit", TrainRequest(domain="d", dataset="x"), id="job", deadline=tx.now + timedelta(seconds=30))
        answer = await asyncio.wait_for(asker.answers.get(), 20)
        assert answer.error is None and agent.effects() == ["job"]


async def test_a_call_taken_in_after_its_deadline_is_answered_and_not_executed(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    topic, late = Topics().of("call", role="router", method="train.submit"), datetime.now(UTC) - timedelta(seconds=1)
    async with running(agent), Client(broker.address) as client, client.subscription("dead", role="router") as letters:
        body = {"id": "late", "domain": "d", "dataset": "x", "_meta": {"deadline": late.isoformat()}}
        await client._publish(topic, json.dumps(body).encode())
        _, payload = await anext(letters)
        assert "has passed" in json.loads(payload)["reason"] and agent.effects() == []


def test_what_waits_follows_a_clock_that_is_set(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    fired: list[str] = []
    agent.timer_handlers["tick"] = lambda key, data, tx: fired.append(key)
    with agent.transaction() as tx:
        tx.timer("tick", "soon", tx.now + timedelta(seconds=3600.01))  # as it stands after the clock was set back
        tx.call("train.submit", TrainRequest(domain="d", dataset="x"), id="call", deadline=tx.now + timedelta(hours=1))
    agent.follow_clock(-3601)
    agent.fire_due()
    row = agent.store.outgoing("call")
    assert fired == ["soon"] and row is not None and row["deadline"] < agent.now().timestamp()
    agent.store.close()


async def test_a_clock_set_back_is_noticed_and_its_timers_still_fire(broker: PlainBroker, tmp_path: Path) -> None:
    step = timedelta(0)
    agent = Counter(Wiring("router-1", tmp_path / "home", broker.address, now=lambda: datetime.now(UTC) + step))
    fired = asyncio.Event()
    agent.timer_handlers["tick"] = lambda key, data, tx: fired.set()
    async with running(agent):
        with agent.transaction() as tx:
            tx.timer("tick", "soon", tx.now + timedelta(seconds=0.3))
        await asyncio.sleep(0)  # the clock waits for the timer now
        step = timedelta(hours=-1)
        await asyncio.wait_for(fired.wait(), 20)


async def test_a_line_too_slow_for_what_waits_delays_an_agent_and_does_not_keep_it_off(
    broker: PlainBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits takes longer than the answer to a subscription may: only who takes it in meanwhile ever gets there."""
    monkeypatch.setattr("bus.session.ANSWER_SECONDS", 1)
    topic = Topics().of("call", role="router", method="train.submit")
    async with Proxy(broker.address.port, Random(1)) as proxy:
        near = BrokerAddress("127.0.0.1", proxy.listening)
        async with running(Counter(Wiring("router-1", tmp_path / "home", near))):
            pass  # its subscriptions are kept
        async with Client(broker.address) as client:
            for number in range(20):
                body = {"id": f"j{number}", "domain": "d", "dataset": "x" * 1000}
                await client._publish(topic, json.dumps(body).encode())
        proxy.rules[Direction.DOWN] = Rule(bytes_per_second=12_000)
        agent = Counter(Wiring("router-1", tmp_path / "home", near))
        async with asyncio.timeout(60):
            async with running(agent):
                while len(agent.effects()) < 20:
                    await asyncio.sleep(0.05)


async def test_an_agent_tells_a_broker_that_lost_its_memory_what_it_should_retain(
    broker: PlainBroker, tmp_path: Path
) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    told = asyncio.Event()
    agent.broker_forgot = told.set  # type: ignore[method-assign]
    async with running(agent):
        while not agent._announced:
            await asyncio.sleep(0.01)
        assert told.is_set(), "the broker may have lost its memory while nobody was there"
        told.clear()
        broker.kill()
        for saved in broker.folder.glob("mosquitto.db*"):
            saved.unlink()
        broker.start()
        await asyncio.wait_for(told.wait(), 20)
        async with Client(broker.address) as client, client.subscription("presence", role="+", agent="+") as seen:
            await asyncio.wait_for(anext(seen), 20)


async def test_what_is_written_after_the_clock_was_set_keeps_its_time(broker: PlainBroker, tmp_path: Path) -> None:
    step = timedelta(0)
    agent = Counter(Wiring("router-1", tmp_path / "home", broker.address, now=lambda: datetime.now(UTC) + step))
    fired = asyncio.Event()
    agent.timer_handlers["tick"] = lambda key, data, tx: fired.set()
    async with running(agent):
        step = timedelta(hours=1)
        with agent.transaction() as tx:  # the first thing that happens at the new time
            tx.timer("tick", "soon", tx.now + timedelta(seconds=0.3))
        await asyncio.wait_for(fired.wait(), 20)


async def test_a_clock_set_back_while_the_agent_was_away_delays_no_timer(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    await agent.handle_message(MCPMessage(type="train.submit", data={"domain": "d", "dataset": "x"}))
    with agent.transaction() as tx:
        tx.timer("tick", "soon", tx.now + timedelta(seconds=0.3))
    agent.store.close()
    agent = Counter(
        Wiring("router-1", tmp_path / "home", broker.address, now=lambda: datetime.now(UTC) - timedelta(hours=1))
    )
    fired = asyncio.Event()
    agent.timer_handlers["tick"] = lambda key, data, tx: fired.set()
    async with running(agent):
        await asyncio.wait_for(fired.wait(), 20)


async def test_an_agent_off_the_bus_does_not_spin_over_calls_that_it_cannot_send(tmp_path: Path) -> None:
    agent = Counter(Wiring("router-1", tmp_path / "home", BrokerAddress("127.0.0.1", free_port())))
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    agent.fire_due = look  # type: ignore[method-assign]
    with agent.transaction() as tx:
        tx.call("train.submit", TrainRequest(domain="d", dataset="x"), id="call")
    running_alone = asyncio.create_task(agent.run())
    await asyncio.sleep(0.5)
    running_alone.cancel()
    await asyncio.gather(running_alone, return_exceptions=True)
    assert 0 < looks < 5, "every 20 ms would be 25"


async def test_the_displaced_of_two_processes_with_one_name_ends_and_says_why(broker: PlainBroker, tmp_path: Path) -> None:
    first = Counter(Wiring("router-1", tmp_path / "one", broker.address))
    second = Counter(Wiring("router-1", tmp_path / "two", broker.address))
    ended = asyncio.create_task(first.run())
    async with Client(broker.address) as client, client.subscription("presence", role="+", agent="+") as seen:
        await anext(seen)
        async with running(second):
            with pytest.raises(LabError, match=r"connected to .* as (lab-)?router-1") as caught:
                await asyncio.wait_for(ended, 20)
            assert caught.value.code is Code.CONFLICT and "another --agent" in caught.value.advice
            await client.call("train.submit", TrainRequest(domain="d", dataset="x"), id="job")
            assert second.effects() == ["job"], "the newcomer has the session and keeps it"


async def test_a_full_disk_delays_a_call_and_does_not_bury_it(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    full = True

    def submit(message: MCPMessage, tx: Transaction) -> Submitted:
        if full:
            tx.connection.execute("PRAGMA max_page_count = 1")  # SQLite makes it the present size: nothing more fits
            tx.connection.execute("INSERT INTO effects VALUES (zeroblob(1000000), 1)")
        tx.connection.execute("INSERT INTO effects VALUES (?, 1)", (message.id,))
        return Submitted(job=message.id, state="routed", domain="d", tier="starter", base="b")  # type: ignore[arg-type]

    agent.message_handlers["train.submit"] = submit
    incoming = agent_call("job")
    for _ in range(7):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            agent.take_in([incoming])
    assert agent.store.find_call("job") is None, "not taken in, so not acknowledged, so sent again"
    full = False
    agent.store.connection.execute("PRAGMA max_page_count = 1000000")
    agent.take_in([incoming])
    assert agent.effects() == ["job"]
    agent.store.close()


async def test_presence_tells_online_and_offline(broker: PlainBroker, tmp_path: Path) -> None:
    async with Client(broker.address) as client, client.subscription("presence", role="+", agent="+") as seen:
        async with running(Counter(wiring(broker, tmp_path, "router-1"))):
            topic, payload = await anext(seen)
            assert topic.endswith("agent/router/router-1/presence") and json.loads(payload)["online"] is True
        _, payload = await anext(seen)
        assert json.loads(payload)["online"] is False


def test_a_second_process_on_one_store_is_refused(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    with pytest.raises(LabError, match="in use by another process"):
        Counter(wiring(broker, tmp_path, "router-1"))
    agent.store.close()


def test_results_and_snapshots_have_a_schema_that_refuses_unknown_fields() -> None:
    assert Empty.model_json_schema()["additionalProperties"] is False
    assert JobSnapshot.model_json_schema()["additionalProperties"] is False


async def test_a_named_but_malformed_call_without_a_reply_address_is_refused_by_its_name(
    broker: PlainBroker, tmp_path: Path
) -> None:
    agent = Counter(wiring(broker, tmp_path, "router-1"))
    told: asyncio.Queue[tuple[str, LabError]] = asyncio.Queue()
    agent._inbox.refuse = lambda message, error, tx: told.put_nowait((message.id, error)) or True
    async with running(agent), Client(broker.address) as client:
        body = {"jsonrpc": "1.0", "id": "named", "params": {}}
        await client._publish(Topics().of("call", role="router", method="train.submit"), json.dumps(body).encode())
        identity, error = await told.get()
        assert identity == "named" and error.data["field"] == "jsonrpc"


class Teller(BaseAgent):
    """Serves a repeatable method, at once or later."""

    role = "tts"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["speech.voices"] = self.voices
        self.asked: list[str] = []
        self.hold = False

    def voices(self, message: MCPMessage, tx: Transaction) -> VoiceList | Deferred:
        self.asked.append(message.id)
        return DEFERRED if self.hold else VoiceList(system=f"{len(self.asked)}", voices=[])


async def test_a_repeatable_call_is_not_kept_and_answered_afresh(broker: PlainBroker, tmp_path: Path) -> None:
    agent = Teller(wiring(broker, tmp_path, "tts-1"))
    async with running(agent), Client(broker.address) as client:
        assert (await client.call("speech.voices", Empty(), id="same")).system == "1"
        assert agent.store.find_call("same") is None
        assert (await client.call("speech.voices", Empty(), id="same")).system == "2"
        agent.hold = True
        asking = asyncio.create_task(client.call("speech.voices", Empty(), id="later"))
        while "later" not in agent.asked:
            await asyncio.sleep(0)
        assert agent.store.find_call("later")["state"] == "open", "it survives a restart until it is answered"
        with agent.transaction() as tx:
            tx.reply("later", VoiceList(system="later", voices=[]))
        assert (await asking).system == "later" and agent.store.find_call("later") is None


class Refusing:
    """A broker that lets nobody publish to some topics."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.published: list[str] = []

    async def publish(self, topic: str, payload: bytes, **_: object) -> None:
        if topic in self.refused:
            raise Refused("Not authorized", "router-1", "publish to", topic)
        self.published.append(topic)


async def test_a_caller_cannot_make_an_agent_speak_elsewhere_nor_stop_its_replies(tmp_path: Path) -> None:
    agent = Counter(Wiring("router-1", tmp_path, BrokerAddress("127.0.0.1", 1)))
    replies = [Topics().of("reply", client=name) for name in ("first", "conductor-1", "last")]
    elsewhere = [Topics().of("cost_emergency"), "meetara/v1/other/reply/me", Topics().of("job_state", job="j")]
    elsewhere += [Topics().of("reply", client=name) for name in ("", "#", "+", "a/b")]
    agent._sender.replies.extend((topic, b"{}", None) for topic in [*elsewhere, *replies])
    broker = Refusing(replies[1])
    await agent._sender.send_due(broker)
    assert broker.published == [replies[0], replies[2]]
    assert not agent._sender.replies, "none is left in the way of others"
    agent.store.close()


def test_calls_of_one_batch_beyond_the_limit_are_told_to_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.inbox.WAITING_LIMIT", 3)
    agent = Counter(Wiring("router-1", tmp_path, BrokerAddress("127.0.0.1", 1)))
    topic, reply = Topics().of("call", role="router", method="train.submit"), Topics().of("reply", client="me")
    batch = [
        Incoming(topic, json.dumps({"id": f"j{n}", "domain": "d", "dataset": "x"}).encode(), (), reply, None, False, False, 1, n)
        for n in range(1, 6)
    ]
    agent.take_in(batch)
    assert agent.effects() == ["j1", "j2", "j3"]
    told = [json.loads(payload) for _, payload, _ in agent._sender.replies]
    assert {one["id"] for one in told if one.get("error", {}).get("code") == Code.BUSY} == {"j4", "j5"}
    agent.take_in(batch)  # repeated: the first get their stored replies, the others are taken now
    assert agent.effects() == ["j1", "j2", "j3", "j4", "j5"]
    agent.store.close()
