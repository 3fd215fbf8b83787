"""What a lab tells by itself, as typed items: jobs, progress, agents, providers, money, and whether it can be heard at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from bus import Client
from protocol import JobSnapshot, LabError, Progress
from protocol.job import Empty
from protocol.machine import Card, Presence, ProviderStatus
from protocol.money import BudgetAlert, BudgetReport

LEDGER_PAUSE = 2.0
"""Seconds between two questions for the ledger: it is asked when something has changed, never in a stream."""
LEDGER_WAIT = 5.0
"""Seconds that the cost monitor has to answer; it answers in milliseconds, and is asked again after the next change."""


@dataclass(frozen=True)
class Link:
    """The connection to the broker was lost, or is back; what is retained then comes again."""

    up: bool


News = JobSnapshot | Progress | Card | Presence | ProviderStatus | BudgetAlert | BudgetReport | Link

JOB_TOPICS: Mapping[str, type[BaseModel]] = {"job_state": JobSnapshot, "job_progress": Progress}
LAB_TOPICS: Mapping[str, type[BaseModel]] = {
    **JOB_TOPICS, "card": Card, "presence": Presence, "provider_status": ProviderStatus, "cost_alert": BudgetAlert,
}  # fmt: skip


@asynccontextmanager
async def heard(
    client: Client, topics: Mapping[str, type[BaseModel]], queue: asyncio.Queue[BaseModel], **levels: str
) -> AsyncIterator[None]:
    """Put what comes on rows of the topic table into a queue; what is retained comes first, what is not understood never.

    Args:
        client: a connected client.
        topics: row name to the model of its payload.
        levels: the topics' levels; those not given are `+`.
    """
    everything = {"job": "+", "role": "+", "agent": "+", "provider": "+", **levels}

    async def forward(messages: AsyncIterator[tuple[str, bytes]], model: type[BaseModel]) -> None:
        async for _, payload in messages:
            item = parsed(model, payload)
            if item is not None:
                queue.put_nowait(item)

    async with AsyncExitStack() as stack:
        tasks = []
        for name, model in topics.items():
            messages = await stack.enter_async_context(client.subscription(name, **everything))
            tasks.append(asyncio.create_task(forward(messages, model)))
        try:
            yield
        finally:
            await _ended(tasks)


async def news(client: Client) -> AsyncGenerator[News, None]:
    """Yield everything that changes in the lab, without end; what is retained comes first.

    The ledger is asked for at the start, after each change of a job's state and after each alert.
    """
    queue: asyncio.Queue[News] = asyncio.Queue()
    changed = asyncio.Event()
    changed.set()

    async def listen_to_the_link() -> None:
        while True:
            await client.until(online=False)
            queue.put_nowait(Link(up=False))
            await client.until(online=True)
            queue.put_nowait(Link(up=True))
            changed.set()

    async def listen_to_the_topics() -> None:
        # beside the link: subscribing waits for the connection, and that it is lost must be told meanwhile
        async with heard(client, LAB_TOPICS, queue):  # type: ignore[arg-type]
            await asyncio.Event().wait()

    async def ask_for_the_ledger() -> None:
        while True:
            await changed.wait()
            changed.clear()
            with suppress(LabError):  # the cost monitor is away; the next change asks again
                report: BudgetReport = await client.call("budget.report", Empty(), timeout=LEDGER_WAIT)
                queue.put_nowait(report)
            await asyncio.sleep(LEDGER_PAUSE)

    states: dict[str, object] = {}
    listeners = [
        asyncio.create_task(work()) for work in (listen_to_the_link, listen_to_the_topics, ask_for_the_ledger)
    ]  # fmt: skip
    coming = asyncio.create_task(queue.get())
    try:
        while True:
            done, _ = await asyncio.wait([coming, *listeners], return_when=asyncio.FIRST_COMPLETED)
            for listener in done - {coming}:
                listener.result()  # raises what ended it
            item = coming.result()
            coming = asyncio.create_task(queue.get())
            yield item
            if isinstance(item, JobSnapshot):
                if states.get(item.job) != item.state:
                    changed.set()
                states[item.job] = item.state
            elif isinstance(item, BudgetAlert):
                changed.set()
    finally:
        await _ended([coming, *listeners])


def parsed(model: type[BaseModel], payload: bytes) -> BaseModel | None:
    """Return a payload as its model; None where it was cleared (empty) or is of another version."""
    try:
        return model.model_validate_json(payload)
    except ValidationError:
        return None


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
