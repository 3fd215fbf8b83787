"""What is particular to Vast: asks, bids, disks, pages."""

from __future__ import annotations

from typing import Any

import pytest

from agents.gpu_orchestrator.providers import vast as module
from agents.gpu_orchestrator.providers.provider import AuthFailed, NoCapacity, Phase, PriceMoved, Unknown
from protocol.machine import Listing
from tests.agents.gpu_orchestrator.providers.conftest import check, order
from tests.clouds.clock import VirtualClock
from tests.clouds.cloud import Stock
from tests.clouds.http import Response
from tests.clouds.vast_cloud import VastCloud


async def listing_of(cloud: VastCloud, id: str) -> Listing:
    return next(listing for listing in await cloud.provider().listings() if listing.id == id)


async def test_an_ask_is_listed_on_demand_and_for_bids_with_its_part_of_the_host() -> None:
    cloud = VastCloud(stock=[Stock("5", "RTX 4090", 350_001, "Texas, US", least_bid_micros=150_000, disk_micros_per_gb_month=150_000)])
    demand, spot = await cloud.provider().listings()
    assert (demand.id, demand.spot, demand.price_micros_per_hour, demand.secure) == ("5", False, 350_001, False)
    assert (spot.id, spot.spot, spot.price_micros_per_hour) == ("5/spot", True, 150_000)
    assert (demand.disk_micros_per_gb_hour, demand.egress_micros_per_gb) == (209, 4560)  # 0.15 / 720 rounded up; $0.00456
    assert (demand.cores, demand.memory_bytes, demand.disk_bytes) == (16, 64 * 2**30, 512 * 10**9)
    check(cloud)


async def test_a_bid_is_the_limit_without_the_disk_and_not_multiplied_by_the_gpus() -> None:
    cloud = VastCloud()
    spot = await listing_of(cloud, "7008/spot")
    assert spot.gpus == 8
    instance = await cloud.provider().launch(order(spot, limit_micros_per_hour=9_500_000, disk_bytes=100 * 10**9))
    rented = cloud.instances[instance.id]
    assert rented.bid and rented.micros_per_hour == 9_500_000 - 100 * 167  # $0.12 per GB and month
    assert rented.micros_per_hour + rented.disk_micros_per_hour <= 9_500_000
    check(cloud)


async def test_a_limit_that_does_not_reach_the_least_bid_is_not_sent() -> None:
    cloud = VastCloud()
    spot = await listing_of(cloud, "7001/spot")
    with pytest.raises(PriceMoved) as caught:
        await cloud.provider().launch(order(spot, limit_micros_per_hour=150_000))
    assert caught.value.sure and cloud.calls[-1] == "listings"


async def test_a_market_that_rose_refuses_the_bid_and_takes_running_machines_away() -> None:
    clock = VirtualClock()
    cloud = VastCloud(clock)
    vast = cloud.provider()
    spot = await listing_of(cloud, "7001/spot")
    cloud.stock["7001"].free = 2
    instance = await vast.launch(order(spot, limit_micros_per_hour=200_000))
    clock.advance(cloud.boot_seconds)
    assert cloud.outbid("7001", 250_000) == [instance.id]
    told = await vast.status(instance.id)
    assert told is not None and told.phase is Phase.STOPPING
    with pytest.raises(PriceMoved) as caught:
        await vast.launch(order(spot, limit_micros_per_hour=200_000))
    assert caught.value.sure and len(cloud.instances) == 1
    check(cloud)


async def test_an_ask_that_is_gone_is_no_capacity_by_either_status() -> None:
    cloud = VastCloud()
    ask = await listing_of(cloud, "7001")
    cloud.stock["7001"].free = 0
    with pytest.raises(NoCapacity, match="410"):
        await cloud.provider().launch(order(ask))
    del cloud.stock["7001"]
    with pytest.raises(NoCapacity, match="404"):
        await cloud.provider().launch(order(ask))
    check(cloud)


async def test_all_pages_are_listed_and_an_incomplete_list_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGES", 5)
    cloud = VastCloud(stock=[Stock("5", "RTX 4090", 350_000, free=60)])
    vast = cloud.provider()
    ask = await listing_of(cloud, "5")
    for number in range(60):
        await vast.launch(order(ask, tag=f"meetara-lab-{number}"))
    assert len(await vast.list("meetara-lab-")) == 60
    assert cloud.calls.count("list") == 3
    check(cloud)
    page = cloud._page
    cloud._page = lambda request: {**page(request), "next_token": None}  # type: ignore[method-assign]
    with pytest.raises(Unknown, match="listed 25 of 60"):
        await vast.list("meetara-")
    cloud._page = lambda request: {**page(request), "next_token": "MA=="}  # type: ignore[method-assign]
    with pytest.raises(Unknown):
        await vast.list("meetara-")


async def test_a_page_without_success_or_instances_is_no_empty_list() -> None:
    cloud = VastCloud()
    vast = cloud.provider()
    for body in ({"success": False, "instances": []}, {"success": True}, {"success": True, "instances": None}, {}):
        cloud.say(Response(200, body))
        with pytest.raises(Unknown):
            await vast.list("meetara-")
    other: dict[str, Any]
    for other in ({}, {"instances": {}}, {"instances": []}):
        cloud.say(Response(200, other))
        with pytest.raises(Unknown):
            await vast.status("1")
    cloud.say(Response(200, {"instances": None}))
    assert await vast.status("1") is None


async def test_a_404_that_names_no_instance_is_not_its_absence() -> None:
    cloud = VastCloud()
    vast = cloud.provider()
    cloud.say(Response(404, {"success": False, "error": "auth_error", "msg": "Invalid user key"}))
    for call in (vast.status("1"), vast.terminate("1"), vast.listings()):
        with pytest.raises(AuthFailed):
            await call
    cloud.say(Response(404, kind="text/html", raw=b"<html>no such page</html>"))
    for look in (vast.status("1"), vast.terminate("1")):
        with pytest.raises(Unknown):
            await look


async def test_words_that_nobody_knows_are_running() -> None:
    cloud = VastCloud()
    vast = cloud.provider()
    for states, phase in (
        ({"actual_status": "offline"}, Phase.RUNNING), ({"actual_status": None}, Phase.STARTING), ({"actual_status": "zombie"}, Phase.RUNNING),
        ({"actual_status": "running", "cur_state": "stopped"}, Phase.STOPPING), ({"actual_status": "exited"}, Phase.STOPPING),
    ):  # fmt: skip
        body = {"instances": {"id": 1, "label": None, **states}}
        cloud.say(Response(200, body))
        told = await vast.status("1")
        assert told is not None and told.phase is phase and told.tag == ""


async def test_an_id_of_another_vendor_is_not_sent() -> None:
    cloud = VastCloud()
    for id in ("a10", "1/../2", "", "-1", "١"):
        with pytest.raises(Unknown) as caught:
            await cloud.provider().terminate(id)
        assert caught.value.sure
    assert not cloud.calls
