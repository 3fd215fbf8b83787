"""The test clouds themselves: sockets, real processes, real time, meters."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from agents.gpu_orchestrator.providers import api
from agents.gpu_orchestrator.providers.provider import Order, Phase, Provider, ProviderError, Unknown
from agents.gpu_orchestrator.providers.registry import open_providers
from configs import accounts
from tests.clouds.clock import VirtualClock, real_time
from tests.clouds.cloud import Cloud, Instance
from tests.clouds.faults import Fault
from tests.clouds.lambda_cloud import LambdaCloud
from tests.clouds.meter import Meter
from tests.clouds.runpod_cloud import RunPodCloud
from tests.clouds.vast_cloud import VastCloud

WORKER = "import os, sys, signal; print(os.environ['TOKEN'], flush=True); signal.pause()"


@pytest.fixture(params=[LambdaCloud, RunPodCloud, VastCloud], ids=lambda kind: kind.vendor)
def kind(request: pytest.FixtureRequest) -> type[Cloud]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def launch(provider: Provider, tag: str = "meetara-lab-1") -> str:
    listings = [listing for listing in await provider.listings() if not listing.spot]
    listing = min(listings, key=lambda listing: listing.price_micros_per_hour or 0)
    environment = {"TOKEN": "t-1"}
    return (await provider.launch(Order("k", tag, listing, "image", environment, 10**10, 10**9))).id


async def test_another_process_finds_a_cloud_by_the_environment(
    kind: type[Cloud], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy for the world is not asked for loopback
    with kind(VirtualClock()) as cloud:
        found = open_providers(accounts.read(cloud.environment()))
        assert set(found) == {cloud.vendor}
        provider = found[cloud.vendor]
        id = await launch(provider)
        assert [instance.id for instance in await provider.list("meetara-lab-")] == [id] == list(cloud.instances)
        await provider.terminate(id)
        await provider.close()
    assert "httpcore2" in caplog.text and str(cloud.key) not in caplog.text, "a key in the client's own log"


async def test_faults_are_real_on_a_socket(kind: type[Cloud], monkeypatch: pytest.MonkeyPatch) -> None:
    with kind(VirtualClock()) as cloud:
        provider = open_providers(accounts.read(cloud.environment()))[cloud.vendor]
        for number, fault in enumerate((Fault.LOST, Fault.MALFORMED, Fault.HTML, Fault.ERROR_AFTER), start=1):
            cloud.stock = {item.id: item for item in kind.usual_stock()}
            cloud.fail("launch", fault)
            with pytest.raises(Unknown) as caught:
                await launch(provider, f"meetara-{number}")
            assert not caught.value.sure and len(cloud.instances) == number
        with monkeypatch.context() as patch:
            patch.setattr(api, "TIMEOUT_S", 0.3)
            cloud.fail("list", Fault.HANG)
            with pytest.raises(Unknown, match=r"no answer within 0\.3 s"):
                await provider.list("meetara-")
        assert len(await provider.list("meetara-")) == 4
        cloud.unreachable()
        with pytest.raises(Unknown):
            await provider.list("meetara-")
    with pytest.raises(Unknown) as caught:  # nobody listens any more
        await provider.list("meetara-")
    assert caught.value.sure
    await provider.close()


async def test_an_instance_is_a_process_that_ends_with_it(kind: type[Cloud], workers: list[subprocess.Popen[bytes]]) -> None:
    """Termination is SIGTERM, and SIGKILL for what does not listen; being taken away is SIGKILL at once."""

    def boot(instance: Instance, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=subprocess.PIPE)
        workers.append(process)
        return process

    def ready(process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None and process.stdout.readline() == b"t-1\n"

    clock = VirtualClock()
    cloud = kind(clock, boot=boot, stock=kind.usual_stock()[:1])
    provider = cloud.provider()
    first = await launch(provider, "meetara-1")
    assert not workers
    clock.advance(cloud.boot_seconds)
    ready(workers[0])
    await provider.terminate(first)
    assert workers[0].wait() == -signal.SIGTERM
    clock.advance(cloud.end_seconds)
    second = await launch(provider, "meetara-2")
    clock.advance(cloud.boot_seconds)
    ready(workers[1])
    cloud.preempt(second)
    assert workers[1].wait() == -signal.SIGKILL
    told = await provider.status(second)
    assert told is not None and told.phase is Phase.STOPPING


def test_a_listening_cloud_boots_in_real_time_without_being_asked() -> None:
    booted = threading.Event()
    with VastCloud(real_time, boot=lambda instance, environment: booted.set(), boot_seconds=0.05) as cloud:
        provider = open_providers(accounts.read(cloud.environment()))["vast"]
        asyncio.run(launch(provider))
        assert booted.wait(10)


def test_leaving_a_cloud_kills_what_it_booted(workers: list[subprocess.Popen[bytes]]) -> None:
    def boot(instance: Instance, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        workers.append(subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=subprocess.PIPE))
        return workers[-1]

    clock = VirtualClock()
    with VastCloud(clock, boot=boot) as cloud:
        asyncio.run(launch(cloud.provider()))
        clock.advance(cloud.boot_seconds)
    assert workers[0].wait() == -signal.SIGKILL


async def test_capacity_comes_back_when_an_instance_ends(kind: type[Cloud]) -> None:
    clock = VirtualClock()
    cloud = kind(clock, stock=kind.usual_stock()[:1])
    (stock,) = cloud.stock.values()
    stock.free = 1
    provider = cloud.provider()
    id = await launch(provider)
    assert await provider.listings() == []
    await provider.terminate(id)
    await provider.terminate(id)
    assert stock.free == 1 and len(await provider.listings()) >= 1


async def test_a_cloud_limits_the_rate_of_calls(kind: type[Cloud]) -> None:
    clock = VirtualClock()
    cloud = kind(clock, rate=1)
    provider = cloud.provider()
    await provider.list("m")
    with pytest.raises(ProviderError):
        await provider.list("m")
    clock.advance(1)
    await provider.list("m")


async def test_faults_can_come_at_random_and_end_when_it_heals(kind: type[Cloud]) -> None:
    cloud = kind(VirtualClock())
    cloud.chance = lambda call: Fault.ERROR if call == "list" else None
    provider = cloud.provider()
    with pytest.raises(Unknown):
        await provider.list("m")
    await provider.listings()
    cloud.heal()
    assert await provider.list("m") == []


def test_a_meter_counts_begun_seconds_and_rounds_once() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    meter = Meter()
    assert meter.total(begin) == 0
    meter.set(begin, 1_000_000)
    assert meter.total(begin) == 0
    assert meter.total(begin + timedelta(seconds=0.1)) == 278  # one second of a dollar per hour is 277.8 micro-dollars
    meter.set(begin + timedelta(hours=1), 100)
    meter.set(begin + timedelta(hours=2), 0)
    assert meter.total(begin + timedelta(days=9)) == 1_000_100


def test_a_cloud_answers_nobody_without_its_key(kind: type[Cloud]) -> None:
    with kind(VirtualClock()) as cloud, httpx2.Client(trust_env=False, verify=False) as client:
        url = next(value for name, value in cloud.environment().items() if name.endswith("_URL"))
        path = {"lambda": "/instances", "runpod": "/v2/pods", "vast": "/api/v1/instances"}[cloud.vendor]
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic dGVzdDo="}):
            assert client.get(url + path, headers=headers).status_code == 401
        assert client.get(f"{url}{path}?api_key={cloud.key}").status_code == 401


def test_the_project_holds_no_vendors_document() -> None:
    project = Path(__file__).resolve().parents[2]
    assert not [path for path in (project / "tests" / "clouds").iterdir() if path.suffix in (".yaml", ".json")]
