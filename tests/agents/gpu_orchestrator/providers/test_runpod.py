"""What is particular to RunPod: two clouds, two APIs, refusals without codes."""

from __future__ import annotations

import pytest

from agents.gpu_orchestrator.providers.provider import NoCapacity, Phase, ProviderError, QuotaExceeded, Unknown
from tests.agents.gpu_orchestrator.providers.conftest import ENVIRONMENT, check, order
from tests.clouds.clock import VirtualClock
from tests.clouds.http import Response
from tests.clouds.runpod_cloud import RunPodCloud


async def test_both_clouds_are_listed_with_their_data_centres() -> None:
    cloud = RunPodCloud()
    listings = {listing.id: listing for listing in await cloud.provider().listings()}
    assert set(listings) == {
        "NVIDIA L4@US-KS-2/secure", "NVIDIA L4@EU-RO-1/secure", "NVIDIA A100 80GB PCIe@US-KS-2/secure",
        "NVIDIA GeForce RTX 4090@US-TX-3/community",
    }  # fmt: skip
    assert not listings["NVIDIA GeForce RTX 4090@US-TX-3/community"].secure
    assert {listing.disk_micros_per_gb_hour for listing in listings.values()} == {139}  # $0.10 per GB and month
    check(cloud)


async def test_a_launch_is_in_the_data_centre_and_cloud_that_were_listed() -> None:
    cloud = RunPodCloud()
    runpod = cloud.provider()
    for listing in await runpod.listings():
        instance = await runpod.launch(order(listing, tag=f"meetara-lab-{listing.region}-{listing.gpu}"))
        assert (instance.region, instance.gpu, instance.price_micros_per_hour) == (
            listing.region, listing.gpu, listing.price_micros_per_hour,
        )  # fmt: skip
        rented = cloud.instances[instance.id]
        assert (rented.stock.secure, rented.disk_gb, rented.environment) == (listing.secure, 40, ENVIRONMENT)
    check(cloud)


async def test_a_spot_pod_is_launched_by_the_old_api_and_seen_by_the_new_one() -> None:
    clock = VirtualClock()
    cloud = RunPodCloud(clock)
    runpod = cloud.provider()
    demand = next(listing for listing in await runpod.listings() if listing.id == "NVIDIA L4@US-KS-2/secure")
    spot = demand.model_copy(update={"spot": True, "price_micros_per_hour": 220_000, "source": "catalogue"})
    instance = await runpod.launch(order(spot))
    assert instance.price_micros_per_hour == 220_000 and cloud.instances[instance.id].bid
    clock.advance(cloud.boot_seconds)
    assert [found.phase for found in await runpod.list("meetara-lab-")] == [Phase.RUNNING]
    cloud.preempt(instance.id)
    told = await runpod.status(instance.id)
    assert told is not None and told.phase is Phase.STOPPING and told.price_micros_per_hour is None
    with pytest.raises(NoCapacity):
        cloud.sell_out()
        await runpod.launch(order(spot))
    check(cloud)


@pytest.mark.parametrize(
    ("status", "detail", "error", "sure"),
    [(400, "There are no longer any instances available", NoCapacity, True), (400, "", NoCapacity, True),
     (403, "your account cannot access this pool", NoCapacity, True), (402, "Insufficient balance", QuotaExceeded, True),
     (400, "This would exceed your spend limit", QuotaExceeded, True), (422, "gpu.count must be positive", Unknown, True),
     (404, "template not found", Unknown, True), (409, "conflict", Unknown, True), (500, "oops", Unknown, False),
     (503, "spend limit", Unknown, False)],
)  # fmt: skip
async def test_a_refused_launch_means_what_the_vendors_table_says(
    status: int, detail: str, error: type[ProviderError], sure: bool
) -> None:
    cloud = RunPodCloud()
    runpod = cloud.provider()
    listing = (await runpod.listings())[0]
    body = {"title": "T", "status": status, "detail": detail}
    cloud.say(Response(status, body, kind="application/problem+json"))
    with pytest.raises(ProviderError) as caught:
        await runpod.launch(order(listing))
    assert type(caught.value) is error and caught.value.sure is sure


async def test_a_refusal_that_quotes_the_request_does_not_tell_the_workers_token() -> None:
    cloud = RunPodCloud()
    runpod = cloud.provider()
    listing = (await runpod.listings())[0]

    detail = f"bad env: {ENVIRONMENT['MEETARA_TOKEN']} key {cloud.key}"
    cloud.say(Response(400, {"title": "T", "status": 400, "detail": detail}, kind="application/problem+json"))
    with pytest.raises(NoCapacity, match="bad env") as caught:
        await runpod.launch(order(listing))
    assert ENVIRONMENT["MEETARA_TOKEN"] not in str(caught.value) and str(cloud.key) not in str(caught.value)


async def test_a_404_of_a_proxy_is_not_the_absence_of_a_pod() -> None:
    cloud = RunPodCloud()
    runpod = cloud.provider()
    for answer in (Response(404, kind="text/html", raw=b"<html>"), Response(404, {"message": "no route"}), Response(404)):
        cloud.say(answer)
        with pytest.raises(Unknown):
            await runpod.status("p1")
        with pytest.raises(Unknown):
            await runpod.terminate("p1")


async def test_an_id_cannot_leave_its_place_in_the_address() -> None:
    cloud = RunPodCloud()
    assert await cloud.provider().status("../network-volumes?x=") is None
    assert cloud.exchanges[-1].request.query == {}
