"""A lab of real processes for tests: a tiny base, configs for it, `meetara up`, and ears that wait for what is said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml
from pydantic import BaseModel

from agents.gguf_factory import checkpoint
from agents.gguf_factory.doctor import STARTER, write_tiny
from bus import BrokerAddress, Client
from configs.source import SHIPPED
from protocol import JobSnapshot, Progress, Topics
from protocol.job import FINAL, Empty, EventsQuery, JobEvent, JobQuery, Stage, State, TrainRequest
from protocol.money import BudgetReport

ROOT = Path(__file__).resolve().parents[2]
QA = ROOT / "data" / "time_management.jsonl"
DOMAIN = "time_management"
ROWS = 60
"""Rows of the data set: enough to hold out from, few enough to be encoded in a second."""
LIMIT = 300.0
"""Seconds that any one event may take on a busy machine; a quiet one needs a tenth."""
SILENCE = 10.0
"""Seconds without a word after which the conductor is asked, where words may have been lost."""
SHORT: dict[str, float | int | str | bool] = {"max_steps": 3, "batch_size": 2, "sequence_length": 128}
"""Parameters of a job whose training is not looked at."""
LONG: dict[str, float | int | str | bool] = {"max_steps": 20, "batch_size": 6, "sequence_length": 512}
"""Parameters of a job that can be caught while it trains: about six seconds on two quiet cores."""

Item = JobSnapshot | Progress | JobEvent
ItemT = TypeVar("ItemT", JobSnapshot, Progress, JobEvent)


def write_rows(path: Path, count: int = ROWS) -> Path:
    """Write the first rows of the project's own data."""
    lines = QA.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_configs(folder: Path, base: Path) -> Path:
    """Write a configs folder whose default tier is `tiny`: a random base, a checkpoint at each step.

    What random weights cannot pass is only told, and the answers that would not end are not drawn at all; the gates
    that prove the file to be a true conversion fail the job as everywhere.
    """
    content = yaml.safe_load((SHIPPED / "tiers.yaml").read_text(encoding="utf-8"))
    content["tiers"]["tiny"] = {
        "base": str(base), "budget_usd": None,
        "parameters": {**SHORT, "learning_rate": 1e-3, "warmup_steps": 1, "save_steps": 1},
        "gates": {
            "quality_percent": {"level": "warn", "threshold": 101}, "stops_percent": {"level": "off"},
            "forgetting_percent": {"level": "off"}, "lesson_percent": {"level": "off"},
            "quant_kl": {"level": "warn", "threshold": 0.1},
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "tiers.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "lab.yaml").write_text("lab: lab\nport: 1883\nbroker: null\ndefault_tier: tiny\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Ground:
    """What all labs of a test session stand on."""

    folder: Path
    base: Path
    configs: Path
    rows: Path

    @classmethod
    def make(cls, folder: Path) -> Ground:
        write_tiny(folder / "base", STARTER)
        return cls(
            folder, folder / "base", write_configs(folder / "configs", folder / "base"), write_rows(folder / "rows.jsonl")
        )

    def request(self, parameters: dict[str, float | int | str | bool] | None = None, **fields: Any) -> TrainRequest:
        """Return a request for the small data set, which is trained though another test's job has made the same model."""
        return TrainRequest(
            **{"domain": DOMAIN, "dataset": str(self.rows), "parameters": parameters or {}, "use_cache": False, **fields}
        )


def environment(home: Path, configs: Path, **more: str) -> dict[str, str]:
    """Return a process's environment: this home and nothing else of MEETARA."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEETARA_")}
    return {
        **kept, "MEETARA_HOME": str(home), "MEETARA_CONFIGS": str(configs), "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
        "MEETARA_SLOTS": "1", **more,
    }  # fmt: skip


@dataclass
class Outcome:
    """How a program ended."""

    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1, f"{self.out}{self.error}"
        return json.loads(self.out)


async def program(*command: object, environment: dict[str, str] | None = None) -> Outcome:
    """Run a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(LIMIT):
        out, error = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), error.decode())


@dataclass
class RunningLab:
    """`meetara up` as a process of its own."""

    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[str]
    port: int
    words: Path

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress("127.0.0.1", self.port)

    @property
    def topics(self) -> Topics:
        return Topics("lab")

    def client(self) -> Client:
        return Client(self.address, "lab", name="test")

    async def cli(self, *arguments: object, **more: str) -> Outcome:
        """Run the command line on this lab's home."""
        return await program(sys.executable, "-m", "meetara.cli", *arguments, environment={**self.environment, **more})

    async def publish(self, text: str | bytes, method: str = "train.submit", role: str = "router") -> None:
        """Publish a call as a person does who has nothing but Mosquitto's tools."""
        body = text.encode() if isinstance(text, str) else text
        process = await asyncio.create_subprocess_exec(
            "mosquitto_pub", "-V", "5", "-h", "127.0.0.1", "-p", str(self.port), "-q", "1",
            "-t", self.topics.of("call", role=role, method=method), "-s", stdin=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(LIMIT):
            await process.communicate(body)
        assert process.returncode == 0

    def folder(self, job: str) -> Path:
        return self.home / "jobs" / job

    def kill(self, role: str) -> int:
        """Kill an agent, or the broker, with SIGKILL; return its pid."""
        wanted = str(self.home / "broker" / "mosquitto.conf") if role == "broker" else f"agents.{role}"
        [victim] = [process for process in processes_of(self.home) if wanted in process.cmdline()]
        os.kill(victim.pid, signal.SIGKILL)
        return victim.pid

    def stop(self) -> None:
        """End the lab by SIGTERM and see that nothing of it is left."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0, self.words.read_text()
        left = [process.cmdline() for process in processes_of(self.home)]
        assert left == [], f"left behind: {left}"


@contextmanager
def running(home: Path, configs: Path, **more: str) -> Iterator[RunningLab]:
    """Run `meetara up` on any free port until the block is left."""
    started = start(home, configs, **more)
    try:
        yield started
    except BaseException:
        print(started.words.read_text())
        started.process.kill()  # agents, jobs and broker go with it
        started.process.communicate()
        raise
    started.stop()


def start(home: Path, configs: Path, **more: str) -> RunningLab:
    """Start `meetara up` and return when it says that it is ready."""
    surroundings = environment(home, configs, **more)
    words = home.with_name(f"{home.name}-up.log")
    with words.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "meetara.cli", "up", "--port", "0", "--json"], cwd=ROOT, env=surroundings,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, words.read_text()
    ready = json.loads(line)
    assert ready.get("ready"), line
    return RunningLab(home, surroundings, process, ready["port"], words)


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes that work on a home: their environment or their command line names it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            named = any(str(home) in word for word in process.cmdline())
            if named or process.environ().get("MEETARA_HOME") == str(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@dataclass
class Ears:
    """Everything that is said about a job, in the order of its coming."""

    job: str
    heard: list[Item] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, item: Item) -> None:
        self.heard.append(item)
        self._news.set()

    async def first(
        self, kind: type[ItemT], test: Callable[[ItemT], bool] = lambda item: True, *, since: int = 0
    ) -> ItemT:
        """Return the first thing of a kind that passes the test, heard after the first `since` things."""
        at = since
        async with asyncio.timeout(LIMIT):
            while True:
                while at < len(self.heard):
                    item = self.heard[at]
                    at += 1
                    if isinstance(item, kind) and test(item):
                        return item
                    over = isinstance(item, JobSnapshot) and item.state in FINAL
                    if over and not self._after_end(kind):
                        raise AssertionError(f"{self.job} ended before that: {item}")
                self._news.clear()
                await self._news.wait()

    def _after_end(self, kind: type[Item]) -> bool:
        return kind is JobEvent  # events and states come on two topics

    async def stage(self, *stages: Stage) -> JobSnapshot:
        """Return the first snapshot that is in one of these stages."""
        return await self.first(JobSnapshot, lambda snapshot: snapshot.stage in stages)

    async def step(self, least: int, *, since: int = 0) -> Progress:
        """Return the first progress of the training that has come to a step."""
        return await self.first(
            Progress, lambda progress: progress.stage is Stage.TRAIN and (progress.step or 0) >= least, since=since
        )

    async def end(self, client: Client | None = None) -> JobSnapshot:
        """Return the final snapshot; with a client ask for it after a silence: a killed broker may have lost it."""
        while True:
            try:
                async with asyncio.timeout(None if client is None else SILENCE):
                    return await self.first(JobSnapshot, lambda snapshot: snapshot.state in FINAL)
            except TimeoutError:
                if client is None:
                    raise
                snapshot = await snapshot_of(client, self.job)
                if snapshot.state in FINAL:
                    return snapshot

    def all(self, kind: type[ItemT]) -> list[ItemT]:
        return [item for item in self.heard if isinstance(item, kind)]


@asynccontextmanager
async def listening(client: Client, job: str) -> AsyncIterator[Ears]:
    """Listen to a job's states, progress and events."""
    ears = Ears(job)
    kinds: dict[str, type[BaseModel]] = {"job_state": JobSnapshot, "job_progress": Progress, "job_event": JobEvent}

    async def listen(messages: AsyncIterator[tuple[str, bytes]], kind: type[Any]) -> None:
        async for _, payload in messages:
            if payload:
                ears.hear(kind.model_validate_json(payload))

    async with AsyncExitStack() as stack:
        tasks = []
        for topic, kind in kinds.items():
            messages = await stack.enter_async_context(client.subscription(topic, job=job))
            tasks.append(asyncio.create_task(listen(messages, kind)))
        try:
            yield ears
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def submit(client: Client, job: str, request: TrainRequest) -> Any:
    """Submit a request under an id of one's own."""
    return await client.call("train.submit", request, id=job, timeout=LIMIT, priority=request.priority)


async def events_of(client: Client, job: str) -> list[JobEvent]:
    """Ask for all facts about a job, and see that none is missing."""
    found = (await client.call("job.events", EventsQuery(job=job), timeout=LIMIT)).events
    assert [event.seq for event in found] == list(range(1, len(found) + 1)), "the numbers have no gap"
    return list(found)


async def snapshot_of(client: Client, job: str) -> JobSnapshot:
    """Ask the conductor for a job's state."""
    found: JobSnapshot = await client.call("job.get", JobQuery(job=job), timeout=LIMIT)
    return found


async def settled(client: Client, *jobs: str) -> BudgetReport:
    """Return the ledger's report once none of the jobs has an open reservation; nothing announces that, so ask."""
    async with asyncio.timeout(LIMIT):
        while True:
            report: BudgetReport = await client.call("budget.report", Empty(), timeout=LIMIT)
            if not {item.job for item in report.open_reservations} & set(jobs):
                return report


def done_once(events: list[JobEvent]) -> None:
    """Assert that a job ended once, with `done`, and finished each stage once and in order."""
    endings = [event.type for event in events if event.type in {state.value for state in FINAL}]
    assert endings == [State.DONE.value], endings
    stages = [event.data["stage"] for event in events if event.type == "stage_done"]
    assert stages == [stage.value for stage in Stage]


def trained_to(folder: Path) -> int:
    """Return the step of a job's newest checkpoint."""
    found = checkpoint.load(folder / "train" / "checkpoints").checkpoint
    assert found is not None, "no checkpoint was written"
    return int(found.meta["history"]["step"])


def ledger(home: Path) -> list[sqlite3.Row]:
    """Read the cost monitor's entries; only when the lab is down."""
    connection = sqlite3.connect(f"{(home / 'agents' / 'cost_monitor-1.db').as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute("SELECT * FROM entries ORDER BY number").fetchall()
    finally:
        connection.close()
