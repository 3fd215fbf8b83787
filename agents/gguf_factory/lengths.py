"""How long the rows of a data set are: tokens by a base's tokenizer, turns, and how both are spread."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from agents.gguf_factory import base as bases
from agents.gguf_factory import data, lifeline
from agents.gguf_factory.dataset import Row
from agents.gguf_factory.light import LightTokenizer
from protocol.datacheck import Bin, Spread, Tokens, Turns

BARS = 24  # of a histogram; they fit a terminal beside their numbers
BESIDE_ROWS = 5000  # below, a process would take longer to start than to count
MOST_BESIDE = 3
PART_ROWS = 1000

Counted = Callable[[], tuple[list[data.Size], list[tuple[int, str]]]]
"""Waits for the sizes of rows, and for line and reason of rows that the chat template refuses."""


def sizes_of(rows: Sequence[Row], folder: Path, length: int) -> Counted:
    """Begin to count the tokens of rows, in processes beside this one where there are many.

    Args:
        rows: what to count.
        folder: the base, whose tokenizer and template count.
        length: sequence_length.
    """
    if len(rows) < BESIDE_ROWS:
        tokenizer = LightTokenizer(bases.read(folder))
        return lambda: data.attempt(rows, lambda row: data.size(tokenizer, row, length))
    workers = max(1, min(MOST_BESIDE, (os.cpu_count() or 1) - 1))
    # spawned, not forked: numpy's threads run in this process
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (folder, os.getpid()))
    parts = [rows[at : at + PART_ROWS] for at in range(0, len(rows), PART_ROWS)]
    pending = [pool.submit(_count, part, length) for part in parts]

    def result() -> tuple[list[data.Size], list[tuple[int, str]]]:
        with pool:
            done = [future.result() for future in pending]
        return [size for sizes, _ in done for size in sizes], [line for _, refused in done for line in refused]

    return result


_tokenizer: LightTokenizer | None = None  # of a process beside


def _begin(folder: Path, parent: int) -> None:
    global _tokenizer
    lifeline.die_with_parent()
    if os.getppid() != parent:  # it was killed while this process was starting, and nothing will ever come
        os._exit(1)
    _tokenizer = LightTokenizer(bases.read(folder))


def _count(rows: Sequence[Row], length: int) -> tuple[list[data.Size], list[tuple[int, str]]]:
    assert _tokenizer is not None
    tokenizer = _tokenizer
    return data.attempt(rows, lambda row: data.size(tokenizer, row, length))


def tokens(found: Sequence[data.Size], base: str, length: int) -> Tokens:
    """Sum up what was counted on a base: tokens, their spread, and what sequence_length costs."""
    return Tokens(
        base=base, sequence_length=length, total=sum(size.tokens for size in found),
        row=spread([size.tokens for size in found]), cut_rows=sum(size.tokens > length for size in found),
        truncated=sum(size.truncated for size in found), skipped=sum(size.skipped for size in found),
        continued=sum(size.continued for size in found),
    )  # fmt: skip


def turns(rows: Sequence[Row]) -> Turns | None:
    """Count answers and system turns; None without rows."""
    if not rows:
        return None
    answers = [sum(turn["role"] == "assistant" for turn in row.messages) for row in rows]
    return Turns(
        answers=spread(answers), several=sum(count > 1 for count in answers),
        system=sum(row.messages[0]["role"] == "system" for row in rows),
    )  # fmt: skip


def spread(values: Sequence[int]) -> Spread:
    """Return quantiles and a histogram of at least one value."""
    ordered = sorted(values)
    least, most = ordered[0], ordered[-1]
    edges = sorted({least, *(round(least + (most - least + 1) * (step / BARS)) for step in range(1, BARS)), most + 1})
    if least > 0 and most > 4 * statistics.median(ordered):  # a long tail: equal bars would show one of them
        factor = ((most + 1) / least) ** (1 / BARS)
        edges = sorted({least, *(math.ceil(least * factor**step) for step in range(1, BARS)), most + 1})
    bins = [Bin(low=low, high=high - 1, rows=0) for low, high in itertools.pairwise(edges)]
    at = 0
    for value in ordered:
        while value > bins[at].high:
            at += 1
        bins[at].rows += 1
    return Spread(
        least=least, median=round(statistics.median(ordered)), p95=ordered[math.ceil(0.95 * len(ordered)) - 1], most=most,
        bins=bins,
    )  # fmt: skip
