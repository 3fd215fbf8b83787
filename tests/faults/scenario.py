"""A scenario of the fault matrix: a name, the lab that it needs, what is done to it; and the requests that must survive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random

from bus import Client
from protocol import JobSnapshot, LabError, TrainRequest
from protocol.job import EventsQuery, JobEvents, Stage, State, Submitted
from tests.faults.cluster import LOOK, Cluster, reading
from tests.faults.verdict import Evidence, Tally, judge
from tests.integration.lab import LIMIT, SHORT, Ears, Ground, listening, settled, submit

STAGES = tuple(Stage)
MIDDLE: dict[str, float | int | str | bool] = {"max_steps": 12, "batch_size": 4, "sequence_length": 256}
"""Parameters of a job that trains for some seconds: long enough to be hit, short enough for many."""
USUAL_SECONDS = {
    Stage.PLAN: 1.0, Stage.DATA: 0.5, Stage.TRAIN: 4.0, Stage.MERGE: 0.3, Stage.CONVERT: 3.0, Stage.QUANTISE: 0.5,
    Stage.VALIDATE: 2.0, Stage.PUBLISH: 0.1,
}  # fmt: skip
"""How long the stages of such a job take on two quiet cores; finished jobs correct it."""


class Place(StrEnum):
    """Which lab a scenario is run on."""

    SHARED = "the lab of all scenarios that leave it whole"
    OWN = "none: it makes its own"


@dataclass(frozen=True)
class Scenario:
    """One row of the matrix."""

    name: str
    does: str
    run: Callable[[Arena], Awaitable[None]]
    place: Place = Place.SHARED
    needs: Callable[[], str | None] = lambda: None
    """Why it cannot be run here; None where it can."""


@dataclass
class Request:
    """An accepted request and what was heard of its job."""

    job: str
    request: TrainRequest
    ears: Ears
    replies: list[Submitted]


@dataclass
class Arena:
    """What a scenario works with: the ground, a lab (where its place is SHARED), seeded randomness, and the counts."""

    ground: Ground
    folder: Path
    random: Random
    tally: Tally = field(default_factory=Tally)
    lab: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        assert self.lab is not None
        return self.lab

    @asynccontextmanager
    async def on(self, lab: Cluster) -> AsyncIterator[Arena]:
        """Be in another lab for a while."""
        before, self.lab = self.lab, lab
        try:
            yield self
        finally:
            self.lab = before

    @asynccontextmanager
    async def accepted(
        self, client: Client, what: str, parameters: dict[str, float | int | str | bool] | None = None, **fields: object
    ) -> AsyncIterator[Request]:
        """Submit a request, wait for the reply, and listen to the job; a request without a reply is counted as lost."""
        job = self.cluster.name(what)
        request = self.ground.request(parameters or SHORT, **fields)
        async with listening(client, job) as ears:
            one = Request(job, request, ears, [])
            one.replies.append(await submit(client, job, request))
            yield one

    async def finish(self, client: Client, one: Request, *, ending: State | None = State.DONE) -> JobSnapshot | None:
        """Wait for a job's end, gather the evidence, count what is wrong; returns the final snapshot."""
        final: JobSnapshot | None = None
        try:
            async with asyncio.timeout(LIMIT):
                final = await one.ears.end(client)
                await settled(client, one.job)
        except TimeoutError:
            pass  # judged below as stuck, or as an open reservation
        found: JobEvents = await client.call("job.events", EventsQuery(job=one.job), timeout=LIMIT)
        try:
            one.replies.append(await submit(client, one.job, one.request))
        except LabError as error:
            self.tally.count("doubled", f"{one.job}: the same request again got {error}")
        evidence = Evidence(
            one.job, found.events, final, self.ledger(one.job), self.stored(one.job), one.replies
        )
        self.tally += judge(evidence)
        if final is not None:
            self.tally.expect(ending in (None, final.state), f"{one.job} is {final.state.value}: {final.reason}")
            self.learn(one.job)
        return final

    def ledger(self, job: str) -> list[str]:
        """Return the kinds of a job's entries in the ledger."""
        with reading(self.cluster.home, "cost_monitor-1") as store:
            return [row["kind"] for row in store.execute("SELECT kind FROM entries WHERE job = ? ORDER BY number", (job,))]

    def stored(self, job: str) -> list[str]:
        """Return the model files that the store has of a job."""
        manifests = [json.loads(path.read_text()) for path in (self.cluster.home / "artefacts").glob("*/manifest*.json")]
        names = [one["file"]["sha256"] + "/" + one["file"]["name"] for one in manifests if one["job"] == job]
        return [name for name in names if (self.cluster.home / "artefacts" / name).is_file()]

    async def in_stage(self, job: str, stage: Stage) -> Stage:
        """Return when a job is in a stage (or beyond it), at a random moment within its usual time; tells where it is."""
        folder = self.cluster.lab.folder(job)
        async with asyncio.timeout(LIMIT):
            while not any((folder / later).exists() for later in STAGES[STAGES.index(stage) :]):
                await asyncio.sleep(LOOK)
        usual = self.cluster.seconds.get(stage.value, USUAL_SECONDS[stage])
        await asyncio.sleep(self.random.uniform(0, usual))
        return [later for later in STAGES if (folder / later).exists()][-1]

    def learn(self, job: str) -> None:
        """Remember how long each stage took here."""
        for path in self.cluster.lab.folder(job).glob("*/manifest.json"):
            manifest = json.loads(path.read_text())
            self.cluster.seconds[manifest["stage"]] = manifest["seconds"]


MATRIX: dict[str, Scenario] = {}
"""All scenarios by name."""


def scenario(
    name: str, does: str, *, place: Place = Place.SHARED, needs: Callable[[], str | None] = lambda: None
) -> Callable[[Callable[[Arena], Awaitable[None]]], Callable[[Arena], Awaitable[None]]]:
    """Put a function into the matrix."""

    def put(run: Callable[[Arena], Awaitable[None]]) -> Callable[[Arena], Awaitable[None]]:
        assert name not in MATRIX
        MATRIX[name] = Scenario(name, does, run, place, needs)
        return run

    return put
