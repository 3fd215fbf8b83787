"""The router between a caller and a conductor on a real broker."""

import asyncio
from pathlib import Path

import pytest

import configs
from agents.router.agent import RouterAgent
from bus import BaseAgent, Client, Transaction, Wiring
from configs import Settings
from protocol import Code, LabError, MCPMessage, State, TrainRequest
from protocol.job import RoutedRequest, Submitted
from protocol.voice import TextQuery, TextRoute
from tests.conftest import PlainBroker


class Conductor(BaseAgent):
    """Answers a routed request at once; refuses the domain music."""

    role = "conductor"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["train.route"] = self.take
        self.taken: list[str] = []

    def take(self, message: MCPMessage, tx: Transaction) -> Submitted:
        routed: RoutedRequest = self.params(message)
        self.taken.append(routed.job)
        route = routed.route
        if route.domain == "music":
            raise LabError(Code.BUDGET, "the job needs $9.00.", advice="Ask for less.", needed_micros=9_000_000)
        return Submitted(job=routed.job, state=State.RESERVED, domain=route.domain, tier=route.tier, base=route.base)


async def test_the_conductors_answer_goes_back_to_the_caller(broker: PlainBroker, tmp_path: Path) -> None:
    lab = configs.load(Settings.read(default_tier="starter"))
    router = RouterAgent(Wiring("router-1", tmp_path, broker.address), lab)
    conductor = Conductor(Wiring("conductor-1", tmp_path, broker.address))
    tasks = [asyncio.create_task(agent.run()) for agent in (router, conductor)]
    try:
        async with Client(broker.address) as client:
            sleep = TrainRequest(domain="sleep", dataset="/x.jsonl")
            for _ in range(2):
                reply = await client.call("train.submit", sleep, timeout=20, id="night-1")
                assert isinstance(reply, Submitted)
                assert (reply.job, reply.state, reply.tier) == ("night-1", State.RESERVED, "starter")
            assert conductor.taken == ["night-1"]
            with pytest.raises(LabError) as caught:
                await client.call("train.submit", TrainRequest(domain="music", dataset="/x"), timeout=20)
            assert (caught.value.code, caught.value.data["needed_micros"]) == (Code.BUDGET, 9_000_000)
            night = TextQuery(text="I lie awake at night and cannot fall asleep")
            found = await client.call("route.text", night, timeout=20)
            assert isinstance(found, TextRoute) and found.primary_domain == "sleep" and found.question is None
            assert next(match.domain for match in found.nearest) == "sleep" and len(found.nearest) == 3
            with pytest.raises(LabError) as caught:
                await client.call("train.submit", TrainRequest(text="hm", dataset="/x"), timeout=20)
            assert (caught.value.code, caught.value.data["field"]) == (Code.UNKNOWN_DOMAIN, "text")
            assert len(caught.value.data["nearest"]) == 3 and "What is it about" in str(caught.value)
            with pytest.raises(LabError) as caught:
                await client.call("train.submit", TrainRequest(domain="slep", dataset="/x"), timeout=20)
            assert (caught.value.code, caught.value.data["field"]) == (Code.UNKNOWN_DOMAIN, "domain")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
