"""A factory's job process in the simulation: its protocol and its misfortunes without its work.

It takes the place of agents.gguf_factory.process in the real FactoryAgent. Its checkpoints are on the machine's disk; it
ends with the process that started it, as the real one does.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.gguf_factory.cache import Found
from protocol.errors import Code, LabError, Retry
from protocol.job import Artefact, Finished, Plan, PlanRequest

if TYPE_CHECKING:
    from tests.simulation.world import Node

STAGES = ("data", "train", "publish")
"""Three of the eight stages: one of each state that a job can be in on a machine."""
LOCK_WAIT = 10.0
"""Seconds that a process waits for its folder, as agents.gguf_factory.work does."""
MEMORY = 1 << 30
KEY = "f" * 64
"""Of the one model that all shared requests ask for."""

FORECAST = Plan(
    rows=10, held_out_rows=2, tokens=100, steps=5, parameters={}, base_parameters=1, file_bytes=1, disk_bytes=1,
    memory_bytes=MEMORY, seconds_p50=20.0, seconds_p90=60.0, working_bytes=1 << 29, trained_tokens=150_000,
).model_dump(mode="json")  # fmt: skip

LONG = FORECAST | {"base_parameters": 10**9, "trained_tokens": 60_000_000}
"""Two hours on an RTX 4090, by arithmetic."""


def here() -> Node:
    """The simulated process that runs now."""
    node: Node = asyncio.get_running_loop().owner  # type: ignore[attr-defined]
    return node


async def make_plan(request: PlanRequest, home: Path, launcher: object) -> dict[str, Any]:
    """Plan as the job's request in the world says."""
    node = here()
    await asyncio.sleep(node.world.random.uniform(0.2, 3.0))
    match node.world.request_of(request.request.dataset).plannable:
        case "no":
            error = LabError(Code.BAD_DATA, "the data set has no usable row.", advice="Add rows.")
            return {"error": error.body().model_dump(mode="json")}
        case "crash":
            return {"crash": "the planning process ended with status -9: "}
    if node.world.request_of(request.request.dataset).long:
        return {"plan": LONG}
    if node.world.request_of(request.request.dataset).pace:
        return {"plan": FORECAST | {"steps": 10_000}}
    if not node.world.request_of(request.request.dataset).shared:
        return {"plan": FORECAST}
    finished = node.disk.models.get(KEY)
    return {"plan": FORECAST | {"key": KEY, "finished": finished and finished.model_dump(mode="json")}}


async def look_up(cache: object, request: PlanRequest, tiers: object) -> Found:
    """Find a model that was finished on this machine."""
    node = here()
    finished = node.disk.models.get(KEY)
    if finished is None or not node.world.request_of(request.request.dataset).shared:
        return Found()
    return Found(KEY, Plan.model_validate(FORECAST).model_copy(update={"key": KEY, "finished": finished}))


class JobProcess:
    """The same words as agents.gguf_factory.process.JobProcess."""

    def __init__(
        self, folder: Path, slots: int, heard: Callable[[dict[str, Any]], Awaitable[None]],
        ended: Callable[[int], Awaitable[None]], **_: Any,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.job = folder.name
        self.heard = heard
        self.ended = ended
        self.node = here()
        self.running = False
        self.stalled = False
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()
        self._killed = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()

    async def run(self) -> None:
        if self._stopping.is_set():
            await self.ended(-signal.SIGTERM)
            return
        self.running = True
        self.node.processes.append(self)
        try:
            status = await self._live()
        finally:
            self._leave()
        await self.ended(status)

    def _leave(self) -> None:
        self.running = False
        self._gone.set()
        if self in self.node.processes:
            self.node.processes.remove(self)
        if self.node.folders.get(self.job) is self:
            del self.node.folders[self.job]

    async def stop(self, grace: float) -> None:
        self._stopping.set()
        if not self.running:
            return
        try:
            async with asyncio.timeout(grace):
                await self._gone.wait()
        except TimeoutError:
            self._killed.set()
            await self._gone.wait()

    def working(self) -> bool:
        return self.running and not self.stalled

    def stall(self, stalled: bool) -> None:
        """SIGSTOP and SIGCONT."""
        self.stalled = stalled
        (self._awake.clear if stalled else self._awake.set)()

    async def _live(self) -> int:
        world = self.node.world
        node = self.node
        waited = 0.0
        while node.folders.setdefault(self.job, self) is not self:
            if waited >= LOCK_WAIT:
                error = LabError(Code.BUSY, f"Another process works in {self.folder}.", retry=Retry.LATER)
                return await self._fail("data", error)
            waited += 0.5
            if await self._wait(0.5):
                return -signal.SIGKILL
        mishap = world.mishap(self.job)
        done = node.disk.checkpoints.get(self.job, 0)
        for number, stage in enumerate(STAGES):
            results = {f"{stage}_number": number}
            if number < done:  # finished by an earlier process: only told again, a kill may have swallowed it
                await self.heard({"kind": "stage_done", "stage": stage, "seconds": 1.0, "results": results, "again": True})
                continue
            await self.heard({"kind": "stage_started", "stage": stage})
            if stage == "train" and (pace := world.request_of_job(self.job).pace):
                await self.heard({"kind": "progress", "stage": stage, "step": 1})
                if await self._wait(20 * pace, stoppable=True):
                    return -signal.SIGKILL
                await self.heard({"kind": "progress", "stage": stage, "step": 21})
            lasts = world.request_of_job(self.job).lasts if stage == "train" else 0
            if await self._wait(lasts + world.random.uniform(0.5, 8.0), stoppable=True):
                return -signal.SIGKILL
            if self._stopping.is_set():
                if await self._wait(world.random.uniform(0.0, 4.0)):  # to the end of the step, then save
                    return -signal.SIGKILL
                await self.heard({"kind": "stopped", "stage": stage})
                return 3
            if mishap is not None and mishap.stage <= number:
                if mishap.kind == "crash":
                    return -signal.SIGKILL
                retry = Retry(mishap.kind)
                return await self._fail(stage, LabError(Code.INTERNAL, f"The stage {stage} failed.", retry=retry))
            node.disk.checkpoints[self.job] = number + 1
            await self.heard({"kind": "stage_done", "stage": stage, "seconds": 1.0, "results": results})
        artefact = {"kind": "gguf", "uri": f"file:///{self.job}.gguf", "sha256": "0" * 64, "bytes": 5}
        if world.request_of_job(self.job).shared:
            node.disk.models[KEY] = Finished(
                job=self.job, artefacts=[Artefact.model_validate(artefact)], gates={}, results={}
            )
        await self.heard({"kind": "done", "artefacts": [artefact], "gates": {}, "results": {}})
        if await self._wait(world.random.uniform(0.0, 1.0)):
            return -signal.SIGKILL
        return 0

    async def _fail(self, stage: str, error: LabError) -> int:
        await self.heard({"kind": "failed", "stage": stage, "error": error.body().model_dump(mode="json")})
        return 1

    async def _wait(self, seconds: float, *, stoppable: bool = False) -> bool:
        """Work for so long, less when a stop is asked for, and never while stalled. Returns whether it was killed."""
        events = [self._killed.wait()] + ([self._stopping.wait()] if stoppable else [])
        tasks = [asyncio.ensure_future(event) for event in events]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not self._awake.is_set() and not self._killed.is_set():
            held = [asyncio.ensure_future(self._awake.wait()), tasks[0]]
            await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            held[0].cancel()
        for task in tasks:
            task.cancel()
        return self._killed.is_set()
