"""A vendor's key is in one header. Everything else that leaves the process, or that a person could read, is searched for it."""

from __future__ import annotations

import logging
import traceback

import pytest
from structlog.testing import capture_logs

from agents.gpu_orchestrator.providers.provider import Order, Provider, ProviderError
from bus.redact import described
from configs import accounts
from tests.agents.gpu_orchestrator.providers.conftest import ENVIRONMENT, order
from tests.clouds.cloud import Cloud
from tests.clouds.faults import Fault

TOKEN = ENVIRONMENT["MEETARA_TOKEN"]


async def errors_of(provider: Provider, cloud: Cloud, placed: Order, id: str) -> list[ProviderError]:
    """Return what the calls raise for every fault."""
    caught: list[ProviderError] = []
    for fault in [None, *Fault]:
        for call in (lambda: provider.launch(placed), provider.listings, lambda: provider.list("m"), lambda: provider.status(id),
                     lambda: provider.terminate("424242"), lambda: provider.billed(id, cloud.clock()), provider.account):  # fmt: skip
            cloud.faults.clear()
            if fault is not None:
                cloud.fail("*", fault, times=None)
            try:
                await call()
            except ProviderError as error:
                caught.append(error)
    cloud.revoke()
    cloud.faults.clear()
    for last in (provider.listings, lambda: provider.launch(placed)):
        with pytest.raises(ProviderError) as refused:
            await last()
        caught.append(refused.value)
    return caught


async def test_no_key_and_no_token_in_errors_logs_names_or_the_wire(
    cloud: Cloud, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = str(cloud.key)
    listing = (await provider.listings())[0]
    placed = order(listing)
    instance = await provider.launch(placed)
    with capture_logs() as logged:
        errors = await errors_of(provider, cloud, placed, instance.id)
    assert len(errors) > 30
    told = [repr(provider), repr(vars(provider)), repr(placed), repr(instance), repr(cloud.account()), caplog.text, str(logged)]
    for error in errors:
        frames = traceback.TracebackException.from_exception(error, capture_locals=False)
        told += [str(error), repr(error), repr(error.args), "".join(frames.format()), str(described(error, error.__traceback__))]
    for text in told:
        assert key not in text and TOKEN not in text
    for exchange in cloud.exchanges:
        request = exchange.request
        assert key not in f"{request.path} {request.query} {request.body}"
        assert [name for name, value in request.headers.items() if key in value] == ["authorization"]


async def test_a_worker_gets_what_was_ordered_and_no_key(cloud: Cloud, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accounts.KEYS[cloud.vendor], str(cloud.key))
    await provider.launch(order((await provider.listings())[0]))
    (rented,) = cloud.instances.values()
    assert rented.environment == ENVIRONMENT
