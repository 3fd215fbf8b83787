"""The people of the simulation: each sends one request with the real client, or as mosquitto_pub would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiomqtt
from pydantic import BaseModel

from bus.client import Client
from protocol.errors import Code, LabError
from protocol.job import JobQuery, TrainRequest, digest
from protocol.signature import submission
from protocol.topics import Topics
from tests.simulation import wire
from tests.simulation.plan import Request

if TYPE_CHECKING:
    from tests.simulation.world import Node, World

TRY_AGAIN = (Code.EXPIRED, Code.BUSY, Code.UNREACHABLE)
"""Errors after which a person sends the same request again."""


@dataclass
class Wish:
    """What one person asked for, and what came of it. `answer` None: nothing yet, or nothing is to come."""

    name: str
    job: str
    method: str
    params: BaseModel
    answer: BaseModel | LabError | None = None
    asked: bool = False
    published: bool = False
    nameless: bool = False
    calls: list[str] = field(default_factory=list)


def dataset(number: int) -> str:
    """The data set of a plan's request, by which its job is known where it has no id."""
    return f"/data/{number}.jsonl"


async def call(node: Node, wish: Wish, delay: float, id: str) -> None:
    """Ask until there is an answer."""
    await asyncio.sleep(delay)
    wish.asked = True
    while True:
        try:
            async with Client(node.wiring.broker, name=wish.name) as client:
                while wish.answer is None:
                    try:
                        wish.answer = await client.call(wish.method, wish.params, id=id)
                    except LabError as error:
                        if error.code not in TRY_AGAIN:
                            wish.answer = error
                        else:
                            await asyncio.sleep(1)
                return
        except LabError as error:
            if error.code is not Code.UNREACHABLE:
                raise
            await asyncio.sleep(1)


async def publish(node: Node, wish: Wish, delay: float, body: dict[str, Any]) -> None:
    """Publish once; again only while the broker has not acknowledged it, and then never without an id."""
    await asyncio.sleep(delay)
    while not node.world.ready():  # the lab's door for people is shut until then
        await asyncio.sleep(0.1)
    wish.asked = True
    topic = Topics().of("call", role="router", method=wish.method)
    while not wish.published:
        try:
            async with wire.connect(node.world, node, wish.name, durable=False) as connection:
                await connection.publish(topic, json.dumps(body).encode())
                wish.published = True
        except aiomqtt.MqttError:
            if "id" not in body:
                return
            await asyncio.sleep(1)


def wishes(world: World, number: int, request: Request) -> list[Wish]:
    """Start the people of one request."""
    params = TrainRequest(domain="sleep", dataset=dataset(number), priority=request.priority)
    if request.paid:
        sellers = [seller.vendor for seller in world.plan.sellers]
        limits = {"budget_usd": request.budget_usd, "deadline_hours": request.deadline_hours}
        params = params.model_copy(update={"providers": sellers, "untrusted_hosts": True, **limits})
        params.signature = world.key.sign(submission("lab", f"job-{number}", digest(params)))
    job = f"job-{number}"
    delay = request.at / 10
    made: list[Wish] = []

    def person(name: str, method: str, params: BaseModel) -> tuple[Node, Wish]:
        wish = Wish(f"{name}-{number}", job, method, params)
        made.append(wish)
        return world.person(wish.name), wish

    if request.how == "call":
        for copy in range(1 + request.again):
            node, wish = person(f"caller{copy}", "train.submit", params)
            node.begin(call(node, wish, delay + copy * 0.7, job))
    else:
        body = params.model_dump(mode="json", exclude_none=True)
        for copy in range(1 + (request.again if request.how == "publish" else 0)):
            node, wish = person(f"publisher{copy}", "train.submit", params)
            wish.nameless = request.how == "nameless"
            node.begin(publish(node, wish, delay + copy * 0.7, body if wish.nameless else {"id": job, **body}))
    if request.conflict and request.how != "nameless":
        other = params.model_copy(update={"dataset": f"{params.dataset}.other"})
        node, wish = person("rival", "train.submit", other)
        node.begin(call(node, wish, delay + 0.4, job))
    if request.cancel is not None and request.how != "nameless":
        node, wish = person("canceller", "job.cancel", JobQuery(job=job))
        node.begin(call(node, wish, delay + request.cancel / 10, f"cancel-{number}"))
    return made


async def intrude(node: Node, client: str, stays: float) -> None:
    """Connect under another client's name, take what comes, acknowledge nothing, and go."""
    with contextlib.suppress(aiomqtt.MqttError):
        async with wire.connect(node.world, node, client, durable=True):
            await asyncio.sleep(stays)
