"""Packed rows of tokens in memory: several samples to a row, position ids restarting at each sample's first token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from protocol import Code, LabError

IGNORED = -100  # a label that is not learned; torch's own convention


@dataclass(frozen=True)
class Batch:
    """Rows cut to their longest. All [rows, length]; `sample` numbers the samples of a row, so that two tokens may
    see each other only where it is equal. `tokens` counts what is not padding."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    tokens: int

    @property
    def computed(self) -> int:
        """Tokens that the network computes, padding included."""
        return self.input_ids.numel()

    @property
    def supervised(self) -> Tensor:
        """[rows, length - 1], true where the hidden state predicts a label of its own sample."""
        return (self.labels[:, 1:] != IGNORED) & (self.position_ids[:, 1:] != 0)

    def mask(self, dtype: torch.dtype = torch.float32, window: int | None = None) -> Tensor:
        """Return the additive attention mask [rows, 1, length, length]: causal, and closed between samples.

        With a `window`, a token sees itself and the `window` - 1 tokens before it.
        """
        sample = (self.position_ids == 0).cumsum(1)
        length = self.input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=sample.device).tril()
        if window is not None:
            causal = causal.triu(1 - window)
        open_ = (sample[:, :, None] == sample[:, None, :]) & causal
        return torch.zeros(open_.shape, dtype=dtype, device=sample.device).masked_fill_(~open_, -torch.inf)[:, None]

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.labels.to(device), self.position_ids.to(device), self.tokens)


class Rows:
    """The rows of one file. A row ends with its last supervised token: what follows cannot change any loss."""

    def __init__(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> None:
        self.input_ids = input_ids.long()
        self.labels = labels.long()
        self.position_ids = position_ids.long()
        columns = torch.arange(1, self.labels.shape[1] + 1)
        self.lengths = ((self.labels != IGNORED) * columns).amax(1)
        wanted = (self.labels[:, 1:] != IGNORED) & (self.position_ids[:, 1:] != 0)
        self.supervised = wanted.sum(1)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def tokens(self) -> list[int]:
        """Real tokens of each row."""
        return self.lengths.tolist()

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read a file that the data stage wrote.

        Raises:
            LabError: BAD_DATA, the file is missing or is not what the data stage writes, or has nothing to learn.
        """
        advice = "Run the data stage again."
        try:
            tensors = load_file(path)
            rows = cls(tensors["input_ids"], tensors["labels"], tensors["position_ids"])
        except (OSError, SafetensorError, KeyError) as error:
            raise LabError(
                Code.BAD_DATA, f"{path} does not hold packed rows ({error}).", advice=advice, file=str(path)
            ) from error
        if not len(rows) or not int(rows.supervised.sum()):
            raise LabError(Code.BAD_DATA, f"{path} has no supervised token.", advice=advice, file=str(path))
        return rows

    def first(self, count: int) -> Rows:
        """Return at most the first `count` rows."""
        return Rows(self.input_ids[:count], self.labels[:count], self.position_ids[:count])

    def take(self, indices: Sequence[int]) -> Batch:
        """Return the rows, without the columns that are padding in all of them."""
        at = torch.tensor(list(indices))
        length = max(2, int(self.lengths[at].max()))
        tokens = int(self.lengths[at].sum())
        return Batch(self.input_ids[at, :length], self.labels[at, :length], self.position_ids[at, :length], tokens)


@dataclass(frozen=True)
class Schedule:
    """Which rows each optimiser step takes, and how fast it learns over `steps` steps."""

    batches: list[list[int]]
    steps: int
    warmup: int
    decay: str

    @classmethod
    def plan(
        cls,
        tokens: Sequence[int],
        *,
        batch: int,
        max_steps: int | None,
        max_epochs: float | None,
        max_tokens: int | None,
        warmup_steps: int,
        decay: str,
        seed: int,
    ) -> Schedule:
        """Plan the steps over rows of which row i has `tokens[i]` real tokens.

        Each epoch is shuffled anew; the rows of all epochs form one stream that is cut into batches. It ends at
        `max_steps`, after `max_epochs`, or before the step that would pass `max_tokens`, whichever comes first (None:
        no such limit), with at least one step. Warmup is at most a tenth of the steps.

        Raises:
            LabError: CONFIGURATION, none of the three limits is given.
        """
        if max_steps is None and max_epochs is None and max_tokens is None:
            raise LabError(
                Code.CONFIGURATION,
                "max_steps, max_epochs and max_tokens are all null, so training would never end.",
                advice="Give at least one of them.",
                field="parameters.max_steps",
            )
        limit = math.inf if max_epochs is None else max(1, round(max_epochs * len(tokens)))
        if max_steps is not None:
            limit = min(limit, max_steps * batch)
        batches: list[list[int]] = []
        total = 0
        for rows in cut(shuffled(len(tokens), seed), batch, limit):
            total += sum(tokens[row] for row in rows)
            if max_tokens is not None and total > max_tokens and batches:
                break
            batches.append(rows)
        return cls(batches, len(batches), min(warmup_steps, math.ceil(len(batches) / 10)), decay)

    def control(self, rows: int, *, steps: int, batch: int, seed: int) -> Schedule:
        """Plan the first `steps` steps over `rows` other rows at the learning rates of this schedule."""
        return replace(self, batches=list(cut(shuffled(rows, seed), batch, steps * batch)))

    def scale(self, step: int) -> float:
        """Return the share of the learning rate for a step that counts from 0: warmup, then decay to 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.decay == "constant":
            return 1.0
        return 1.0 - done if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def shuffled(rows: int, seed: int) -> Iterator[int]:
    """Yield row numbers for ever, each epoch in its own order."""
    for epoch in itertools.count():
        yield from torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


def cut(stream: Iterator[int], size: int, limit: float) -> Iterator[list[int]]:
    """Cut the first `limit` numbers of a stream into lists of `size`; the last may be shorter."""
    left = limit
    while left > 0:
        yield list(itertools.islice(stream, int(min(size, left))))
        left -= size
