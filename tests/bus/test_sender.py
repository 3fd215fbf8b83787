"""What is due is sent without waiting for each acknowledgement, and stays due until it has one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from bus import Store, Transaction
from bus.outbox import Outbox
from bus.sender import BATCH, Sender
from protocol.job import JobQuery
from protocol.topics import Topics

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
TOPICS = Topics()


class Line:
    """A publisher that notes what was sent and acknowledges when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, asyncio.Future[None]]] = []

    def publish(self, topic: str, payload: bytes, **_: Any) -> Awaitable[None]:
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent.append((payload.decode(), confirmed))
        return confirmed


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    with Store(tmp_path / "a.db", synchronous="FULL") as store:

        @contextmanager
        def transaction(*, durable: bool = True) -> Iterator[Transaction]:
            with store.transaction(durable=durable):
                yield Transaction(store, TOPICS, "a", NOON)

        yield Sender("a", TOPICS, store, Outbox("conductor", {}), transaction, lambda: NOON)


def publish(sender: Sender, *payloads: str) -> None:
    with sender.store.transaction():
        for payload in payloads:
            sender.store.publish("t", payload.encode(), False, None)


async def test_everything_due_is_on_its_way_before_the_first_acknowledgement(sender: Sender) -> None:
    line = Line()
    publish(sender, "1", "2", "3")
    sender.replies.append((TOPICS.of("reply", client="b"), b"r", None))
    with sender.transaction() as tx:
        tx.call("job.get", JobQuery(job="j"), id="c")
    sending = asyncio.create_task(sender.send_due(line))
    await asyncio.sleep(0)
    assert [payload for payload, _ in line.sent[:4]] == ["r", "1", "2", "3"] and '"job.get"' in line.sent[4][0]
    assert len(sender.store.publications(9)) == 3 and len(sender.replies) == 1
    for _, confirmed in line.sent:
        confirmed.set_result(None)
    assert await sending
    assert sender.store.publications(9) == [] and not sender.replies and not sender.store.due_calls(NOON, 9)


async def test_what_a_broken_connection_did_not_acknowledge_stays_due(sender: Sender) -> None:
    line = Line()
    publish(sender, "1", "2", "3")
    with sender.transaction() as tx:
        tx.call("job.get", JobQuery(job="j"), id="c")
    sending = asyncio.create_task(sender.send_due(line))
    await asyncio.sleep(0)
    line.sent[0][1].set_result(None)
    for _, confirmed in line.sent[1:]:
        confirmed.set_exception(aiomqtt.MqttError("gone"))
    with pytest.raises(aiomqtt.MqttError):
        await sending
    assert [row["payload"] for row in sender.store.publications(9)] == [b"2", b"3"]
    assert [row["id"] for row in sender.store.due_calls(NOON, 9)] == ["c"]
    line.sent[3][1].exception()


async def test_a_full_batch_tells_that_more_may_be_due(sender: Sender) -> None:
    publish(sender, *(str(number) for number in range(BATCH + 1)))
    for more in (True, False):
        line = Line()
        sending = asyncio.create_task(sender.send_due(line))
        await asyncio.sleep(0)
        for _, confirmed in line.sent:
            confirmed.set_result(None)
        assert await sending is more


def test_only_what_can_be_repeated_is_written_without_waiting_for_the_disk(sender: Sender) -> None:
    def level() -> int:
        return int(sender.store.connection.execute("PRAGMA synchronous").fetchone()[0])

    with sender.store.transaction(durable=False):
        assert level() == 1
    with sender.store.transaction():
        assert level() == 2


def test_the_next_call_is_the_earliest_that_may_go(sender: Sender) -> None:
    store = sender.store
    assert store.next_call() is None
    with sender.transaction() as tx:
        for number in (1, 2):
            tx.call("job.get", JobQuery(job="j"), id=f"c{number}", key="j")
        tx.call("job.get", JobQuery(job="k"), id="c3", key="k")
    later = [NOON + timedelta(seconds=seconds) for seconds in (9, 5)]
    store.sent([("c1", later[0]), ("c3", later[1])])
    assert store.next_call() == later[1].timestamp()  # c2 is due, but waits for c1
    store.answered("c1")
    assert store.next_call() == NOON.timestamp()
