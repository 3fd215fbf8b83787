"""Logs of a real agent on a real broker: its trace on every line, and nothing personal on any, whatever is sent; a full disk stops nobody."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from bus import Answer, BaseAgent, Client, Deferred, Transaction, Wiring, logs, trace
from protocol import Code, LabError, Topics, TrainRequest
from protocol.envelope import MCPMessage
from protocol.job import Empty, Submitted
from protocol.methods import TABLE
from protocol.voice import TextQuery
from tests.bus.test_agent import running
from tests.conftest import PlainBroker

PERSONAL = "my-divorce"
"""One word, so that it passes where only words do if a value is logged at all."""
SENTENCE = f"I cannot sleep since {PERSONAL}"
SECRETS = {"password": "hunter2-password", "url": "s3://zoe:hunter2-url@bucket/rows.jsonl", "mail": "zoe@hunter2.example"}
EVERYTHING = f"{SENTENCE} {json.dumps(SECRETS)} password=hunter2-plain Bearer hunter2-bearer"
LIMIT = 20.0


class Talkative(BaseAgent):
    """A router whose handlers fail in every way, and quote what they were sent."""

    role = "router"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers |= {"train.submit": self.submit, "route.text": self.route}
        self.reply_handlers["budget.report"] = self.answered
        self.timer_handlers["later"] = self.later
        self.crashes = 0
        self.seen: list[tuple[str, str | None]] = []
        self.over = asyncio.Event()

    def submit(self, message: MCPMessage, tx: Transaction) -> Submitted | Deferred:
        request: TrainRequest = self.params(message)
        self.log.info("handled", domain="sleep")
        self.seen.append(("handler", trace.current()))
        tx.timer("later", "one", tx.now, {"text": request.dataset})
        tx.call("budget.report", Empty(), key=message.id, to="cost_monitor-1")
        tx.after_commit(lambda: self.spawn(self.work()))
        return Submitted(job=message.id, state="routed", domain="sleep", tier="starter", base="b")  # type: ignore[arg-type]

    def route(self, message: MCPMessage, tx: Transaction) -> Submitted:
        query: TextQuery = self.params(message)
        if "crash" in query.text:
            raise KeyError(query.text)
        raise LabError(Code.BAD_DATA, f"I do not understand {query.text!r} or {query.text}.", field=query.text, file=SECRETS["url"])

    async def work(self) -> None:
        await asyncio.sleep(0)
        self.log.info("works in the background")
        self.seen.append(("task", trace.current()))
        with self.transaction() as tx:
            assert tx.traceparent == trace.current()

    def later(self, key: str, data: dict[str, object], tx: Transaction) -> None:
        self.seen.append(("timer", trace.current()))
        assert set(data) == {"text"}, "the trace is not the handler's business"
        if self.crashes == 0:
            self.crashes += 1
            raise ValueError(f"the timer does not like {data['text']}")
        self.log.info("timer fired")
        self.over.set()

    def answered(self, answer: Answer, tx: Transaction) -> None:
        self.seen.append(("answer", trace.current()))
        raise ValueError(f"not that answer: {answer.error}")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Logs of this process as JSON; returns what was written so far."""
    root, level, hook = list(logging.root.handlers), logging.root.level, logs.sys.excepthook
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("router-1", "json", logging.DEBUG)
    yield stream.getvalue
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.root.handlers, logs.sys.excepthook = root, hook
    logging.root.setLevel(level)


async def test_the_trace_goes_on_in_tasks_timers_and_answers(
    broker: PlainBroker, tmp_path: Path, written: Callable[[], str]
) -> None:
    agent = Talkative(Wiring("router-1", tmp_path / "home", broker.address))
    traceparent = trace.start()
    async with running(agent), Client(broker.address) as client:
        body = {"id": "sleep-1", "domain": "sleep", "dataset": "x", "_meta": {"traceparent": traceparent}}
        await client._publish(Topics().of("call", role="router", method="train.submit"), json.dumps(body).encode())
        async with asyncio.timeout(LIMIT):
            await agent.over.wait()
        call = agent.store.connection.execute("SELECT message FROM outbox").fetchone()
        assert MCPMessage.model_validate_json(call["message"]).traceparent == traceparent
    assert {name for name, _ in agent.seen} >= {"handler", "task", "timer"}
    assert {current for _, current in agent.seen} == {traceparent}
    lines = [json.loads(line) for line in written().splitlines()]
    mine = {line["event"]: line for line in lines if line.get("trace") == traceparent.split("-")[1]}
    assert mine.keys() >= {"handled", "works in the background", "timer fired", "timer handler crashed"}
    assert all(line["agent"] == "router-1" for line in lines)
    assert mine["timer handler crashed"]["exception"]["type"] == "ValueError"
    assert trace.current() is None


async def test_nothing_personal_reaches_a_log_whatever_is_sent(
    broker: PlainBroker, tmp_path: Path, written: Callable[[], str]
) -> None:
    agent = Talkative(Wiring("router-1", tmp_path / "home", broker.address))
    topics = Topics()
    bodies: list[bytes] = [
        EVERYTHING.encode(), json.dumps([EVERYTHING]).encode(), json.dumps({EVERYTHING: EVERYTHING}).encode(), b'{"text": "' + SENTENCE.encode(),
        json.dumps({"jsonrpc": EVERYTHING, "id": "a", "params": {}}).encode(),
        json.dumps({"jsonrpc": "2.0", "id": [EVERYTHING], "params": {}}).encode(),
        json.dumps({"jsonrpc": "2.0", "id": "b", "method": EVERYTHING, "params": {}}).encode(),
        json.dumps({"jsonrpc": "2.0", "id": "c", "params": EVERYTHING}).encode(),
        json.dumps({"jsonrpc": "2.0", "id": SENTENCE, "params": {"text": EVERYTHING}}).encode(),
        json.dumps({"id": SENTENCE, "job": SENTENCE, "text": EVERYTHING, "domain": EVERYTHING, "dataset": EVERYTHING}).encode(),
        json.dumps({"text": EVERYTHING, "_meta": {"traceparent": SENTENCE, "time": SENTENCE, "source": SENTENCE}}).encode(),
        json.dumps({"text": EVERYTHING, "_meta": {"priority": SENTENCE}}).encode(),
        json.dumps({"text": f"crash {EVERYTHING}"}).encode(), json.dumps({"text": EVERYTHING}).encode(),
        json.dumps({"dataset": EVERYTHING, "domain": "sleep", "parameters": {"a": {"b": EVERYTHING}}}).encode(),
        b"\xff\xfe" + EVERYTHING.encode(),
    ]  # fmt: skip
    async with running(agent), Client(broker.address) as client, client.subscription("dead", role="router") as letters:
        for method in [*(method.name for method in TABLE), "no-such-method"]:
            for body in bodies if method in ("route.text", "train.submit", "no-such-method") else bodies[-4:]:
                await client._publish(topics.of("call", role="router", method=method), body)
        await client._publish(topics.of("reply", client="router-1"), json.dumps({"id": EVERYTHING, "result": EVERYTHING}).encode())
        await client._publish(topics.of("reply", client="router-1"), EVERYTHING.encode())
        with pytest.raises(LabError, match=PERSONAL):
            await client.call("route.text", TextQuery(text=SENTENCE))
        request = TrainRequest(domain="sleep", dataset=EVERYTHING)
        await client.call("train.submit", request, id="one")
        async with asyncio.timeout(LIMIT):
            await agent.over.wait()
        with agent.transaction() as tx:  # an answer that its handler cannot bear
            [row] = [row for row in tx.connection.execute("SELECT * FROM outbox WHERE key = 'one'")]
            error = LabError(Code.INTERNAL, EVERYTHING).body().model_dump(mode="json")
        reply = {"jsonrpc": "2.0", "id": row["id"], "error": error}
        await client._publish(topics.of("reply", client="router-1"), json.dumps(reply).encode())
        with pytest.raises(LabError):  # comes after all of them, so they have been handled
            await client.call("route.text", TextQuery(text=f"crash {SENTENCE}"))
        assert SENTENCE in json.dumps([json.loads((await anext(letters))[1]) for _ in range(3)]), "dead letters hold the original"

    async def fails() -> None:
        raise ValueError(SENTENCE)

    forgotten = asyncio.create_task(fails())
    await asyncio.sleep(0)
    del forgotten  # asyncio says so itself, with the exception in its sentence
    logging.getLogger("aiomqtt").error("failed: %r", SENTENCE)
    try:
        raise RuntimeError(EVERYTHING)
    except RuntimeError as error:
        logs.sys.excepthook(RuntimeError, error, error.__traceback__)

    text = written()
    for word in (PERSONAL, "hunter2", "zoe", "divorce", "cannot sleep"):
        places = [line for line in text.splitlines() if word in line]
        assert not places, places[0]
    lines = [json.loads(line) for line in text.splitlines()]
    events = {line["event"] for line in lines}
    assert events >= {"call refused", "handler crashed", "reply handler crashed", "timer handler crashed", "the process ends"}
    assert any(line.get("code") == "BAD_DATA" for line in lines) and any(line.get("code") == "PARSE" for line in lines)
    assert any("never retrieved" in line["event"] for line in lines) and any(line.get("logger") == "aiomqtt" for line in lines)


@pytest.mark.parametrize(("name", "value"), [("MEETARA_LOG", "xml"), ("MEETARA_LOG_LEVEL", "loud")])
def test_an_unknown_form_or_level_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(LabError, match=f"{name} is '{value}'") as caught:
        logs.wanted({name: value})
    assert caught.value.code is Code.CONFIGURATION
    assert logs.wanted({"MEETARA_LOG": "console", "MEETARA_LOG_LEVEL": "DEBUG"}) == ("console", logging.DEBUG)
    assert logs.wanted({}) == ("json", logging.INFO)


def test_console_lines_are_readable_and_as_clean(written: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("router-1", "console")
    log = structlog.get_logger()
    try:
        raise KeyError(SENTENCE)
    except KeyError:
        with trace.bound(trace.start(), job="sleep-1"):
            log.exception("handler crashed", text=SENTENCE)
    text = stream.getvalue()
    assert "handler crashed" in text and "job=sleep-1" in text and "KeyError" in text and "test_logs.py:" in text
    assert PERSONAL not in text


def test_a_line_that_cannot_be_written_stops_nobody() -> None:
    code = """
import os
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
import structlog
from bus.logs import configure
configure("router-1")
structlog.get_logger().info("online", broker="here")
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n", done
