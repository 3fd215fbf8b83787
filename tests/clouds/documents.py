"""Which document tells what a vendor's exchanges look like, and where it is silent about what the vendor does.

What stands here is in docs/clouds.md, with its reasons.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from tests.clouds.http import Exchange
from tests.clouds.specification import Specification, folder


@functools.cache
def documents(vendor: str) -> tuple[Specification, ...]:
    """Return a vendor's documents; empty: their folder is not here."""
    place = folder()
    if place is None:
        return ()
    match vendor:
        case "lambda":  # of 2023, so what is newer is let through: user_data, new words for statuses and errors
            return (Specification(place / "lambda-cloud-v1.openapi.yaml", prefix="/api/v1", silent=frozenset({429, 500}), loose=True),)
        case "runpod":
            return (
                Specification(place / "runpod-rest-v2.openapi.json"),
                Specification(place / "runpod-rest-v1.openapi.json", prefix="/v1", silent=frozenset({401, 429, 500})),
            )
        case "vast":
            return (Specification(place / "vast-api.openapi.yaml", silent=frozenset({401, 404, 429, 500})),)
    raise ValueError(vendor)


def problems(vendor: str, exchanges: Iterable[Exchange]) -> list[str]:
    """Return how exchanges differ from the vendor's documents; what was spoilt on purpose or guessed is left out."""
    found: list[str] = []
    for exchange in exchanges:
        if not exchange.sound or not exchange.response.documented:
            continue
        document = next((document for document in documents(vendor) if document.knows(exchange)), documents(vendor)[0])
        found += document.problems(exchange)
    return sorted(set(found))
