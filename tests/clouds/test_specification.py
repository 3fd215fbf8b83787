"""The check of exchanges finds what differs from a document; without that it would prove nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from agents.gpu_orchestrator.providers.provider import Order
from tests.clouds.cloud import Cloud
from tests.clouds.documents import documents, problems
from tests.clouds.http import Exchange, Request, Response
from tests.clouds.lambda_cloud import LambdaCloud
from tests.clouds.runpod_cloud import RunPodCloud
from tests.clouds.vast_cloud import VastCloud


def exchanges_of(kind: type[Cloud]) -> dict[str, Exchange]:
    """Return one sound exchange of each call."""
    if not documents(kind.vendor):
        pytest.skip("MEETARA_SHARED_DATA names no folder with openapi/")
    cloud = kind()

    async def live() -> None:
        provider = cloud.provider()
        listing = (await provider.listings())[0]
        instance = await provider.launch(Order("k", "meetara-1", listing, "image", {"A": "b"}, 10**10, 10**8))
        await provider.list("meetara-")
        await provider.status(instance.id)
        await provider.billed(instance.id, cloud.clock())
        await provider.terminate(instance.id)

    asyncio.run(live())
    assert problems(kind.vendor, cloud.exchanges) == []
    named: dict[str, Exchange] = {}
    for exchange in deque(cloud.exchanges):
        named.setdefault(cloud.name(exchange.request), exchange)
    return named


def request_with(exchange: Exchange, **change: Any) -> Exchange:
    return replace(exchange, request=replace(exchange.request, **change))


def answer_with(exchange: Exchange, **change: Any) -> Exchange:
    return replace(exchange, response=replace(exchange.response, **change))


def complaint(vendor: str, exchange: Exchange) -> str:
    found = problems(vendor, [exchange])
    assert found, "nothing was found wrong"
    return found[0]


def test_a_request_that_the_document_does_not_know_is_found() -> None:
    good = exchanges_of(RunPodCloud)
    launch, listing = good["launch"], good["listings"]
    body = launch.request.body
    assert "image" in complaint("runpod", request_with(launch, body={**body, "image": 7}))
    assert "interruptible" in complaint("runpod", request_with(launch, body={**body, "interruptible": True}))
    assert "name" in complaint("runpod", request_with(launch, body={key: body[key] for key in body if key != "name"}))
    assert "missing" in complaint("runpod", request_with(launch, body=None))
    assert "unknown" in complaint("runpod", request_with(listing, query={**listing.request.query, "spot": "true"}))
    assert "parameter product" in complaint("runpod", request_with(listing, query={**listing.request.query, "product": "CAKE"}))
    assert "parameter count" in complaint("runpod", request_with(listing, query={**listing.request.query, "count": "0"}))
    assert "no such path" in complaint("runpod", request_with(listing, path="/v2/cakes"))
    assert "no such method" in complaint("runpod", request_with(launch, method="PUT"))
    assert "a body where none belongs" in complaint("runpod", request_with(listing, body={}))


def test_an_answer_that_the_document_does_not_know_is_found() -> None:
    good = exchanges_of(RunPodCloud)
    listed, ended = good["list"], good["terminate"]
    pod = listed.response.body["pods"][0]
    assert "SLEEPING" in complaint("runpod", answer_with(listed, body={"pods": [{**pod, "status": "SLEEPING"}]}))
    without_cost = {name: pod[name] for name in pod if name != "cost"}
    assert "cost" in complaint("runpod", answer_with(listed, body={"pods": [without_cost]}))
    assert "its type is" in complaint("runpod", answer_with(listed, kind="text/html"))
    assert "a body where none belongs" in complaint("runpod", answer_with(ended, body={}))
    assert "its type is" in complaint("runpod", answer_with(listed, status=418))  # errors are problem documents there


def test_each_vendors_launch_and_list_are_really_checked() -> None:
    launch = exchanges_of(LambdaCloud)["launch"]
    assert "ssh_key_names" in complaint("lambda", request_with(launch, body={**launch.request.body, "ssh_key_names": []}))
    assert "instance_ids" in complaint("lambda", answer_with(launch, body={"data": {}}))
    assert "status 418" in complaint("lambda", answer_with(launch, status=418))
    good = exchanges_of(VastCloud)
    asked = good["launch"]
    assert "runtype" in complaint("vast", request_with(asked, body={**asked.request.body, "runtype": "walk"}))
    assert "price" in complaint("vast", request_with(asked, body={**asked.request.body, "price": 1000}))
    assert "env" in complaint("vast", request_with(asked, body={**asked.request.body, "env": {"A": "b"}}))
    assert "parameter id" in complaint("vast", request_with(asked, path="/api/v0/asks/seven"))
    market = good["listings"]
    assert "order" in complaint("vast", request_with(market, body={**market.request.body, "order": [["id", "asc"]]}))
    assert "limit" in complaint("vast", request_with(good["list"], query={"limit": "26"}))


def test_the_old_document_of_lambda_lets_newer_fields_through_and_no_wrong_ones() -> None:
    good = exchanges_of(LambdaCloud)
    assert problems("lambda", [good["launch"]]) == [] and "user_data" in good["launch"].request.body
    assert "name" in complaint("lambda", request_with(good["launch"], body={**good["launch"].request.body, "name": "x" * 65}))


def test_what_was_spoilt_or_guessed_is_left_out() -> None:
    if not documents("vast"):
        pytest.skip("MEETARA_SHARED_DATA names no folder with openapi/")
    request = Request("GET", "/nowhere", {}, {}, None)
    assert problems("vast", [Exchange(request, Response(200, {}), sound=False)]) == []
    assert problems("vast", [Exchange(request, Response(200, {}, documented=False))]) == []
    assert problems("vast", [Exchange(request, Response(200, {}))]) != []
