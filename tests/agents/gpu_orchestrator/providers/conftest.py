"""A cloud of each vendor, whose every exchange is checked against the vendor's document when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agents.gpu_orchestrator.providers.provider import Order, Provider
from protocol.machine import Listing
from tests.clouds.clock import VirtualClock
from tests.clouds.cloud import Cloud
from tests.clouds.documents import documents, problems
from tests.clouds.lambda_cloud import LambdaCloud
from tests.clouds.runpod_cloud import RunPodCloud
from tests.clouds.vast_cloud import VastCloud

CLOUDS: dict[str, type[Cloud]] = {"lambda": LambdaCloud, "runpod": RunPodCloud, "vast": VastCloud}
ENVIRONMENT = {"MEETARA_BROKER": "mqtts://lab.example:8883", "MEETARA_TOKEN": "token-0123456789", "ODD": "it's \"$HOME\" & more; # \\n"}


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def check(cloud: Cloud) -> None:
    """Fail where an exchange differs from the vendor's document, if that is here."""
    if documents(cloud.vendor):
        assert problems(cloud.vendor, cloud.exchanges) == []


@pytest.fixture(params=list(CLOUDS))
def cloud(request: pytest.FixtureRequest, clock: VirtualClock) -> Iterator[Cloud]:
    """Each vendor's cloud in turn."""
    made = CLOUDS[request.param](clock)
    yield made
    check(made)


@pytest.fixture
def provider(cloud: Cloud) -> Provider:
    return cloud.provider()


def order(listing: Listing, **change: Any) -> Order:
    """Return an order of a listing, with a limit of twice its price."""
    price = listing.price_micros_per_hour or 0
    usual = {
        "key": "launch-1", "tag": "meetara-lab-0001", "image": "registry.example/meetara-worker:1", "environment": ENVIRONMENT,
        "disk_bytes": 40 * 10**9, "limit_micros_per_hour": 2 * price,
    }  # fmt: skip
    return Order(listing=listing, **{**usual, **change})
