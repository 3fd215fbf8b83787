"""The callees of `benchmarks.calls` as processes: `python -m benchmarks.callee agent|plain|tuned PORT FOLDER`.

`agent` is an agent of the lab that answers a training request from its durable inbox. `plain` is what one writes with
aiomqtt alone: it answers each request to its response topic, at QoS 1, up to 32 of them at a time, and keeps nothing.
`tuned` is the same with TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.wire import quiet
from bus import BaseAgent, BrokerAddress, Transaction, Wiring
from protocol import MCPMessage, State, TrainRequest
from protocol.job import Submitted

TUNED = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
"""Socket options of the tuned peer: without this its small packets wait up to 40 ms for the acknowledgement of the last one."""
ANSWER = Submitted(job="j", state=State.RESERVED, domain="sleep", tier="starter", base="starter", message="watch it")
IN_FLIGHT = 32
"""Replies that the plain callee has under way: as many as the agent's session and the lab's broker allow."""


class Callee(BaseAgent):
    """Answers at once, so that only the bus is measured."""

    role = "router"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["train.submit"] = self.submit

    def submit(self, message: MCPMessage, tx: Transaction) -> Submitted:
        request: TrainRequest = self.params(message)
        return ANSWER.model_copy(update={"job": message.id, "domain": request.domain})

    async def started(self) -> None:
        print("ready", flush=True)


async def serve_plainly(kind: str, port: int) -> None:
    """Answer requests until the process is ended."""
    limit = asyncio.Semaphore(IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()
    options = TUNED if kind == "tuned" else ()
    async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, socket_options=options) as client:
        client.pending_calls_threshold = 2 * IN_FLIGHT
        await client.subscribe(f"{kind}/call", qos=1)
        print("ready", flush=True)

        async def answer(message: aiomqtt.Message) -> None:
            assert message.properties is not None
            request = json.loads(message.payload)
            result = {**ANSWER.model_dump(mode="json"), "job": request["id"], "domain": request["params"]["domain"]}
            reply = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})
            properties = Properties(PacketTypes.PUBLISH)
            properties.CorrelationData = message.properties.CorrelationData  # type: ignore[attr-defined]
            await client.publish(message.properties.ResponseTopic, reply, qos=1, properties=properties)  # type: ignore[attr-defined]
            limit.release()

        async for message in client.messages:
            await limit.acquire()
            task = asyncio.create_task(answer(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def main() -> None:
    kind, port, folder = sys.argv[1:]
    quiet()
    if kind in ("plain", "tuned"):
        asyncio.run(serve_plainly(kind, int(port)))
    else:
        wiring = Wiring("router-1", Path(folder), BrokerAddress("127.0.0.1", int(port)))

        async def serve() -> None:
            await Callee(wiring).run()

        asyncio.run(serve())


if __name__ == "__main__":
    main()
