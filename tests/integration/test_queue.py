"""Three jobs at once on one slot: one trains at a time, the urgent one before the older, each is watched apart."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from protocol import JobSnapshot, Progress
from protocol.job import JobEvent, State
from tests.integration.lab import SHORT, Ground, RunningLab, done_once, events_of, listening, submit

pytestmark = pytest.mark.timeout(900)

PRIORITIES = {"queue-a": 1, "queue-b": 1, "queue-c": 3}
BUSY = {State.TRAINING, State.EXPORTING, State.VALIDATING}


async def test_three_jobs_share_one_slot_by_priority_and_time(lab: RunningLab, ground: Ground) -> None:
    async with lab.client() as client, AsyncExitStack() as stack:
        ears = {job: await stack.enter_async_context(listening(client, job)) for job in PRIORITIES}
        every = await stack.enter_async_context(listening(client, "+"))
        await asyncio.gather(
            *(submit(client, job, ground.request(SHORT, priority=urgency)) for job, urgency in PRIORITIES.items())
        )
        for job, one in ears.items():
            final = await one.end()
            assert final.state is State.DONE, f"{job}: {final.reason}"
            assert {item.job for item in one.heard} == {job}, "watched apart"
            assert any(item.step for item in one.all(Progress)), "each training was seen"
        events = {job: await events_of(client, job) for job in PRIORITIES}
    for found in events.values():
        done_once(found)
    check_one_at_a_time([item for item in every.all(JobSnapshot) if item.job in PRIORITIES])
    check_order(events)


def check_one_at_a_time(snapshots: list[JobSnapshot]) -> None:
    now: dict[str, State] = {}
    most = 0
    for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.at):
        now[snapshot.job] = snapshot.state
        most = max(most, sum(state in BUSY for state in now.values()))
    assert most == 1


def check_order(events: dict[str, list[JobEvent]]) -> None:
    def at(job: str, kind: str) -> float:
        [found] = [event.at.timestamp() for event in events[job] if event.type == kind]
        return found

    order = sorted(PRIORITIES, key=lambda job: at(job, "leased"))
    for earlier, later in pairwise(order):
        assert at(earlier, "done") <= at(later, "leased"), "the slot was free"
    first, *waiting = order
    assert all(at(job, "provisioning") < at(first, "done") for job in waiting), "both waited for the first"
    assert waiting == sorted(waiting, key=lambda job: (-PRIORITIES[job], at(job, "submitted")))
