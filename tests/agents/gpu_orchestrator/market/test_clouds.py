"""Listings by the real adapters, from clouds that speak the vendors' APIs."""

from datetime import timedelta

import pytest

import configs
from agents.gpu_orchestrator.market.desk import Desk
from configs import Settings
from protocol import LabError
from protocol.machine import ListingQuery, QuoteRequest
from tests.agents.gpu_orchestrator.market.samples import plan
from tests.clouds.clock import VirtualClock
from tests.clouds.cloud import Cloud, Stock
from tests.clouds.lambda_cloud import LambdaCloud
from tests.clouds.runpod_cloud import RunPodCloud
from tests.clouds.vast_cloud import VastCloud

LIMITED = {"job": "j", "tier": "balanced", "plan": plan(base_parameters=4_000_000_000)}


async def desk(clock: VirtualClock, *clouds: Cloud, store: str | None = None) -> Desk:
    sellers = {cloud.vendor: cloud.provider() for cloud in clouds}
    made = Desk(configs.load(Settings.read(store=store)), sellers, sellers)
    for provider in sellers.values():
        await made.ask(provider)
    return made


async def test_the_cheapest_of_three_vendors_is_chosen_and_the_next_is_at_hand():
    clock = VirtualClock()
    found = await desk(clock, LambdaCloud(clock), RunPodCloud(clock), VastCloud(clock))
    quote = found.quote(QuoteRequest(**LIMITED), [], clock())
    assert (quote.choice.provider, quote.choice.machine, quote.choice.gpu) == ("runpod", "NVIDIA L4@EU-RO-1/secure", "L4")
    assert [offer.gpu for offer in quote.others] == ["L4", "A10", "A10"]
    order = [item.id for _, item in found.ranked(QuoteRequest(**LIMITED), clock())]
    assert order == [quote.choice.machine, *(offer.machine for offer in quote.others)]
    names = {item.gpu for item in found.page(ListingQuery(all=True), [], clock()).listings if item.source == "live"}
    assert names == {"A10", "V100", "L4", "A100", "A100-80GB", "RTX 4090", "H100"}


async def test_a_cloud_that_is_down_is_passed_over_and_its_old_word_ages():
    clock = VirtualClock()
    runpod, vendor = RunPodCloud(clock), LambdaCloud(clock)
    found = await desk(clock, vendor, runpod)
    clock.advance(timedelta(minutes=9).total_seconds())
    runpod.reachable = False
    for provider in found._sellers.values():
        await found.ask(provider)
    assert found.quote(QuoteRequest(**LIMITED), [], clock()).choice.provider == "runpod", "nine minutes are not too old"
    clock.advance(120)
    later = found.quote(QuoteRequest(**LIMITED), [], clock())
    assert later.choice.provider == "lambda"
    assert "counts for 10" in later.rejected["runpod NVIDIA L4@EU-RO-1/secure"]
    assert "runpod" in found.page(ListingQuery(), [], clock()).stale


async def test_with_a_key_alone_prices_are_shown_and_nothing_is_chosen():
    clock = VirtualClock()
    cloud = LambdaCloud(clock)
    found = Desk(configs.load(Settings.read()), {"lambda": cloud.provider()})
    await found.ask(found._sellers["lambda"])
    assert found.ranked(QuoteRequest(**LIMITED), clock()) == []
    with pytest.raises(LabError, match=r"would cost \$.* \(P90\), but nothing can be rented: MEETARA_PUBLIC"):
        found.quote(QuoteRequest(**LIMITED), [], clock())
    assert found.page(ListingQuery(), [], clock()).rejected == 6


@pytest.mark.parametrize("price", [0, 8 * 8 * 750_000])
async def test_a_wrong_price_is_never_chosen(price):
    clock = VirtualClock()
    stock = [
        Stock("gpu_1x_a10@us-1", "A10", 750_000, "us-1"),
        Stock("gpu_8x_a10@us-1" if price else "gpu_1x_a10@us-2", "A10", price, "us-2", gpus=8 if price else 1),
    ]
    if not price:
        stock = [Stock("gpu_1x_a10@us-1", "A10", 0, "us-1")]
    found = await desk(clock, LambdaCloud(clock, stock=stock))
    if price:
        assert found.quote(QuoteRequest(**LIMITED), [], clock()).choice.machine == "gpu_1x_a10@us-1"
    else:
        with pytest.raises(LabError, match="cannot be right"):
            found.quote(QuoteRequest(**LIMITED), [], clock())
    reasons = [item.rejected for item in found.page(ListingQuery(provider="lambda", all=True), [], clock()).listings if item.rejected]
    assert any(("GPUs twice" if price else "$0.00") in reason for reason in reasons)
