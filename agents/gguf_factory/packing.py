"""Lay samples into rows of fixed length so that few computed tokens are padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.gguf_factory.chat import Sample

IGNORED = -100  # torch's cross_entropy leaves labels of this value out

Array = NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """Rows of tokens, all arrays int32 [rows, length]. Labels are not shifted; IGNORED where nothing is learned.

    Position ids restart at 0 for each sample; the padding of a row is a sample of its own.
    """

    input_ids: Array
    labels: Array
    position_ids: Array
    real: int

    @property
    def fill(self) -> float:
        """Real tokens ÷ computed tokens."""
        return self.real / self.input_ids.size if self.input_ids.size else 0.0


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Place items by first-fit decreasing; equal lengths keep their order, so the result is one and the same.

    A tree over the bins' free space finds the first that fits in logarithmic time.

    Raises:
        ValueError: an item is empty or longer than `capacity`.
    """
    if any(not 0 < length <= capacity for length in lengths):
        raise ValueError(f"lengths must lie in 1..{capacity}")
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    free = [capacity] * (2 * leaves)
    result: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        node = 1
        while node < leaves:
            node = 2 * node if free[2 * node] >= lengths[item] else 2 * node + 1
        place = node - leaves
        if place == len(result):
            result.append([])
        result[place].append(item)
        free[node] -= lengths[item]
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return result


def pack(samples: Iterable[Sample], length: int, pad: int) -> Packed:
    """Pack samples of at most `length` tokens; `pad` is the id that fills the rest.

    Raises:
        ValueError: a sample is empty or too long.
    """
    items = list(samples)
    rows = bins([len(sample.ids) for sample in items], length)
    shape = (len(rows), length)
    input_ids = np.full(shape, pad, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    position_ids = np.zeros(shape, np.int32)
    for row, members in enumerate(rows):
        at = 0
        for member in members:
            ids = np.asarray(items[member].ids, np.int32)
            here = slice(at, at + len(ids))
            input_ids[row, here] = ids
            labels[row, here] = np.where(items[member].supervised, ids, IGNORED)
            position_ids[row, here] = np.arange(len(ids))
            at += len(ids)
        position_ids[row, at:] = np.arange(length - at)
    return Packed(input_ids, labels, position_ids, sum(len(sample.ids) for sample in items))


def save(packed: Packed, path: Path) -> None:
    """Write the three arrays as safetensors."""
    from safetensors.numpy import save_file

    arrays = {"input_ids": packed.input_ids, "labels": packed.labels, "position_ids": packed.position_ids}
    save_file(arrays, str(path))
