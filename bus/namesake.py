"""Another process under an agent's name: who has lost the connection looks whether somebody else is there before it
connects again.

A broker gives a session to whoever comes last with its name. Mosquitto 2.0 closes the displaced connection without a
reason, so two processes that simply reconnect would displace each other for ever
(docs/decisions/0008-session-take-over.md).
"""

from __future__ import annotations

import asyncio
import contextlib

from pydantic import ValidationError

from bus.process import Wiring
from bus.session import Session, taken_over
from protocol.ids import uuid7
from protocol.machine import Presence

RETAINED_SECONDS = 0.5
"""A retained message follows its subscription at once; after so long there is none (the broker has forgotten it)."""


async def refuse_displacement(wiring: Wiring, instance: str, presence_topic: str) -> bool:
    """Return if the last presence under the agent's name is this store's own, or says that nobody is there.

    Args:
        wiring: the agent's.
        instance: of the agent's store. Processes on one store follow each other, they never meet: a lock sees to that.
        presence_topic: where the agent is announced.

    Returns:
        Whether there is a presence. Without one the broker has forgotten it, and then everything that it retained.

    Raises:
        LabError: CONFLICT, another process has taken the agent's place.
        aiomqtt.MqttError: the broker is not there.
    """
    async with Session.connect(wiring.broker, f"{wiring.lab}-{wiring.agent}-{uuid7()}", durable=False) as session:
        await session.subscribe(presence_topic)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETAINED_SECONDS):
                async for incoming in session:
                    session.ack(incoming)
                    with contextlib.suppress(ValidationError):  # of another version, or somebody's joke
                        last = Presence.model_validate_json(incoming.payload)
                        if last.online and last.instance not in (None, instance):
                            raise taken_over(wiring.broker, wiring.agent)
                    return True
        return False
