"""SIGTERM while a job trains: it is checkpointed, nothing is left behind, and the next `up` goes on with it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from protocol import Progress
from protocol.job import Stage, State
from tests.integration.lab import LONG, Ground, done_once, events_of, listening, running, submit, trained_to

pytestmark = pytest.mark.timeout(900)

JOB = "over-night"


async def test_a_lab_that_goes_down_goes_on_at_the_next_up(ground: Ground, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home, ground.configs) as lab:
        async with lab.client() as client, listening(client, JOB) as ears:
            await submit(client, JOB, ground.request(LONG))
            await ears.step(2)
    saved = trained_to(home / "jobs" / JOB)
    assert 2 <= saved < LONG["max_steps"]
    assert list((home / "run").glob("up.*")) == [], "the home is free"

    again = datetime.now(UTC)
    with running(home, ground.configs) as lab:
        async with lab.client() as client, listening(client, JOB) as ears:
            final = await ears.end()
            assert final.state is State.DONE, final.reason
            events = await events_of(client, JOB)
            done_once(events)
            interruptions = [event.data["counts"] for event in events if event.type == "interrupted"]
            assert interruptions == [False], "going down is no failure"
            steps = [
                item.step for item in ears.all(Progress)
                if item.stage is Stage.TRAIN and item.step and item.at > again
            ]  # fmt: skip
            assert steps and min(steps) > saved, "it went on from the checkpoint"
    losses = json.loads((home / "jobs" / JOB / "train" / "curve.json").read_text())["loss"]
    assert len(losses) == LONG["max_steps"]
