"""What exists beyond the providers' own words: gpuhunt's catalogue files, and the prices in configs/."""

from __future__ import annotations

import os
from datetime import UTC, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING

from agents.gpu_orchestrator.market.gpus import GIB, GPUS, gpu_name
from configs.providers import Colab, micros
from protocol import Code, LabError
from protocol.machine import Listing

if TYPE_CHECKING:
    from gpuhunt import CatalogItem

FOLDER = "GPUHUNT_CATALOG_DIR"
"""gpuhunt's own variable. Without it no catalogue is read: a lab does not fetch files that nobody asked for."""
FILES = {
    "aws": "aws", "azure": "azure", "cloudrift": "cloudrift", "gcp": "gcp", "lambdalabs": "lambda", "nebius": "nebius",
    "oci": "oci", "runpod": "runpod", "verda": "verda",
}  # fmt: skip
"""gpuhunt 0.1.34's providers that have catalogue files (its OFFLINE_PROVIDERS), and what they are called here."""


def catalogue() -> list[Listing]:
    """Return what the catalogue files of FOLDER list, cheapest first; each file is as old as its time of change.

    Raises:
        LabError: CONFIGURATION; the folder is not there, or a file cannot be read.
    """
    named = os.environ.get(FOLDER)
    if not named:
        return []
    folder = Path(named)
    if not folder.is_dir():
        raise LabError(
            Code.CONFIGURATION, f"{FOLDER}: the folder {folder} does not exist.",
            advice="Correct or unset the environment variable.", field=FOLDER, file=str(folder),
        )  # fmt: skip
    found = [listing for name in FILES if (folder / f"{name}.csv").is_file() for listing in _read(folder / f"{name}.csv")]
    return sorted(found, key=lambda listing: (listing.price_micros_per_hour or 0, listing.provider, listing.id))


def _read(file: Path) -> list[Listing]:
    from gpuhunt import Catalog  # 0.3 s and requests, which a lab without a catalogue does not need

    try:
        seen = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        return [_listing(item, seen) for item in Catalog(auto_reload=False).query(provider=file.stem)]
    except (OSError, KeyError, ValueError, TypeError) as error:  # TypeError: a row with fewer columns than the first
        raise LabError(
            Code.CONFIGURATION, f"the catalogue {file} cannot be read: {error}.",
            advice=f"Fetch it again, or remove it; {FOLDER} names the folder.", field=FOLDER, file=str(file),
        ) from error  # fmt: skip


def _listing(item: CatalogItem, seen: datetime) -> Listing:
    memory = round((item.gpu_memory or 0) * GIB)
    return Listing(
        provider=FILES[item.provider], id=":".join(part for part in (item.instance_name, item.location) if part) or "?",
        gpu=gpu_name(item.gpu_name or "", memory), gpus=item.gpu_count, gpu_memory_bytes=memory, cores=item.cpu,
        memory_bytes=round(item.memory * GIB), disk_bytes=round(item.disk_size * 1e9) if item.disk_size else None,
        region=item.location, spot=item.spot, price_micros_per_hour=micros(item.price), source="catalogue", seen_at=seen,
    )  # fmt: skip


def colab(prices: Colab) -> list[Listing]:
    """Return Colab's GPUs: units per hour x dollars per unit where both are known and dated, else without a price."""
    seen = datetime.combine(prices.looked_up, time(), UTC) if prices.looked_up else datetime.fromtimestamp(0, UTC)
    listings = []
    for written, units in prices.units_per_hour.items():
        name = gpu_name(written)
        known = prices.usd_per_unit is not None and units is not None and prices.looked_up is not None
        listings.append(Listing(
            provider="colab", id=written, gpu=name, gpus=1, region="",
            gpu_memory_bytes=GPUS[name].memory_gib * GIB if name in GPUS else 0,
            price_micros_per_hour=micros((prices.usd_per_unit or 0) * (units or 0)) if known else None,
            source="configs", seen_at=seen,
            rejected=None if known else "its price is not known: configs/provider_configs.json has no price with a date",
        ))  # fmt: skip
    return listings
