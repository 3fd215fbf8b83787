"""The orchestrator, a factory's card and a caller on a real broker."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import configs
from agents.gpu_orchestrator.agent import GpuOrchestratorAgent
from bus import BaseAgent, Client, Wiring
from configs import Settings
from protocol.machine import Card, Device, LeaseGrant, LeaseRelease, LeaseRenewal, LeaseRequest, ProviderStatus
from tests.conftest import PlainBroker

GIB = 2**30


class Factory(BaseAgent):
    """Has two slots, and nothing else."""

    role = "gguf_factory"

    def card(self) -> Card:
        device = Device(cores=4, memory_bytes=4 * GIB, disk_free_bytes=GIB)
        return super().card().model_copy(update={"slots": 2, "device": device})


def request(job: str) -> LeaseRequest:
    return LeaseRequest(job=job, reservation="r", priority=1, submitted_at=datetime.now(UTC), memory_bytes=GIB)


async def test_three_jobs_on_two_slots(broker: PlainBroker, tmp_path: Path) -> None:
    lab = configs.load(Settings.read())
    orchestrator = GpuOrchestratorAgent(Wiring("gpu_orchestrator-1", tmp_path, broker.address), lab)
    factory = Factory(Wiring("f1", tmp_path, broker.address))
    tasks = [asyncio.create_task(agent.run()) for agent in (orchestrator, factory)]
    try:
        async with Client(broker.address) as client, client.subscription("provider_status", provider="local") as statuses:
            first = await client.call("lease.request", request("a"), timeout=20)
            second = await client.call("lease.request", request("b"), timeout=20)
            assert isinstance(first, LeaseGrant) and isinstance(second, LeaseGrant)
            third = asyncio.create_task(client.call("lease.request", request("c"), timeout=20))
            async with asyncio.timeout(20):
                async for _, payload in statuses:
                    status = ProviderStatus.model_validate_json(payload)
                    if status.free == 0 and status.slots == 2:
                        break
            assert not third.done()
            renewal = LeaseRenewal(job="a", lease=first.lease, fence=first.fence)
            renewed = await client.call("lease.renew", renewal, timeout=20)
            assert isinstance(renewed, LeaseGrant) and renewed.expires_at > first.expires_at
            await client.call("lease.release", LeaseRelease(job="b", lease=second.lease), timeout=20)
            granted = await third
            assert isinstance(granted, LeaseGrant) and (granted.job, granted.machine) == ("c", "f1")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
