"""The benchmark against TRL: what it says without TRL, and what it makes of its figures."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks import training


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -c constraints.txt -e '.\[bench-train\]'"):
        training.run(1, 0)


def test_the_ratio_is_to_the_fastest_configuration_of_each_round() -> None:
    found = {
        ("lab", training.DROPOUT): [200.0, 300.0], ("packed", training.DROPOUT): [90.0, 90.0], ("lab", 0.0): [200.0, 200.0],
        ("a", training.DROPOUT): [100.0, 50.0], ("b", training.DROPOUT): [80.0, 100.0], ("a", 0.0): [50.0, 200.0], ("b", 0.0): [100.0, 50.0],
    }  # fmt: skip
    made = {series.name: series for series in training.series(found, ["a", "b"], [1e-6, 2e-7])}
    assert made["the lab ÷ TRL's best (dropout 0.05)"].values == [2.0, 3.0]
    assert made["the lab ÷ TRL's best (dropout 0.05)"].met is True
    assert made["the lab ÷ TRL's best (no dropout)"].values == [2.0, 1.0]
    assert made["difference of the loss on the same batches"].values == pytest.approx([1.0, 0.2])
