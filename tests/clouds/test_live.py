"""Real clouds, only when asked: `MAX_SPEND_USD=0.50 VAST_API_KEY=… pytest -m live tests/clouds`. It has never been run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agents.gpu_orchestrator.providers.provider import Unknown
from agents.gpu_orchestrator.providers.registry import open_providers
from configs import accounts
from tests.clouds.clock import VirtualClock
from tests.clouds.cloud import Cloud
from tests.clouds.faults import Fault
from tests.clouds.lambda_cloud import LambdaCloud
from tests.clouds.live import affordable, max_spend_micros, one_life
from tests.clouds.runpod_cloud import RunPodCloud
from tests.clouds.vast_cloud import VastCloud

PAUSE_S = 10.0
"""Between two looks at a real vendor; Lambda lets one launch through in 12 s, the others more."""


@pytest.mark.live
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("vendor", list(accounts.KEYS))
async def test_a_real_vendor_is_listed_and_with_a_limit_of_money_rented_for_a_moment(vendor: str) -> None:
    found = {name: account for name, account in accounts.read().items() if name == vendor}
    if not found:
        pytest.skip(f"{accounts.KEYS[vendor]} is not set")
    spend = max_spend_micros()
    provider = open_providers(found)[vendor]
    try:
        listings = list(await provider.listings())
        assert listings, "the vendor lists nothing"
        await provider.list("meetara-live-")
        if spend == 0:
            pytest.skip("it was listed; MAX_SPEND_USD is not set, so nothing was launched")
        await asyncio.sleep(PAUSE_S)
        life = await one_life(provider, listings, spend, lambda: asyncio.sleep(PAUSE_S))
        if life is None:
            pytest.skip(f"nothing that is free may be tried with MAX_SPEND_USD={spend / 1e6}")
        assert life.price_micros_per_hour is not None and life.price_micros_per_hour <= 2 * (life.listing.price_micros_per_hour or 0)
    finally:
        await provider.close()


def waiting(clock: VirtualClock) -> Callable[[], Awaitable[None]]:
    async def pause() -> None:
        clock.advance(PAUSE_S)

    return pause


@pytest.fixture(params=[LambdaCloud, RunPodCloud, VastCloud], ids=lambda kind: kind.vendor)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return request.param(VirtualClock())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("call", "fault", "times"),
    [("none", Fault.ERROR, 1), ("launch", Fault.SOLD_OUT, 1), ("terminate", Fault.ERROR, 3), ("terminate", Fault.LOST, 1)],
)  # fmt: skip
async def test_the_short_life_leaves_nothing_on_a_test_cloud(cloud: Cloud, call: str, fault: Fault, times: int) -> None:
    assert isinstance(cloud.clock, VirtualClock)
    provider = cloud.provider()
    listings = list(await provider.listings())
    cloud.fail(call, fault, times)
    life = await one_life(provider, listings, 10_000_000, waiting(cloud.clock))
    assert life is not None and life.terminates >= times and life.price_micros_per_hour is not None
    assert len(cloud.instances) == 1 and cloud.living() == [] and cloud.bill() <= 10_000_000


@pytest.mark.parametrize(("call", "fault"), [("list", Fault.EMPTY), ("list", Fault.ERROR), ("status", Fault.MALFORMED)])
async def test_a_vendor_that_answers_badly_fails_the_test_and_leaves_nothing(cloud: Cloud, call: str, fault: Fault) -> None:
    assert isinstance(cloud.clock, VirtualClock)
    provider = cloud.provider()
    listings = list(await provider.listings())
    cloud.fail(call, fault)
    with pytest.raises((AssertionError, Unknown)):
        await one_life(provider, listings, 10_000_000, waiting(cloud.clock))
    assert len(cloud.instances) == 1 and cloud.living() == []


async def test_a_launch_whose_answer_is_lost_leaves_nothing_either(cloud: Cloud) -> None:
    assert isinstance(cloud.clock, VirtualClock)
    provider = cloud.provider()
    listings = list(await provider.listings())
    cloud.fail("launch", Fault.LOST)
    with pytest.raises(Unknown, match="no answer"):
        await one_life(provider, listings, 10_000_000, waiting(cloud.clock))
    assert len(cloud.instances) == 1 and cloud.living() == []


async def test_what_does_not_end_is_told_loudly(cloud: Cloud) -> None:
    assert isinstance(cloud.clock, VirtualClock)
    provider = cloud.provider()
    listings = list(await provider.listings())
    cloud.fail("terminate", Fault.ERROR, times=None)
    with pytest.raises(AssertionError, match="costs money"):
        await one_life(provider, listings, 10_000_000, waiting(cloud.clock))


async def test_only_what_the_limit_holds_is_tried(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    listings = list(await cloud.provider().listings())
    assert affordable(listings, 0) == [] and affordable(listings, 1000) == []
    cheap = affordable(listings, 1_000_000)
    assert cheap and not any(listing.spot for listing in cheap)
    assert [listing.price_micros_per_hour for listing in cheap] == sorted(listing.price_micros_per_hour or 0 for listing in cheap)
    free = listings[0].model_copy(update={"price_micros_per_hour": 0})
    unknown = listings[0].model_copy(update={"price_micros_per_hour": None})
    assert affordable([free, unknown], 10**9) == []
    monkeypatch.setenv("MAX_SPEND_USD", "0.25")
    assert max_spend_micros() == 250_000
    for wrong in ("-1", "nan", "inf", "much"):
        monkeypatch.setenv("MAX_SPEND_USD", wrong)
        with pytest.raises(ValueError):
            max_spend_micros()
