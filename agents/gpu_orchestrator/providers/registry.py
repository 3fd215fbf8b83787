"""Which providers there are.

`lambda`, `runpod` and `vast` are adapters over HTTP, here. Two others need none: `local` are the slots of the factories that are
online, which `fleet` knows by their cards; `colab` is a notebook that a person starts, whose worker dials out and is a factory
like any other (its price per unit stands in configs). Nothing can launch or terminate those from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import httpx2

from agents.gpu_orchestrator.providers.lambda_labs import LambdaLabs
from agents.gpu_orchestrator.providers.provider import Provider
from agents.gpu_orchestrator.providers.runpod import RunPod
from agents.gpu_orchestrator.providers.vast import Vast
from configs.accounts import Account


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def open_providers(
    accounts: Mapping[str, Account], clock: Callable[[], datetime] = now, transport: httpx2.AsyncBaseTransport | None = None
) -> dict[str, Provider]:
    """Return a provider for each account, by name. Nothing is asked of a vendor by this.

    Args:
        accounts: as `configs.accounts.read` gives them: those with a key.
        clock: gives the time of what is seen.
        transport: instead of the network, for tests.
    """
    found: dict[str, Provider] = {}
    for vendor, account in accounts.items():
        url = account.urls[f"{vendor.upper()}_API_URL"]
        match vendor:
            case "lambda":
                found[vendor] = LambdaLabs(account.key, clock, url=url, ssh_key=account.ssh_key, transport=transport)
            case "runpod":
                spot = account.urls["RUNPOD_SPOT_URL"]
                found[vendor] = RunPod(account.key, clock, url=url, spot_url=spot, transport=transport)
            case "vast":
                found[vendor] = Vast(account.key, clock, url=url, transport=transport)
    return found
