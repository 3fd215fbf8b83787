from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path

import pytest

from agents.gguf_factory.rows import Rows, Schedule
from protocol import LabError
from tests.agents.gguf_factory.tiny import LENGTH, rows

LIMITS = {"batch": 4, "max_steps": 100, "max_epochs": 3.0, "max_tokens": None, "warmup_steps": 100, "decay": "cosine", "seed": 3}


def plan(tokens: list[int], **changes: object) -> Schedule:
    return Schedule.plan(tokens, **{**LIMITS, **changes})  # type: ignore[arg-type]


def test_padding_columns_are_cut_and_only_real_tokens_counted() -> None:
    short = rows().take([1])
    assert short.input_ids.shape == (1, 16) and short.tokens == 16
    both = rows().take([0, 1])
    assert both.input_ids.shape == (2, LENGTH) and both.tokens == 40 and both.computed == 48


def test_each_epoch_takes_every_row_once_in_its_own_order() -> None:
    order = list(chain(*plan([1] * 10).batches))
    epochs = [order[at : at + 10] for at in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] and order == list(chain(*plan([1] * 10).batches))
    assert order != list(chain(*plan([1] * 10, seed=4).batches))


def test_training_ends_at_the_first_limit() -> None:
    assert plan([10] * 10).steps == 8  # 30 rows in batches of 4, the last of 2
    assert plan([10] * 10, max_steps=5).steps == 5
    assert plan([10] * 10, max_tokens=130).steps == 3
    assert plan([10] * 10, max_tokens=1).steps == 1
    assert plan([10] * 10, max_steps=None, max_epochs=None, max_tokens=1000).steps == 25
    with pytest.raises(LabError, match="all null"):
        plan([10], max_steps=None, max_epochs=None)


def test_the_rate_rises_for_at_most_a_tenth_of_the_steps_and_falls_to_nothing() -> None:
    schedule = plan([1] * 400, max_epochs=1.0)
    assert schedule.warmup == 10
    rates = [schedule.scale(step) for step in range(schedule.steps)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:])) and rates[-1] < 0.001
    assert plan([1] * 400, max_epochs=1.0, warmup_steps=3).warmup == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"packed\.safetensors"):
        Rows.load(tmp_path / "packed.safetensors")
