"""Near duplicates: rows that share most of their runs of three words. MinHash finds candidates, counting decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORDS = 3  # of a run; two would take common phrases for likeness, five would miss a changed word in short answers
LIKE = 0.8  # Jaccard: runs in both ÷ runs in either; the usual threshold (Lee et al. 2021, arXiv 2107.06499)
LEAST_RUNS = 8  # rows with fewer are compared as a whole only: half of "How do I …?" is alike anyway
HASHES, BANDS = 64, 16  # four hashes to a band: two rows of likeness 0.8 meet in a band with 99.98 %, of 0.3 with 12 %
BATCH_ROWS = 512  # hashed at once, so that the arrays stay in the cache

Numbers = NDArray[np.uint64]


class Twin(NamedTuple):
    """A row that nearly repeats an earlier one, both by number from 0, and how alike they are."""

    row: int
    earlier: int
    likeness: float


class Twins:
    """Rows as they come, and at the end which of them nearly repeat an earlier one. About 1 kB is kept of each."""

    def __init__(self) -> None:
        seeds = np.random.default_rng(0)
        self._factors = seeds.integers(1, 2**63, HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = seeds.integers(0, 2**63, HASHES, dtype=np.uint64)
        self._words: dict[str, int] = {}
        self._seen = 0
        self._rows: list[int] = []
        self._runs: list[Numbers] = []
        self._signatures: list[Numbers] = []

    def add(self, words: Sequence[str]) -> None:
        """Take the words of the next row."""
        known = self._words
        found = _runs([known.setdefault(word, len(known)) for word in words])
        if len(found) >= LEAST_RUNS:
            self._rows.append(self._seen)
            self._runs.append(found)
            if len(self._runs) % BATCH_ROWS == 0:
                self._sign()
        self._seen += 1

    def _sign(self) -> None:
        batch = self._runs[sum(map(len, self._signatures)) :]
        if batch:
            self._signatures.append(_signatures(batch, self._factors, self._offsets))

    def found(self) -> list[Twin]:
        """Return the rows that nearly repeat an earlier one, each with the first such as is found."""
        self._sign()
        if not self._rows:
            return []
        best: dict[int, Twin] = {}
        for later, earlier in _candidates(np.concatenate(self._signatures)):
            if later not in best and (likeness := _likeness(self._runs[later], self._runs[earlier])) >= LIKE:
                best[later] = Twin(self._rows[later], self._rows[earlier], likeness)
        return [best[later] for later in sorted(best)]


def _runs(ids: list[int]) -> Numbers:
    """Return the sorted, different hashes of all runs of three words."""
    if len(ids) < WORDS:
        return np.empty(0, np.uint64)
    at = np.asarray(ids, np.uint64)
    mixed = np.zeros(len(ids) - WORDS + 1, np.uint64)
    for place in range(WORDS):
        mixed = (mixed ^ at[place : len(ids) - WORDS + 1 + place]) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _signatures(batch: list[Numbers], factors: Numbers, offsets: Numbers) -> Numbers:
    flat = np.concatenate(batch)
    starts = np.cumsum([0, *(len(found) for found in batch[:-1])])
    result = np.empty((len(batch), HASHES), np.uint64)
    for number in range(HASHES):
        result[:, number] = np.minimum.reduceat((flat * factors[number] + offsets[number]) >> np.uint64(16), starts)
    return result


def _candidates(signatures: Numbers) -> Iterable[tuple[int, int]]:
    """Yield pairs (later, earlier) that are equal in a band: each row with its bucket's first and with the one before."""
    size = HASHES // BANDS
    for band in range(BANDS):
        key = np.zeros(len(signatures), np.uint64)
        for column in range(band * size, (band + 1) * size):
            key = (key ^ signatures[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(31)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if not len(same):
            continue
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        first = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))
        for at in same.tolist():
            later = int(order[at])
            yield later, int(order[first[at]])
            if first[at] != at - 1:
                yield later, int(order[at - 1])


def _likeness(one: Numbers, other: Numbers) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
