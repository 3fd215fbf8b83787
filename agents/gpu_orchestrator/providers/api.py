"""One vendor's HTTP API: a key that nobody sees, a limit of time and size, and failures as the closed set of errors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from agents.gpu_orchestrator.providers.provider import AuthFailed, ProviderError, QuotaExceeded, RateLimited, Unknown

TIMEOUT_S = 30.0
"""For a whole call. Vendors answer launches within about ten seconds; one that drips a byte a second must not hold a reaper."""
CONNECT_S = 10.0
BODY_BYTES = 32 * 2**20
"""A thousand asks of a marketplace take about 3 MB; more than ten times that is damage."""
LONGEST_WAIT_S = 3600.0
"""A vendor that asks for longer is asked again after an hour all the same."""
REFUSALS = frozenset({400, 404, 405, 409, 410, 413, 415, 422})
"""Statuses with which the vendors' specifications refuse a request that did nothing."""
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
"""Failures before the first byte of the request left this machine."""
SHORTEST_SECRET = 6
"""Shorter values of a worker's environment are numbers and flags, which stand in any sentence."""

RowT = TypeVar("RowT", bound=BaseModel)


class Row(BaseModel):
    """A part of an answer: the fields that are used; vendors add others at any time."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


def _or_none(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except ValueError:
        return None


OR_NONE = WrapValidator(_or_none)
"""For what is only told of an instance: it must be seen, and ended, even when its price or date cannot be read."""


@dataclass(frozen=True)
class Answer:
    """What came back. `body` None: there is none, or (above 399) none that can be read."""

    status: int
    body: Any
    retry_after: float | None

    def text(self, *names: str) -> str:
        """Return the first of these fields that the body has as text."""
        for name in names:
            value = self.body.get(name) if isinstance(self.body, dict) else None
            if isinstance(value, str):
                return value
        return ""


class _Bearer(httpx2.Auth):
    """Puts the key into the Authorization header, the one place where it ever stands."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request


class Api:
    """An HTTP API that speaks JSON.

    Args:
        provider: name for errors.
        url: where its paths begin.
        clock: gives the time, for Retry-After as a date.
        pause: seconds to wait after 429 where the answer names none.
        transport: instead of the network, for tests.
    """

    def __init__(
        self, provider: str, url: str, key: SecretStr, clock: Callable[[], datetime], *, pause: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self.provider = provider
        self.clock = clock
        self._key = key
        self.fingerprint = fingerprint(key)
        self._pause = pause
        self._url = url.rstrip("/")
        loopback = httpx2.URL(url).host in ("127.0.0.1", "::1", "localhost")
        self._client = httpx2.AsyncClient(
            auth=_Bearer(key), transport=transport, follow_redirects=False,  # a redirect would take the key elsewhere
            trust_env=not loopback,  # the user's proxies are for the world, and not for what listens here
            timeout=httpx2.Timeout(TIMEOUT_S, connect=CONNECT_S), headers={"Accept": "application/json", "User-Agent": "meetara-lab"},
        )  # fmt: skip

    async def close(self) -> None:
        await self._client.aclose()

    async def call(
        self, method: str, path: str, *, effect: bool = False, params: Mapping[str, str | int] | None = None, body: object = None
    ) -> Answer:
        """Make one call.

        Args:
            effect: whether it may start, change or end something, so that a lost answer leaves doubt.

        Raises:
            Unknown: there is no answer, or one below 400 that is not JSON; sure where the request was never sent.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with self._client.stream(method, self._url + path, params=params, json=body) as response:
                    content = await self._content(response, effect)
        except NEVER_SENT as error:
            raise Unknown(self.provider, f"it cannot be reached ({type(error).__name__})", sure=True) from None
        except TimeoutError:
            raise Unknown(self.provider, f"no answer within {TIMEOUT_S:g} s", sure=not effect) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # without its cause, which holds the request
            raise Unknown(self.provider, f"no answer ({type(error).__name__})", sure=not effect) from None
        status = response.status_code
        body = self._json(content, response.headers.get("content-type", ""))
        if 200 <= status < 300 and content and body is None:
            raise Unknown(self.provider, f"the answer {status} is not JSON", sure=not effect)
        return Answer(status, body, self._retry_after(response.headers))

    def read(self, model: type[RowT], answer: Answer, *, effect: bool = False) -> RowT:
        """Return the body of a good answer.

        Raises:
            Unknown: it has not the form that the specification tells.
        """
        try:
            return model.model_validate(answer.body)
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "its top level"
            raise Unknown(self.provider, f"the answer cannot be read at {where}", sure=not effect) from None

    def rows(self, model: type[RowT], raw: Iterable[object]) -> list[RowT]:
        """Return the rows of a marketplace that can be read; strangers write them, so one may be bad.

        Raises:
            Unknown: none of them can be read.
        """
        good, bad = [], 0
        for row in raw:
            try:
                good.append(model.model_validate(row))
            except ValidationError:
                bad += 1
        if bad and not good:
            raise Unknown(self.provider, f"none of the {bad} rows of the answer can be read", sure=True)
        return good

    def error(self, answer: Answer, reason: str, effect: bool) -> ProviderError:
        """Return the error that a status means at every vendor."""
        match answer.status:
            case 401 | 403:
                return AuthFailed(self.provider, reason)
            case 402:
                return QuotaExceeded(self.provider, reason)
            case 429:
                return RateLimited(self.provider, reason, answer.retry_after if answer.retry_after is not None else self._pause)
        return Unknown(self.provider, reason, sure=answer.status in REFUSALS or not effect)

    def quote(self, said: str, secrets: Iterable[str] = ()) -> str:
        """Return a vendor's words in one short line, without the key and other secrets."""
        for secret in (self._key.get_secret_value(), *secrets):
            if len(secret) >= SHORTEST_SECRET:
                said = said.replace(secret, "…")
        return " ".join(re.sub(r"[^\x20-\x7e…]", " ", said).split())[:200]

    async def _content(self, response: httpx2.Response, effect: bool) -> bytes:
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > BODY_BYTES:
                raise Unknown(self.provider, f"the answer is larger than {BODY_BYTES} bytes", sure=not effect)
        return bytes(content)

    @staticmethod
    def _json(content: bytes, kind: str) -> Any:
        """Return the body, numbers exactly as they were written; None: it is not JSON."""
        if not re.fullmatch(r"application/([\w.-]+\+)?json", kind.partition(";")[0].strip().lower()):
            return None
        try:
            return json.loads(content, parse_float=Decimal, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return None

    def _retry_after(self, headers: httpx2.Headers) -> float | None:
        """Return the seconds of Retry-After (RFC 9110: seconds or a date), between 1 and LONGEST_WAIT_S."""
        told = headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told):
            seconds = float(told)
        else:
            try:
                seconds = (parsedate_to_datetime(told) - self.clock()).total_seconds()
            except (ValueError, TypeError):  # TypeError: a date without a zone
                return None
        return min(max(seconds, 1.0), LONGEST_WAIT_S)


def fingerprint(key: SecretStr) -> str:
    """Return 64 bits of a key's SHA-256: vendors' keys are long random strings, so no guess meets one and nothing leads back."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:16]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
