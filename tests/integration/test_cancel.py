"""Cancelling stops a job within five seconds, gives back money and slot, and keeps what is finished."""

from __future__ import annotations

import time

import pytest

from bus import Client
from protocol.job import JobQuery, Stage, State
from tests.integration.lab import (
    LONG,
    SHORT,
    Ground,
    RunningLab,
    events_of,
    listening,
    processes_of,
    settled,
    submit,
    trained_to,
)

pytestmark = pytest.mark.timeout(900)

WITHIN = 5.0
"""Seconds that the issue allows a cancel to take."""


async def test_cancelled_while_training_and_while_converting(lab: RunningLab, ground: Ground) -> None:
    async with lab.client() as client:
        async with listening(client, "cancel-train") as ears:
            await submit(client, "cancel-train", ground.request(LONG))
            await ears.step(2)
            await cancel(lab, client, "cancel-train")
            folder = lab.folder("cancel-train")
            assert (folder / "data" / "manifest.json").exists() and trained_to(folder) >= 2
            assert not (folder / "train" / "manifest.json").exists()
            kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

        async with listening(client, "cancel-convert") as ears:
            await submit(client, "cancel-convert", ground.request(SHORT))
            await ears.stage(Stage.CONVERT)
            await cancel(lab, client, "cancel-convert")
            folder = lab.folder("cancel-convert")
            for stage in (Stage.DATA, Stage.TRAIN, Stage.MERGE):
                assert (folder / stage / "manifest.json").exists()
            assert not (folder / "quantise").exists()

        async with listening(client, "cancel-next") as ears:
            await submit(client, "cancel-next", ground.request(SHORT))
            await ears.stage(Stage.PLAN, Stage.DATA)  # it has the slot
            await cancel(lab, client, "cancel-next")
        assert {path: path.stat().st_mtime_ns for path in lab.folder("cancel-train").rglob("*")} == kept


async def cancel(lab: RunningLab, client: Client, job: str) -> None:
    start = time.monotonic()
    snapshot = await client.call("job.cancel", JobQuery(job=job))
    took = time.monotonic() - start
    assert snapshot.state is State.CANCELLED and snapshot.reason == "cancelled by the user"
    assert took < WITHIN
    assert [p.cmdline() for p in processes_of(lab.home) if any(f"jobs/{job}" in word for word in p.cmdline())] == []
    report = await settled(client, job)
    assert job not in {item.job for item in report.open_reservations}
    again = await client.call("job.cancel", JobQuery(job=job))
    assert again == snapshot, "cancelling twice changes nothing"
    endings = [event.type for event in await events_of(client, job) if event.type in ("cancelled", "done", "failed")]
    assert endings == ["cancelled"]
