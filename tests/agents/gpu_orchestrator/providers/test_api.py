"""One call: what is sent, what is read, and what every kind of failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from agents.gpu_orchestrator.providers import api as module
from agents.gpu_orchestrator.providers.api import Answer, Api, Row
from agents.gpu_orchestrator.providers.provider import AuthFailed, ProviderError, QuotaExceeded, RateLimited, Unknown

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = "secret-0123456789"


def api(handler: Callable[[httpx2.Request], httpx2.Response]) -> Api:
    return Api("vendor", "https://vendor.example/api/", SecretStr(KEY), lambda: NOW, transport=httpx2.MockTransport(handler))


def answering(status: int = 200, content: bytes = b"{}", **headers: str) -> Api:
    named = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return api(lambda request: httpx2.Response(status, headers=named, content=content))


def failing(error: type[Exception]) -> Api:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise error("broken")

    return api(fail)


async def test_the_key_stands_in_one_header_and_nowhere_else() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={})

    await api(answer).call("POST", "/things", params={"a": 1}, body={"b": 2})
    (request,) = seen
    assert str(request.url) == "https://vendor.example/api/things?a=1" and request.headers["authorization"] == f"Bearer {KEY}"
    rest = [value for name, value in request.headers.items() if name != "authorization"]
    assert KEY not in f"{request.url} {rest} {request.content!r} {request!r} {request.headers!r}"


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol])
async def test_what_was_never_sent_did_nothing_for_sure(error: type[Exception], effect: bool) -> None:
    with pytest.raises(Unknown) as caught:
        await failing(error).call("POST", "/", effect=effect)
    assert caught.value.sure


@pytest.mark.parametrize(
    "error",
    [httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError,
     httpx2.LocalProtocolError, httpx2.ProxyError, httpx2.DecodingError],
)  # fmt: skip
async def test_a_lost_answer_leaves_doubt_unless_the_call_only_looked(error: type[Exception]) -> None:
    for effect in (False, True):
        with pytest.raises(Unknown) as caught:
            await failing(error).call("POST", "/", effect=effect)
        assert caught.value.sure is not effect and caught.value.__cause__ is None


async def test_a_vendor_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)

    async def never(request: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    slow = Api("vendor", "https://vendor.example", SecretStr(KEY), lambda: NOW, transport=httpx2.MockTransport(never))
    with pytest.raises(Unknown, match=r"no answer within 0.01 s") as caught:
        await slow.call("POST", "/", effect=True)
    assert not caught.value.sure


async def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_BYTES", 1000)
    with pytest.raises(Unknown, match="larger than 1000 bytes"):
        await answering(content=b'"' + b"a" * 2000 + b'"').call("GET", "/")


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{", "application/json"), (b"<html>", "text/html"), (b"{}", "text/plain"), (b"{}", ""), (b'{"a": NaN}', "application/json"),
     (b'{"a": Infinity}', "application/json"), (b"[" * 100_000, "application/json"), (b"\xff\xfe", "application/json"),
     (b"null", "application/json"), (b'{"a": 1' + b"0" * 5000 + b"}", "application/json")],
)  # fmt: skip
async def test_an_answer_that_is_not_json_is_no_answer(content: bytes, kind: str) -> None:
    with pytest.raises(Unknown, match="is not JSON") as caught:
        await answering(content=content, content_type=kind).call("POST", "/", effect=True)
    assert not caught.value.sure


async def test_numbers_are_read_exactly() -> None:
    answer = await answering(content=b'{"a": 0.1234567890123456789012345, "b": 3, "c": 1e-7}').call("GET", "/")
    assert answer.body == {"a": Decimal("0.1234567890123456789012345"), "b": 3, "c": Decimal("1e-7")}
    assert (await answering(204, b"").call("DELETE", "/")).body is None


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("12", 12.0), ("0", 1.0), ("1.5", 1.5), ("999999", 3600.0), ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
     ("Sun, 01 Mar 2026 11:00:00 GMT", 1.0), ("soon", None), ("-5", None), ("", None), ("1e9", None), ("Sun, 01 Mar 2026 12:00:30", None)],
)  # fmt: skip
async def test_retry_after_is_seconds_or_a_date_within_bounds(told: str, seconds: float | None) -> None:
    answer = await answering(429, retry_after=told).call("GET", "/")
    assert answer.retry_after == seconds
    error = answering().error(answer, "429", effect=False)
    assert isinstance(error, RateLimited) and error.retry_after == (seconds if seconds is not None else 5.0)


@pytest.mark.parametrize(
    ("status", "error", "sure"),
    [(400, Unknown, True), (401, AuthFailed, True), (402, QuotaExceeded, True), (403, AuthFailed, True), (404, Unknown, True),
     (408, Unknown, False), (409, Unknown, True), (418, Unknown, False), (422, Unknown, True), (429, RateLimited, True),
     (500, Unknown, False), (502, Unknown, False), (503, Unknown, False), (504, Unknown, False), (301, Unknown, False),
     (202, Unknown, False), (101, Unknown, False)],
)  # fmt: skip
def test_each_status_is_one_of_the_closed_set(status: int, error: type[ProviderError], sure: bool) -> None:
    told = answering().error(Answer(status, None, None), "reason", effect=True)
    assert type(told) is error and told.sure is sure
    assert answering().error(Answer(status, None, None), "reason", effect=False).sure


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.host)
        return httpx2.Response(301, headers={"location": "https://elsewhere.example/"})

    assert (await api(answer).call("GET", "/")).status == 301 and seen == ["vendor.example"]


class Thing(Row):
    size: int


def test_an_answer_of_another_form_is_told_by_its_place_and_not_by_its_content() -> None:
    here = answering()
    with pytest.raises(Unknown, match=r"cannot be read at size") as caught:
        here.read(Thing, Answer(200, {"size": "hunter2"}, None), effect=True)
    assert not caught.value.sure and "hunter2" not in str(caught.value) and caught.value.__cause__ is None
    body: object
    for body in (None, [], "text", 7):
        with pytest.raises(Unknown):
            here.read(Thing, Answer(200, body, None))


def test_one_bad_row_of_a_market_is_left_out_and_only_bad_rows_are_no_market() -> None:
    here = answering()
    rows: list[Any] = [{"size": 1}, {"size": "large"}, None, {"size": 3}]
    assert [row.size for row in here.rows(Thing, rows)] == [1, 3]
    assert here.rows(Thing, []) == []
    with pytest.raises(Unknown, match="none of the 2 rows"):
        here.rows(Thing, rows[1:3])


def test_a_vendors_words_are_quoted_short_on_one_line_and_without_secrets() -> None:
    said = answering().quote(f"bad key {KEY}\nand token t0ken-abcdef\x1b[31m " + "x" * 500, ["t0ken-abcdef", "1"])
    assert KEY not in said and "t0ken" not in said and "\n" not in said and "\x1b" not in said and len(said) <= 200
