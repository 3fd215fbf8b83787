"""What is particular to Lambda: SSH keys, one launch per twelve seconds, cloud-init, error codes."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from agents.gpu_orchestrator.providers.lambda_labs import LambdaLabs
from agents.gpu_orchestrator.providers.provider import (
    AuthFailed,
    NoCapacity,
    Phase,
    Provider,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Unknown,
)
from protocol.machine import Listing
from tests.agents.gpu_orchestrator.providers.conftest import ENVIRONMENT, check, order
from tests.clouds.clock import VirtualClock
from tests.clouds.http import Inside, Response
from tests.clouds.lambda_cloud import LambdaCloud


async def one(provider: Provider) -> Listing:
    return min(await provider.listings(), key=lambda listing: listing.price_micros_per_hour or 0)


async def test_types_are_listed_by_region_with_what_the_description_tells() -> None:
    cloud = LambdaCloud()
    listings = {listing.id: listing for listing in await cloud.provider().listings()}
    large = listings["gpu_8x_v100@us-south-1"]
    assert (large.gpu, large.gpus, large.gpu_memory_bytes, large.price_micros_per_hour) == ("V100", 8, 16 * 2**30, 4_400_000)
    assert (large.cores, large.memory_bytes, large.disk_bytes) == (92, 448 * 2**30, 5900 * 2**30)
    assert {"gpu_1x_a10@us-west-1", "gpu_1x_a10@us-east-1"} < set(listings)


def test_the_worker_is_started_by_a_script_that_a_shell_reads_as_it_was_meant(tmp_path: Path) -> None:
    cloud = LambdaCloud()

    async def launch() -> None:
        provider = cloud.provider()
        await provider.launch(order(await one(provider)))

    asyncio.run(launch())
    (docker := tmp_path / "docker").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    docker.chmod(0o755)
    script = tmp_path / "user-data"
    script.write_text(cloud.exchanges[-1].request.body["user_data"])
    script.chmod(0o755)
    told = subprocess.run([script], env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, capture_output=True, check=True).stdout
    words = told.decode().rstrip("\0").split("\0")
    assert words[0] == "run" and words[-1] == "registry.example/meetara-worker:1" and "--gpus" in words
    assert [word for flag, word in itertools.pairwise(words) if flag == "--env"] == [
        f"{name}={value}" for name, value in sorted(ENVIRONMENT.items())
    ]


async def test_the_first_ssh_key_of_the_account_is_used_and_asked_for_once() -> None:
    cloud = LambdaCloud()
    provider = cloud.provider()
    listing = await one(provider)
    await provider.launch(order(listing, tag="meetara-1"))
    await provider.launch(order(listing, tag="meetara-2"))
    assert cloud.calls.count("keys") == 1
    named = LambdaLabs(SecretStr(str(cloud.key)), cloud.clock, url="http://x/api/v1", ssh_key="other", transport=Inside(cloud))
    with pytest.raises(Unknown, match="object-does-not-exist") as caught:
        await named.launch(order(listing))
    assert caught.value.sure
    check(cloud)


async def test_an_account_without_ssh_keys_is_told_before_anything_is_launched() -> None:
    cloud = LambdaCloud()
    cloud.ssh_keys = ()
    provider = cloud.provider()
    with pytest.raises(AuthFailed, match="no SSH key"):
        await provider.launch(order(await one(provider)))
    assert "launch" not in cloud.calls


async def test_a_second_launch_within_twelve_seconds_is_told_to_wait() -> None:
    clock = VirtualClock()
    cloud = LambdaCloud(clock)
    cloud.launch_gap_s = 12
    provider = cloud.provider()
    listing = await one(provider)
    await provider.launch(order(listing, tag="meetara-1"))
    with pytest.raises(RateLimited) as caught:
        await provider.launch(order(listing, tag="meetara-2"))
    assert caught.value.retry_after == 12 and len(cloud.instances) == 1
    clock.advance(12)
    await provider.launch(order(listing, tag="meetara-2"))
    check(cloud)


@pytest.mark.parametrize(
    ("status", "code", "error", "sure"),
    [(400, "instance-operations/launch/insufficient-capacity", NoCapacity, True), (400, "global/quota-exceeded", QuotaExceeded, True),
     (403, "global/account-inactive", AuthFailed, True), (403, "global/invalid-address", AuthFailed, True),
     (400, "global/invalid-parameters", Unknown, True), (400, "instance-operations/launch/file-system-in-wrong-region", Unknown, True),
     (500, "global/unknown", Unknown, False), (503, "instance-operations/launch/insufficient-capacity", Unknown, False),
     (400, "provider/internal-unavailable", Unknown, False), (429, "global/quota-exceeded", RateLimited, True)],
)  # fmt: skip
async def test_a_code_decides_where_the_vendor_refuses(status: int, code: str, error: type[ProviderError], sure: bool) -> None:
    cloud = LambdaCloud()
    provider = cloud.provider()
    listing = await one(provider)
    await provider.launch(order(listing))  # the SSH key is known from now on
    cloud.say(Response(status, {"error": {"code": code, "message": "m"}}))
    with pytest.raises(ProviderError) as caught:
        await provider.launch(order(listing))
    assert type(caught.value) is error and caught.value.sure is sure


async def test_an_instance_that_the_answer_leaves_out_was_not_terminated() -> None:
    cloud = LambdaCloud()
    provider = cloud.provider()
    instance = await provider.launch(order(await one(provider)))
    cloud.say(Response(200, {"data": {"terminated_instances": []}}))
    with pytest.raises(Unknown, match="did not take") as caught:
        await provider.terminate(instance.id)
    assert not caught.value.sure


async def test_a_404_without_the_code_is_not_the_absence_of_an_instance() -> None:
    cloud = LambdaCloud()
    provider = cloud.provider()
    for answer in (Response(404, kind="text/html", raw=b"<html>"), Response(404, {"error": {"code": "global/unknown", "message": "m"}})):
        cloud.say(answer)
        with pytest.raises(Unknown):
            await provider.status("i1")


@pytest.mark.parametrize(
    ("word", "phase"),
    [("booting", Phase.STARTING), ("active", Phase.RUNNING), ("unhealthy", Phase.RUNNING), ("terminating", Phase.STOPPING),
     ("preempted", Phase.STOPPING), ("terminated", Phase.GONE), ("hibernating", Phase.RUNNING)],
)  # fmt: skip
async def test_words_that_nobody_knows_are_running(word: str, phase: Phase) -> None:
    cloud = LambdaCloud()
    cloud.say(Response(200, {"data": {"id": "i1", "status": word}}))
    told = await cloud.provider().status("i1")
    assert told is not None and (told.phase, told.tag, told.price_micros_per_hour) == (phase, "", None)


async def test_two_instances_for_one_launch_are_doubtful() -> None:
    cloud = LambdaCloud()
    provider = cloud.provider()
    listing = await one(provider)
    await provider.launch(order(listing))
    cloud.say(Response(200, {"data": {"instance_ids": ["a", "b"]}}))
    with pytest.raises(Unknown) as caught:
        await provider.launch(order(listing))
    assert not caught.value.sure
