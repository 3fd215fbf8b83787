"""kill -9 of each part, once in training and once later: the job goes on and ends once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import pytest

from protocol import Progress
from protocol.job import Stage, State
from tests.integration.lab import (
    LONG,
    Ground,
    RunningLab,
    done_once,
    events_of,
    ledger,
    listening,
    running,
    settled,
    submit,
    trained_to,
)

pytestmark = pytest.mark.timeout(1500)

LATER = {
    "conductor": Stage.CONVERT, "gguf_factory": Stage.CONVERT, "cost_monitor": Stage.VALIDATE, "broker": Stage.QUANTISE,
}  # fmt: skip
"""Whom to kill, and in which stage after training."""


async def test_a_killed_part_costs_no_work_and_no_money_twice(ground: Ground, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home, ground.configs, MEETARA_LOCAL_USD_PER_HOUR="0.5") as lab:
        for role, stage in LATER.items():
            await kill_twice(lab, ground, role, stage)
    entries = sorted(ledger(home), key=lambda entry: (entry["job"], entry["number"]))
    by_job = {job: [entry["kind"] for entry in some] for job, some in groupby(entries, lambda entry: entry["job"])}
    assert by_job == {f"kill-{role}": ["reserve", "settle"] for role in LATER}
    for job in by_job:
        reserved, spent = (entry["amount_micros"] for entry in entries if entry["job"] == job)
        assert 0 < spent <= reserved


async def kill_twice(lab: RunningLab, ground: Ground, role: str, later: Stage) -> None:
    job = f"kill-{role}"
    async with lab.client() as client, listening(client, job) as ears:
        await submit(client, job, ground.request(LONG))
        await ears.step(2)
        lab.kill(role)
        killed = datetime.now(UTC)
        saved = trained_to(lab.folder(job))
        assert 1 <= saved < LONG["max_steps"], "killed while it trained"
        await ears.stage(later)
        lab.kill(role)
        final = await ears.end(client)
        assert final.state is State.DONE, f"{role}: {final.reason}"
        assert final.attempt == 1, "the lease outlived both kills"
        done_once(await events_of(client, job))
        after = [item for item in ears.all(Progress) if item.stage is Stage.TRAIN and item.step and item.at > killed]
        assert all(item.step is not None and item.step >= saved for item in after), "no step was trained again"
        assert after or role == "broker", "the training went on"
        losses = json.loads((lab.folder(job) / "train" / "curve.json").read_text())["loss"]
        assert len(losses) == LONG["max_steps"]
        await settled(client, job)
