"""gpuhunt's own code reads the files."""

import os
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from agents.gpu_orchestrator.market.catalogue import FOLDER, catalogue, colab
from configs.providers import Colab
from protocol import Code, LabError
from tests.agents.gpu_orchestrator.market.samples import GIB

HEAD = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,gpu_vendor,flags,cpu_arch,provider_data\n"
SEEN = datetime(2026, 3, 1, tzinfo=UTC)
SHARED = os.environ.get("MEETARA_SHARED_DATA") or Path(__file__).resolve().parents[4].parent / "shared" / "data"
REAL = Path(SHARED) / "catalogs" / "gpuhunt"


def write(folder: Path, name: str, *rows: str) -> None:
    path = folder / f"{name}.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    os.utime(path, (SEEN.timestamp(), SEEN.timestamp()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def test_without_the_variable_nothing_is_read_or_fetched(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    assert catalogue() == []


def test_files_become_listings_cheapest_first_under_the_labs_own_names(folder):
    write(
        folder, "lambdalabs", "gpu_8x_a100,us-1,15.92,124,1800.0,8,A100,80,False,,nvidia,,x86,{}",
        "gpu_1x_a10,us-1,0.75,30,200.0,1,A10,24,False,1400.0,nvidia,,x86,{}",
    )  # fmt: skip
    write(folder, "runpod", "NVIDIA RTX 4090,CA,0.34,8,24.0,1,RTX4090,24,True,,nvidia,,x86,{}")
    write(folder, "vastai", "x,y,0.01,8,24.0,1,RTX4090,24,True,,nvidia,,x86,{}")  # gpuhunt has no such file
    found = catalogue()
    assert [(item.provider, item.gpu, item.gpus, item.price_micros_per_hour, item.spot) for item in found] == [
        ("runpod", "RTX 4090", 1, 340_000, True), ("lambda", "A10", 1, 750_000, False), ("lambda", "A100-80GB", 8, 15_920_000, False),
    ]  # fmt: skip
    assert found[1].id == "gpu_1x_a10:us-1" and found[1].disk_bytes == 1400 * 10**9 and found[1].gpu_memory_bytes == 24 * GIB
    assert {item.source for item in found} == {"catalogue"} and {item.seen_at for item in found} == {SEEN}


def test_a_missing_folder_or_a_broken_file_names_itself(folder, monkeypatch):
    (folder / "runpod.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match=r"runpod\.csv cannot be read") as caught:
        catalogue()
    assert (caught.value.code, caught.value.data["field"]) == (Code.CONFIGURATION, FOLDER)
    monkeypatch.setenv(FOLDER, str(folder / "nowhere"))
    with pytest.raises(LabError, match="does not exist"):
        catalogue()


def test_a_real_catalogue_is_read(monkeypatch):
    if not REAL.is_dir():
        pytest.skip("MEETARA_SHARED_DATA names no folder with catalogs/")
    monkeypatch.setenv(FOLDER, str(REAL))
    found = catalogue()
    assert len(found) == 374 and {item.provider for item in found} == {"lambda"}
    prices = [item.price_micros_per_hour for item in found]
    assert prices == sorted(prices)
    assert {"A100", "A10", "V100", "H100"} <= {item.gpu for item in found}


def test_colab_has_a_price_only_with_units_dollars_and_a_date():
    prices = Colab(usd_per_unit=0.1, looked_up=date(2026, 3, 1), units_per_hour={"T4": 1.96, "L4": None})
    known, unknown = colab(prices)
    assert (known.gpu, known.price_micros_per_hour, known.rejected, known.source) == ("T4", 196_000, None, "configs")
    assert known.seen_at == SEEN
    assert unknown.price_micros_per_hour is None and "its price is not known" in unknown.rejected
    (undated,) = colab(Colab(usd_per_unit=0.1, units_per_hour={"T4": 1.96}))
    assert undated.price_micros_per_hour is None
