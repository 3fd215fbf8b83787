"""Samples without padding: the tokens of a batch in one list, and attention in which each sample sees itself alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from agents.gguf_factory.rows import IGNORED, Batch

EVEN = 7 / 8  # the shortest ÷ the longest sample that are computed together: at most a quarter of it is padding
TOGETHER = 4_000_000  # scores at once, 16 MB: beyond the cache nothing is gained
KEPT = 256  # tokens of a sample up to which its attention is kept for the backward pass, and not computed again


class Rectangle(NamedTuple):
    """Samples of nearly one length. `asking` and `asked` are their places among the heads of q, and of k and of v."""

    samples: int
    length: int
    asking: slice
    asked: slice
    mask: Tensor


@dataclass(frozen=True)
class Spans:
    """The tokens of a batch that some loss depends on: each sample up to the token before its last label.

    Attention works on heads, [tokens · (q + 2 kv), width]. For it, they are copied into rectangles [samples, kv, tokens,
    q ÷ kv] and [samples, kv, tokens]: `gather` names the head for each place (padding is the first token's, `real` is 0
    there), `scatter` the place of each head.
    """

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    wanted: Tensor
    rectangles: list[Rectangle]
    gather: Tensor
    scatter: Tensor
    real: Tensor
    q: int
    kv: int

    @classmethod
    def of(cls, batch: Batch, q: int, kv: int) -> Spans:
        """Lay out a batch for `q` query heads and `kv` heads of keys."""
        flat, sizes = [], []
        for row, (labels, positions) in enumerate(zip(batch.labels, batch.position_ids, strict=True)):
            learned = (labels != IGNORED).nonzero().flatten().tolist()
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(labels)]
            for start, end in itertools.pairwise(starts):
                if last := max((at for at in learned if start < at < end), default=0):
                    flat.append(torch.arange(start, last) + row * len(labels))
                    sizes.append(last - start)
        index = torch.cat(flat)
        wanted = batch.labels.flatten()[index + 1]
        predicting = (wanted != IGNORED).nonzero().flatten()
        begins = [0, *itertools.accumulate(sizes)]
        group, heads, all_heads = torch.arange(q // kv), torch.arange(kv)[:, None], q + 2 * kv
        queries, keys, real, rectangles = [], [], [], []
        asking = asked = 0
        for members in alike(sizes, q):
            length = sizes[members[0]]
            inside = torch.arange(length) < torch.tensor([[sizes[member]] for member in members])
            tokens = (torch.tensor([[begins[member]] for member in members]) + torch.arange(length)) * inside
            places = tokens[:, None] * all_heads
            queries.append((places[..., None] + heads[..., None] * len(group) + group).flatten())
            keys.append((places + q + heads).flatten())
            real.append(inside[:, None, :, None].expand(-1, kv, -1, len(group)).flatten())
            mask = torch.full((length, length), -torch.inf).triu_(1).repeat_interleave(len(group), 0)
            ends = asking + len(queries[-1]), asked + len(keys[-1])
            rectangles.append(
                Rectangle(len(members), length, slice(asking, ends[0]), slice(asked, ends[1]), mask[None])
            )
            asking, asked = ends
        gather = torch.cat([*queries, *keys, *(part + kv for part in keys)])
        keys_real = [
            part.view(-1, kv, shape.length, len(group))[..., 0].flatten()
            for part, shape in zip(real, rectangles, strict=True)
        ]
        all_real = torch.cat([*real, *keys_real, *keys_real])
        scatter = torch.empty(len(index) * all_heads, dtype=torch.long)
        scatter[gather[all_real]] = all_real.nonzero().flatten()
        return cls(
            batch.input_ids.flatten()[index], batch.position_ids.flatten()[index], predicting, wanted[predicting],
            rectangles, gather, scatter.view(-1, all_heads), torch.cat(real)[:, None].float(), q, kv,
        )  # fmt: skip

    def attend(self, heads: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
        """Return the mixed values [tokens, q · width] of heads [tokens, q + 2 kv, width], and what `backward` needs."""
        taken = heads.flatten(0, 1).index_select(0, self.gather)
        mixed = taken.new_empty(len(self.real), heads.shape[2])
        kept = [taken]
        for shape, q, k, v in self.places(taken):
            shares = torch.baddbmm(shape.mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
            torch.bmm(shares, v, out=mixed[shape.asking].view(q.shape))
            kept.append(shares if shape.length <= KEPT else shares[:0])
        return mixed.index_select(0, self.scatter[:, : self.q].flatten()).view(len(heads), -1), kept

    def backward(self, gradient: Tensor, kept: Sequence[Tensor], scale: float) -> Tensor:
        """Return the gradient of the heads, from that of the mixed values."""
        taken, *all_shares = kept
        width = taken.shape[1]
        every = self.q + 2 * self.kv
        asking = self.gather[: len(self.real)]
        outer = gradient.reshape(-1, width).index_select(0, asking // every * self.q + asking % every).mul_(self.real)
        result = torch.empty_like(taken)
        for (shape, q, k, v), (_, dq, dk, dv), shares in zip(
            self.places(taken), self.places(result), all_shares, strict=True
        ):
            if not len(shares):
                shares = torch.baddbmm(shape.mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
            dout = outer[shape.asking].view(q.shape)
            torch.bmm(shares.transpose(1, 2), dout, out=dv)
            inner = torch.ops.aten._softmax_backward_data(torch.bmm(dout, v.transpose(1, 2)), shares, -1, shares.dtype)
            torch.baddbmm(dq, inner, k, beta=0, alpha=scale, out=dq)
            torch.baddbmm(dk, inner.transpose(1, 2), q, beta=0, alpha=scale, out=dk)
        return result.index_select(0, self.scatter.flatten()).view(len(gradient), -1, width)

    def places(self, heads: Tensor) -> Iterator[tuple[Rectangle, Tensor, Tensor, Tensor]]:
        """Yield each rectangle with its q [samples · kv, tokens · q ÷ kv, width], k and v [samples · kv, tokens, width]."""
        count = len(self.real)
        q, k, v = heads.split([count, (len(heads) - count) // 2, (len(heads) - count) // 2])
        for shape in self.rectangles:
            batch, width = shape.samples * self.kv, heads.shape[1]
            yield (
                shape, q[shape.asking].view(batch, -1, width), k[shape.asked].view(batch, -1, width),
                v[shape.asked].view(batch, -1, width),
            )  # fmt: skip


def alike(sizes: Sequence[int], heads: int) -> Iterator[list[int]]:
    """Group samples of nearly one length, the longest first in each group."""
    group: list[int] = []
    for sample in sorted(range(len(sizes)), key=lambda sample: -sizes[sample]):
        longest = sizes[group[0]] if group else 0
        if group and (sizes[sample] < EVEN * longest or (len(group) + 1) * heads * longest**2 > TOGETHER):
            yield group
            group = []
        group.append(sample)
    yield group
