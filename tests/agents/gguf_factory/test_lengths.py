from __future__ import annotations

from pathlib import Path

import pytest

from agents.gguf_factory import data, dataset, lengths
from tests.agents.gguf_factory.bases import QA, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


def test_tokens_are_counted_alike_in_a_process_beside(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = dataset.read(str(QA)).rows[:60]
    here = lengths.sizes_of(some, base, 64)()
    monkeypatch.setattr(lengths, "BESIDE_ROWS", 1)
    monkeypatch.setattr(lengths, "PART_ROWS", 25)
    assert lengths.sizes_of(some, base, 64)() == here
    assert data.Sizes.of(here[0]).tokens == sum(sum(size.lengths) for size in here[0]) and not here[1]


@pytest.mark.parametrize("values", [[5], [3, 3, 3], [1, 2, 900], list(range(1, 2000)), [7, 8, 9, 10_000], [1] * 50 + [2]])
def test_a_histogram_holds_every_value_once(values: list[int]) -> None:
    spread = lengths.spread(values)
    assert sum(one.rows for one in spread.bins) == len(values) and len(spread.bins) <= lengths.BARS
    assert spread.bins[0].low == spread.least == min(values) and spread.bins[-1].high == spread.most == max(values)
    assert all(earlier.high + 1 == later.low for earlier, later in zip(spread.bins, spread.bins[1:], strict=False))
