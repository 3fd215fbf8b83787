"""What every provider does, tried with the real adapter against each vendor's test cloud."""

from __future__ import annotations

import math

import pytest

from agents.gpu_orchestrator.market.gpus import GPUS
from agents.gpu_orchestrator.providers.provider import (
    AuthFailed,
    Instance,
    NoCapacity,
    Phase,
    Provider,
    QuotaExceeded,
    RateLimited,
    Unknown,
)
from protocol.machine import Listing
from tests.agents.gpu_orchestrator.providers.conftest import ENVIRONMENT, order
from tests.clouds.clock import VirtualClock
from tests.clouds.cloud import Cloud
from tests.clouds.documents import documents
from tests.clouds.faults import Fault


async def cheapest(provider: Provider) -> Listing:
    listings = [listing for listing in await provider.listings() if not listing.spot]
    return min(listings, key=lambda listing: (listing.price_micros_per_hour or 0, listing.id))


async def launched(provider: Provider) -> Instance:
    return await provider.launch(order(await cheapest(provider)))


async def of_id(provider: Provider, id: str) -> Instance:
    found = await provider.status(id)
    assert found is not None
    return found


def test_the_vendors_documents_are_here_or_the_exchanges_are_not_checked(cloud: Cloud) -> None:
    if not documents(cloud.vendor):
        pytest.skip("MEETARA_SHARED_DATA names no folder with openapi/: the exchanges of these tests are not checked")


async def test_listings_are_live_with_whole_micro_dollars(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    listings = await provider.listings()
    assert len({listing.id for listing in listings}) == len(listings)
    prices = {s.micros_per_hour for s in cloud.stock.values()} | {s.least_bid_micros for s in cloud.stock.values()}
    for listing in listings:
        assert (listing.provider, listing.source, listing.seen_at) == (cloud.vendor, "live", clock())
        assert listing.price_micros_per_hour in prices
        assert listing.gpu in GPUS and listing.gpus >= 1
        assert listing.gpu_memory_bytes in {s.gpu_memory_gb * 2**30 for s in cloud.stock.values()}
    assert len([listing for listing in listings if not listing.spot]) == len(cloud.stock)


async def test_what_is_sold_out_is_not_listed(cloud: Cloud, provider: Provider) -> None:
    before = await cheapest(provider)
    cloud.sell_out()
    assert before.id not in [listing.id for listing in await provider.listings()]


async def test_an_instance_lives_from_launch_to_gone(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    booted: list[tuple[str, dict[str, str]]] = []
    cloud.boot = lambda instance, environment: booted.append((instance.image, environment))
    listing = await cheapest(provider)
    instance = await provider.launch(order(listing))
    assert (instance.provider, instance.tag, instance.phase) == (cloud.vendor, "meetara-lab-0001", Phase.STARTING)
    assert [found.id for found in await provider.list("meetara-lab-")] == [instance.id]
    assert (await of_id(provider, instance.id)).phase is Phase.STARTING and not booted
    clock.advance(cloud.boot_seconds)
    running = await of_id(provider, instance.id)
    disk = cloud.instances[instance.id].disk_micros_per_hour if cloud.vendor == "vast" else 0  # there the price has the disk in it
    assert (running.phase, running.price_micros_per_hour) == (Phase.RUNNING, (listing.price_micros_per_hour or 0) + disk)
    assert (running.gpu, running.region) == (listing.gpu, listing.region)
    assert booted == [("registry.example/meetara-worker:1", ENVIRONMENT)]
    await provider.terminate(instance.id)
    clock.advance(cloud.end_seconds)
    assert await provider.list("meetara-") == []
    gone = await provider.status(instance.id)
    assert gone is None or gone.phase is Phase.GONE


async def test_only_what_has_the_prefix_is_listed(cloud: Cloud, provider: Provider) -> None:
    stock = [listing for listing in await provider.listings() if not listing.spot]
    await provider.launch(order(stock[0], tag="meetara-other-1"))
    mine = await provider.launch(order(stock[1], tag="meetara-lab-1"))
    assert [found.id for found in await provider.list("meetara-lab-")] == [mine.id]
    assert len(await provider.list("meetara-")) == 2 and await provider.list("somebody") == []


async def test_what_is_gone_or_never_was_can_be_terminated_and_has_no_status(
    cloud: Cloud, provider: Provider, clock: VirtualClock
) -> None:
    instance = await launched(provider)
    for _ in range(3):
        await provider.terminate(instance.id)
        clock.advance(cloud.end_seconds)
    unknown = "123456" if cloud.vendor == "vast" else "never"
    assert await provider.status(unknown) is None
    await provider.terminate(unknown)


async def test_sold_out_between_listing_and_launch_starts_nothing(cloud: Cloud, provider: Provider) -> None:
    listing = await cheapest(provider)
    cloud.sell_out()
    with pytest.raises(NoCapacity) as caught:
        await provider.launch(order(listing))
    assert caught.value.sure and not cloud.instances
    cloud.stock[next(iter(cloud.stock))].free = 1
    cloud.fail("launch", Fault.SOLD_OUT)
    with pytest.raises(NoCapacity):
        await launched(provider)
    await launched(provider)


async def test_the_price_that_moved_is_told_by_the_instance(cloud: Cloud, provider: Provider) -> None:
    listing = await cheapest(provider)
    for stock in cloud.stock.values():
        stock.micros_per_hour *= 3
    instance = await provider.launch(order(listing))
    told = await of_id(provider, instance.id)
    assert told.price_micros_per_hour is not None and told.price_micros_per_hour > 2 * (listing.price_micros_per_hour or 0)


async def every_call(provider: Provider, listing: Listing, id: str, clock: VirtualClock) -> list[BaseException | object]:
    """Return what each call raised or gave."""
    results: list[BaseException | object] = []
    calls = (
        provider.listings, lambda: provider.launch(order(listing)), lambda: provider.list("meetara-"), lambda: provider.status(id),
        lambda: provider.terminate(id),
    )  # fmt: skip
    for call in calls:
        try:
            results.append(await call())
        except (AuthFailed, RateLimited, Unknown) as error:
            results.append(error)
    return results


async def test_a_revoked_key_is_told_by_every_call(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    instance = await launched(provider)
    listing = await cheapest(provider)
    cloud.revoke()
    for result in await every_call(provider, listing, instance.id, clock):
        assert isinstance(result, AuthFailed) and result.sure
    assert len(cloud.living()) == 1


async def test_too_many_calls_are_told_with_the_time_to_wait(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    instance = await launched(provider)
    listing = await cheapest(provider)
    cloud.fail("*", Fault.RATE_LIMIT, times=None)
    waits = {"lambda": 2.0, "runpod": 12.0, "vast": 5.0}
    for result in await every_call(provider, listing, instance.id, clock):
        assert isinstance(result, RateLimited) and result.sure and result.retry_after == waits[cloud.vendor]


async def test_a_provider_that_cannot_be_reached_did_nothing_for_sure(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    instance = await launched(provider)
    listing = await cheapest(provider)
    cloud.unreachable()
    for result in await every_call(provider, listing, instance.id, clock):
        assert isinstance(result, Unknown) and result.sure


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ERROR_AFTER, Fault.HANG_AFTER, Fault.MALFORMED, Fault.HTML])
async def test_a_launch_without_a_readable_answer_is_doubtful_and_found_by_its_tag(
    cloud: Cloud, provider: Provider, fault: Fault
) -> None:
    listing = await cheapest(provider)
    cloud.fail("launch", fault)
    with pytest.raises(Unknown) as caught:
        await provider.launch(order(listing))
    assert not caught.value.sure
    (found,) = await provider.list("meetara-lab-0001")
    assert found.id in cloud.instances


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.HANG, Fault.ERROR])
async def test_a_launch_that_failed_without_effect_is_doubtful_too_and_leaves_nothing(
    cloud: Cloud, provider: Provider, fault: Fault
) -> None:
    listing = await cheapest(provider)
    cloud.fail("launch", fault)
    with pytest.raises(Unknown) as caught:
        await provider.launch(order(listing))
    assert not caught.value.sure and await provider.list("meetara-") == []


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.CUT, Fault.HANG, Fault.MALFORMED, Fault.HTML])
async def test_a_list_that_cannot_be_read_is_no_empty_list(cloud: Cloud, provider: Provider, fault: Fault) -> None:
    instance = await launched(provider)
    cloud.fail("list", fault)
    with pytest.raises(Unknown) as caught:
        await provider.list("meetara-")
    assert caught.value.sure  # of having changed nothing
    cloud.fail("status", fault)
    with pytest.raises(Unknown):
        await provider.status(instance.id)
    assert [found.id for found in await provider.list("meetara-")] == [instance.id]


async def test_an_empty_list_of_a_broken_provider_does_not_make_the_instance_unknown(cloud: Cloud, provider: Provider) -> None:
    """The adapter cannot tell such a list from a true one; `status` is what proves that something is gone."""
    instance = await launched(provider)
    cloud.fail("list", Fault.EMPTY)
    assert await provider.list("meetara-") == []
    assert (await of_id(provider, instance.id)).phase is not Phase.GONE


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.ERROR_AFTER, Fault.LOST, Fault.MALFORMED])
async def test_a_terminate_that_fails_is_doubtful_and_can_be_repeated(
    cloud: Cloud, provider: Provider, clock: VirtualClock, fault: Fault
) -> None:
    instance = await launched(provider)
    cloud.fail("terminate", fault)
    with pytest.raises(Unknown) as caught:
        await provider.terminate(instance.id)
    assert not caught.value.sure
    await provider.terminate(instance.id)
    clock.advance(cloud.end_seconds)
    assert cloud.living() == []


async def test_a_terminate_that_was_answered_and_not_done_is_seen_by_the_status(
    cloud: Cloud, provider: Provider, clock: VirtualClock
) -> None:
    instance = await launched(provider)
    clock.advance(cloud.boot_seconds)
    cloud.fail("terminate", Fault.IGNORED)
    await provider.terminate(instance.id)
    clock.advance(cloud.end_seconds)
    assert (await of_id(provider, instance.id)).phase is Phase.RUNNING
    await provider.terminate(instance.id)
    clock.advance(cloud.end_seconds)
    assert cloud.living() == []


async def test_an_instance_that_the_vendor_denies_and_charges_is_told_by_its_bill_alone(
    cloud: Cloud, provider: Provider, clock: VirtualClock
) -> None:
    instance = await launched(provider)
    cloud.hide(instance.id)
    assert await provider.status(instance.id) is None and await provider.list("meetara-") == []
    clock.advance(3600)
    before = await provider.billed(instance.id, cloud.instances[instance.id].created_at)
    clock.advance(3600)
    after = await provider.billed(instance.id, cloud.instances[instance.id].created_at)
    assert cloud.vendor == "lambda" or (before is not None and after is not None and after > before)


async def test_the_bill_counts_each_second_until_it_is_gone(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    instance = await launched(provider)
    rented = cloud.instances[instance.id]
    rate = rented.micros_per_hour + rented.disk_micros_per_hour
    clock.advance(1000.2)
    await provider.terminate(instance.id)
    clock.advance(cloud.end_seconds)
    exact = math.ceil(math.ceil(1000.2 + cloud.end_seconds) * rate / 3600)
    clock.advance(100_000)
    assert cloud.bill(instance.id) == exact
    billed = await provider.billed(instance.id, rented.created_at)
    match cloud.vendor:
        case "lambda":
            assert billed is None
        case "runpod":
            assert billed == exact
        case "vast":
            assert billed is not None and abs(billed - exact) <= 500  # its bills are rounded to $0.001


async def test_a_vendor_that_charges_eight_times_its_price_is_found_out_by_its_bill(
    cloud: Cloud, provider: Provider, clock: VirtualClock
) -> None:
    cloud.billing_factor = 8
    instance = await launched(provider)
    rented = cloud.instances[instance.id]
    clock.advance(3600)
    price = (await of_id(provider, instance.id)).price_micros_per_hour or 0
    if cloud.vendor != "lambda":
        billed = await provider.billed(instance.id, rented.created_at) or 0
        assert billed >= 7.9 * price


async def test_nothing_was_billed_is_not_told_as_zero(cloud: Cloud, provider: Provider, clock: VirtualClock) -> None:
    assert await provider.billed("424242", clock()) is None


async def test_an_account_without_money_may_not_rent(cloud: Cloud, provider: Provider) -> None:
    listing = await cheapest(provider)
    cloud.balance_micros = 0
    with pytest.raises((QuotaExceeded, AuthFailed)) as caught:
        await provider.launch(order(listing))
    assert caught.value.sure and not cloud.instances
    if cloud.vendor != "lambda":  # which says that the account is not active
        assert isinstance(caught.value, QuotaExceeded)


async def test_a_machine_that_is_taken_away_is_stopping_and_its_disk_costs(
    cloud: Cloud, provider: Provider, clock: VirtualClock
) -> None:
    instance = await launched(provider)
    clock.advance(cloud.boot_seconds)
    cloud.preempt(instance.id)
    before = cloud.bill()
    assert (await of_id(provider, instance.id)).phase is Phase.STOPPING
    assert [found.phase for found in await provider.list("meetara-")] == [Phase.STOPPING]
    clock.advance(3600)
    assert cloud.bill() - before == cloud.instances[instance.id].disk_micros_per_hour
    await provider.terminate(instance.id)
    clock.advance(cloud.end_seconds)
    assert cloud.living() == []


async def test_a_tag_that_the_vendor_would_cut_is_refused_before_anything_is_sent(cloud: Cloud, provider: Provider) -> None:
    listing = await cheapest(provider)
    calls = len(cloud.calls)
    with pytest.raises(Unknown) as caught:
        await provider.launch(order(listing, tag="m" * 2000))
    assert caught.value.sure and len(cloud.calls) == calls


async def test_keys_are_told_apart_without_being_told_and_an_account_by_its_id_where_the_vendor_tells_it(cloud: Cloud) -> None:
    before = cloud.provider()
    account = await before.account()
    cloud.rotate("another-key-of-the-same-account")
    after = cloud.provider()
    assert after.fingerprint != before.fingerprint and len(after.fingerprint) == 16
    assert await after.account() == account == (str(cloud.account_id) if cloud.vendor == "vast" else None)
    other = type(cloud)(VirtualClock(), key="key-of-another-account", account=1).provider()
    assert await other.account() != account or account is None
