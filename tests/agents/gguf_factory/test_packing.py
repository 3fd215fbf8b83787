"""Packing loses no token, keeps samples whole and restarts positions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.gguf_factory.chat import Sample
from agents.gguf_factory.packing import IGNORED, bins, pack, save

CAPACITY = 32
PAD = 0
sample = st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=CAPACITY).map(
    lambda pairs: Sample([token for token, _ in pairs], [learned for _, learned in pairs])
)


@given(st.lists(sample, min_size=1, max_size=40))
def test_each_sample_comes_back_whole(samples: list[Sample]) -> None:
    packed = pack(samples, CAPACITY, PAD)
    found = []
    for ids, labels, positions in zip(packed.input_ids, packed.labels, packed.position_ids, strict=True):
        starts = [*np.flatnonzero(positions == 0), CAPACITY]
        for start, end in itertools.pairwise(starts):
            assert (positions[start:end] == np.arange(end - start)).all()
            part = ids[start:end].tolist()
            if part[0] == PAD:
                assert set(part) == {PAD} and (labels[start:end] == IGNORED).all()
                continue
            learned = labels[start:end] != IGNORED
            assert (labels[start:end][learned] == ids[start:end][learned]).all()
            found.append((part, learned.tolist()))
    assert sorted(found) == sorted((s.ids, s.supervised) for s in samples)
    assert packed.real == sum(len(s.ids) for s in samples)
    assert packed.fill == packed.real / packed.input_ids.size


def first_fit_by_search(lengths: list[int]) -> list[list[int]]:
    result: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for members in result:
            if sum(lengths[other] for other in members) + lengths[item] <= CAPACITY:
                members.append(item)
                break
        else:
            result.append([item])
    return result


@given(st.lists(st.integers(1, CAPACITY), max_size=100))
def test_the_tree_finds_what_a_search_finds(lengths: list[int]) -> None:
    assert bins(lengths, CAPACITY) == first_fit_by_search(lengths)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError):
        bins([CAPACITY + 1], CAPACITY)
    with pytest.raises(ValueError):
        bins([0], CAPACITY)


def test_the_file_holds_three_int32_arrays(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    packed = pack([Sample([5, 6], [False, True])], 4, PAD)
    save(packed, tmp_path / "p.safetensors")
    found = load_file(str(tmp_path / "p.safetensors"))
    assert {name: array.tolist() for name, array in found.items()} == {
        "input_ids": [[5, 6, 0, 0]], "labels": [[-100, 6, -100, -100]], "position_ids": [[0, 1, 0, 1]],
    }  # fmt: skip
    assert all(array.dtype == np.int32 for array in found.values())
