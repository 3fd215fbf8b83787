"""Training under real limits of memory."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.gguf_factory import machine, recovery
from agents.gguf_factory.recovery import Action
from agents.gguf_factory.rows import Rows
from protocol import Code
from tests.agents.gguf_factory import forked
from tests.agents.gguf_factory.tiny import rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's here")
BATCH = 512  # rows of 24 tokens: 80 MB of activations, 0.1 s a step
LIMITS = {
    "data": (resource.RLIMIT_DATA, True), "address space": (resource.RLIMIT_AS, True), "peft": (resource.RLIMIT_DATA, False),
}  # fmt: skip


def trained(folder: Path, limit: int, spare: int, data: Rows, flat: bool = True) -> dict[str, Any]:
    folder.mkdir()
    assert forked.run(forked.train_within, folder, limit, spare, data, flat) == 0
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("free") / "run", 0, 0, rows(BATCH))


@pytest.mark.parametrize(("limit", "flat"), LIMITS.values(), ids=LIMITS.keys())
def test_what_does_not_fit_is_computed_in_smaller_parts_of_the_same_batch(
    tmp_path: Path, free: dict[str, Any], limit: int, flat: bool
) -> None:
    tight = trained(tmp_path / "tight", limit, 16_000_000, rows(BATCH), flat)
    assert free["micro_batch"] == BATCH and free["notes"] == []
    assert 8 <= tight["micro_batch"] <= BATCH // 4
    assert tight["notes"][0] == f"out of memory at step 0: micro-batch is now {BATCH // 2} rows"
    assert tight["losses"] == pytest.approx(free["losses"], rel=1e-5)
    assert tight["held_out"][-1]["loss"] == pytest.approx(free["held_out"][-1]["loss"], rel=1e-5)
    assert tight["tokens"] == free["tokens"], "the effective batch is kept"


def test_one_row_that_does_not_fit_is_an_error_that_says_so(tmp_path: Path) -> None:
    one = rows(1)
    long = {name: torch.cat([getattr(one, name)] * 128, 1) for name in ("input_ids", "labels", "position_ids")}
    error = trained(tmp_path / "long", resource.RLIMIT_DATA, 8_000_000, Rows(**long))["error"]
    assert error["code"] == Code.NO_CAPACITY and error["data"]["retry"] == "other-worker"
    assert "one row of 3072 tokens does not fit into memory at step 0" in error["message"]
    assert "more memory" in error["data"]["advice"]


def test_a_limit_makes_what_the_machine_does_not_have_an_error_and_ends_with_its_context() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with machine.memory_limit(least=1_000_000, available=50_000_000):
        torch.empty(20_000_000, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="allocate memory") as caught:
            torch.empty(200_000_000, dtype=torch.uint8)
        assert recovery.action(caught.value) is Action.HALVE
        with machine.memory_limit(least=10**12):  # a wider one inside changes nothing
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] < 10**12
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with machine.memory_limit(least=400_000_000, available=0):
        torch.empty(200_000_000, dtype=torch.uint8)


@pytest.mark.parametrize(("files", "left"), [
    ({"max": "1000", "current": "900", "stat": "anon 500\ninactive_file 300"}, 400),
    ({"max": "max", "current": "900", "stat": "anon 500"}, None), ({}, None),
])  # fmt: skip
def test_a_containers_limit_counts_and_what_its_cache_could_give_back(
    tmp_path: Path, files: dict[str, str], left: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    found = machine.available_bytes(tmp_path)
    assert found == left if left is not None else found > 1_000_000
