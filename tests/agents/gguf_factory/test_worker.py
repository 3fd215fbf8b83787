"""A worker and a lab's broker over TLS: in, out, refused, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agents.gguf_factory import device as device_module
from agents.gguf_factory import staging
from agents.gguf_factory import worker as module
from agents.gguf_factory.checkpoint_store import listed
from agents.gguf_factory.hashes import Hashes
from agents.gguf_factory.store import filesystem
from agents.gguf_factory.worker import Worker
from bus import BaseAgent, Transaction, Wiring, certs, workers
from bus.broker import free_port
from bus.lease import TTL
from bus.session import Session
from protocol import Code, LabError, MCPMessage, Progress
from protocol.job import Empty, Report, RunRequest, Stage
from protocol.machine import LeaseGrant, LeaseRenewal
from tests.agents.gguf_factory.bases import make_base
from tests.agents.gguf_factory.runs import make_job
from tests.doors import Ground, heard, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    async with opened(tmp_path_factory.mktemp("ground")) as found:
        yield found


def rented(ground: Ground, token: workers.Token, *arguments: str, **environment: str) -> Any:
    """Start `meetara worker` as a machine would."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MEETARA_")}
    return asyncio.create_subprocess_exec(
        sys.executable, "-c", "from meetara.cli import app; app()", "worker", "--broker", ground.url,
        "--home", str(ground.folder / token.worker), *arguments, env={**plain, workers.VARIABLE: str(token), **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_it_shows_its_machine_waits_for_work_and_ends_with_its_rental(ground: Ground) -> None:
    token = ground.token("r1")
    await workers.admit(ground.control, token, ["job-1"])
    off = ground.folder / "off"
    process = await rented(ground, token, "--json", MEETARA_SHUTDOWN=f"touch '{off}'")
    async with ground.watching(token.worker) as session:
        found = await heard(session)
        card = found["card"]
        assert (card.provider, card.rental, card.slots) == ("vast", "r1", 1)
        assert set(card.methods) == {"job.run", "job.stop"}
        assert card.device is not None and card.device.cores == os.cpu_count()
        assert found["presence"].online
    await workers.dismiss(ground.control, token.worker)
    out, words = await asyncio.wait_for(process.communicate(), 30)
    lines = [json.loads(line) for line in out.decode().splitlines()]
    assert process.returncode == 0, words.decode()
    assert [line["kind"] for line in lines] == ["worker", "online", "offline", "over"]
    assert lines[0]["device"]["memory_bytes"] > 0 and "rental has ended" in lines[-1]["reason"]
    assert off.exists(), "the machine is turned off, whatever the bus does"
    log = (ground.folder / token.worker / "logs" / "worker.log").read_text()
    for secret in (token.password, str(token)):
        assert secret not in log + out.decode() + words.decode()


async def refusal(worker: Worker) -> LabError:
    with pytest.raises(LabError) as caught:
        await asyncio.wait_for(worker.run(), 30)
    return caught.value


async def test_a_token_that_nobody_admitted_or_that_is_over_is_told_apart_from_a_broker_that_is_away(ground: Ground) -> None:
    token = ground.token("r2")
    wrong = await refusal(ground.worker(token))
    assert wrong.code is Code.CONFIGURATION and "does not take the token of worker-r2" in str(wrong) and "anew" in wrong.advice
    await workers.admit(ground.control, token, [])
    stolen = replace(token, password="guessed")
    assert "does not take the token" in str(await refusal(ground.worker(stolen)))
    away = await refusal(ground.worker(token, broker=f"mqtts://localhost:{free_port()}", wait=0.0))
    assert away.code is Code.UNREACHABLE and "no broker answered" in str(away) and "meetara up --listen" in away.advice
    await workers.dismiss(ground.control, token.worker)
    assert "does not take the token" in str(await refusal(ground.worker(token)))


async def test_a_broker_that_the_tokens_authority_did_not_sign_is_refused(ground: Ground, tmp_path: Path) -> None:
    certs.make(tmp_path, hosts=[], now=datetime.now(UTC))
    wrong = await refusal(ground.worker(replace(ground.token("r3"), ca=(tmp_path / "ca.pem").read_text())))
    assert wrong.code is Code.CONFIGURATION and "certificate" in str(wrong)


async def test_another_version_and_an_open_line_are_refused_before_anything_is_sent(ground: Ground, tmp_path: Path) -> None:
    token = ground.token("r4")
    with pytest.raises(LabError, match=r"the lab of 0\.0\.1 \(words 00000000\): they do not understand"):
        ground.worker(replace(token, version="0.0.1", words="0" * 64))
    with pytest.raises(LabError, match=r"a token is not sent to lab\.example") as caught:
        ground.worker(token, broker="lab.example:1883")
    assert "mqtts://lab.example" in caught.value.advice
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot be written"):
        ground.worker(token, home=tmp_path / "file" / "home")


async def test_without_a_job_it_ends_by_itself_also_while_the_broker_is_away(ground: Ground) -> None:
    token = ground.token("r5")
    await workers.admit(ground.control, token, [])
    told: list[dict[str, Any]] = []
    worker = ground.worker(token, told.append, idle=0.2)
    await asyncio.wait_for(worker.run(), 30)
    assert told[-1] == {"kind": "over", "reason": "there was no job for 0 s."}
    await workers.dismiss(ground.control, token.worker)
    alone = ground.worker(token, told.append, idle=0.2, broker=f"mqtts://localhost:{free_port()}")
    await asyncio.wait_for(alone.run(), 30)
    assert told[-1]["kind"] == "over"


async def test_a_line_that_is_cut_is_made_again(ground: Ground) -> None:
    token = ground.token("r6")
    await workers.admit(ground.control, token, [])
    told: asyncio.Queue[str] = asyncio.Queue()
    worker = ground.worker(token, lambda line: told.put_nowait(line["kind"]))
    running = asyncio.create_task(worker.run())
    assert [await asyncio.wait_for(told.get(), 20) for _ in range(2)] == ["worker", "online"]
    await ground.door.close()
    assert await asyncio.wait_for(told.get(), 20) == "offline"
    await ground.door.open()
    assert await asyncio.wait_for(told.get(), 20) == "online"
    worker.leave("the test is over.")
    await asyncio.wait_for(running, 20)
    await workers.dismiss(ground.control, token.worker)


class Conductor(BaseAgent):
    """Hands out one job and notes what is reported."""

    role = "conductor"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.message_handlers["job.report"] = self.note
        self.reply_handlers["job.run"] = lambda answer, tx: None

    def note(self, message: MCPMessage, tx: Transaction) -> Empty:
        self.reports.put_nowait(self.params(message))
        return Empty()

    def hand_out(self, run: RunRequest, worker: str) -> None:
        with self.transaction() as tx:
            tx.call("job.run", run, to=worker)


class Orchestrator(BaseAgent):
    """Renews every lease."""

    role = "gpu_orchestrator"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["lease.renew"] = self.renew

    def renew(self, message: MCPMessage, tx: Transaction) -> LeaseGrant:
        asked: LeaseRenewal = self.params(message)
        return LeaseGrant(
            job=asked.job, lease=asked.lease, fence=asked.fence, provider="vast", machine="worker-r8", ttl_s=30,
            price_micros_per_hour=1, expires_at=tx.now + TTL,
        )  # fmt: skip


async def test_a_job_trains_on_it_and_its_last_checkpoint_is_in_the_store_when_the_rental_ends(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSED_WORKING_S", 0.5)
    job = make_job(tmp_path / "lab", make_base(tmp_path / "base"), parameters={"max_steps": 4000, "save_steps": 2})
    store = (tmp_path / "store").as_uri()
    staged = staging.stage(job.run.request, job.run.route, store, Hashes(tmp_path))
    run = job.run.model_copy(update={"plan": job.run.plan.model_copy(update={"staged": staged}), "provider": "vast"})
    shutil.rmtree(tmp_path / "base")
    conductor = Conductor(Wiring("conductor-1", tmp_path / "lab", ground.broker.address("conductor-1")))
    orchestrator = Orchestrator(Wiring("gpu_orchestrator-1", tmp_path / "lab", ground.control))
    token = ground.token("r8")
    await workers.admit(ground.control, token, ["j1"])
    told: list[dict[str, Any]] = []
    trains = asyncio.Event()

    def tell(line: dict[str, Any]) -> None:
        told.append(line)
        if line["kind"] == "progress" and line.get("step", 0) > 0:
            trains.set()

    worker = ground.worker(token, tell)
    agents = [asyncio.create_task(agent.run()) for agent in (conductor, orchestrator, worker)]
    conductor.hand_out(run, token.worker)
    async with Session.connect(ground.broker.address("operator"), "watches", durable=False) as session:
        await session.subscribe("meetara/v1/lab/job/j1/progress")
        while (report := await asyncio.wait_for(conductor.reports.get(), 60)).stage is not Stage.TRAIN:
            assert (report.lease, report.fence) == ("l", 1) and report.kind.startswith("stage_")
        await asyncio.wait_for(trains.wait(), 60)
        assert Progress.model_validate_json((await session.receive(1))[0].payload).job == "j1"
    await workers.dismiss(ground.control, token.worker)
    await asyncio.wait_for(agents[-1], 60)
    assert [line["kind"] for line in told if line["kind"] in ("lease", "over", "stopped")] == ["lease", "over", "stopped"]
    files, root = filesystem(f"{store}/checkpoints/j1/checkpoints")
    assert listed(files, root), "another machine can go on"
    for agent, task in zip((conductor, orchestrator), agents, strict=False):
        agent._stop.set()
        await task


async def test_it_never_takes_what_is_for_any_factory(ground: Ground) -> None:
    worker = ground.worker(ground.token("r7"))
    try:
        assert "job.plan" not in worker.message_handlers and not worker.shares_calls
    finally:
        worker.store.close()


async def test_a_gpu_is_what_its_driver_says() -> None:
    assert device_module.first(["NVIDIA A100-SXM4-80GB, 81920", "another, 1"]) == ("NVIDIA A100-SXM4-80GB", 81920 * 2**20)
    for line in ("", "No devices were found", "Failed to initialize NVML: Driver/library version mismatch", "T4, [N/A]"):
        assert device_module.first([line]) is None
