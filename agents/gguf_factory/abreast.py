"""A flat decoder on every core: each computes some of a batch's rows, and their gradients are added in a fixed order.

Cores that share one product wait for each other some thousand times a step. On two cores that gained nothing where the
waiting slept, and where it spun it took the machine from everything else (docs/decisions/0022-flat-training.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agents.gguf_factory.flat import Decoder
from agents.gguf_factory.rows import IGNORED, Batch


class Abreast:
    """Decoders of one model, one a thread.

    Args:
        causal: a model that `Decoder.fits`.
        parameters: what learns, in the order of the gradients.
        dropout: share of A's inputs to drop.
    """

    def __init__(self, causal: Any, parameters: Sequence[Tensor], dropout: float) -> None:
        self.parameters = parameters
        self.decoders = [Decoder(causal, dropout) for _ in range(torch.get_num_threads())]
        self.pool = ThreadPoolExecutor(len(self.decoders), "decoder", partial(torch.set_num_threads, 1))

    def loss(self, batch: Batch, training: bool) -> Tensor:
        """Return the sum of nats over the supervised tokens; dropout is drawn if `training`."""
        loss: Tensor = Nats.apply(self, batch, training, torch.is_grad_enabled(), *self.parameters)
        return loss

    def nats(self, batch: Batch, training: bool, learn: bool) -> tuple[Tensor, list[Tensor]]:
        """Return the sum of nats, and the gradient of each parameter if asked to `learn`."""
        parts = share_out(batch, len(self.decoders))
        found: list[dict[Tensor, Tensor]] = [{} for _ in parts]
        drawn = [decoder.draw(training) for decoder, _ in zip(self.decoders, parts, strict=False)]
        if len(parts) == 1:
            totals = [self.decoders[0].nats(parts[0], drawn[0], found[0] if learn else None)]
        else:
            at_work = [
                self.pool.submit(decoder.nats, part, kept, gradients if learn else None)
                for decoder, part, kept, gradients in zip(self.decoders, parts, drawn, found, strict=False)
            ]
            wait(at_work)  # all of them: one that ran out of memory must not leave another at work
            totals = [one.result() for one in at_work]
        sums = [found[0][parameter] for parameter in self.parameters] if learn else []
        for others in found[1:] if learn else ():
            torch._foreach_add_(sums, [others[parameter] for parameter in self.parameters])
        return torch.stack(totals).sum(), sums


class Nats(torch.autograd.Function):
    """`Abreast.nats` for autograd; the gradients come with the loss."""

    @staticmethod
    def forward(ctx: Any, decoders: Abreast, batch: Batch, training: bool, learn: bool, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        total, gradients = decoders.nats(batch, training, learn)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        return None, None, None, None, *torch._foreach_mul(ctx.saved_tensors, upstream.item())


def share_out(batch: Batch, workers: int) -> list[Batch]:
    """Divide a batch's rows among at most so many workers; rows without a label fall away where others have one."""
    learned = (batch.labels != IGNORED).any(1).nonzero().flatten()
    count = min(workers, len(learned))
    if count < 2:
        return [batch]
    chosen = [learned[start::count] for start in range(count)]
    return [Batch(batch.input_ids[r], batch.labels[r], batch.position_ids[r], batch.tokens) for r in chosen]
