"""The starter base's network: a Llama, written flat for pre-training on two cores.

Parameter names are those of transformers' LlamaForCausalLM, so `export` copies them unchanged. Does not know about
files, optimisers or data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. Widths are multiples of 256, which Q4_K_M needs to quantise every row to 4 bits."""

    vocabulary: int = 8192
    width: int = 256
    layers: int = 13
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 768
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class Samples:
    """Where documents begin in a flat row of tokens, so that no token sees another document.

    Args:
        tokens: ids [n] of whole and cut documents one after the other, each of which begins with `bos`.
        length: most tokens that may see each other; a longer document is cut.
        seams: further places where something else begins.
    """

    def __init__(self, tokens: Tensor, bos: int, length: int, seams: Iterable[int] = ()) -> None:
        begins = {0, *seams, *torch.nonzero(tokens == bos).flatten().tolist()}
        edges = [*sorted(begins), len(tokens)]
        self.parts = [
            (start, min(start + length, end))
            for first, end in pairwise(edges)
            for start in range(first, end, length)
        ]  # fmt: skip
        self.length = max(end - start for start, end in self.parts)
        self.positions = torch.cat([torch.arange(end - start) for start, end in self.parts]).to(tokens.device)
        number = torch.tensor([index for index, part in enumerate(self.parts) for _ in range(*part)])
        self.places = (number * self.length).to(tokens.device) + self.positions

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return causal attention [n, heads, size] of q, k, v of that shape, within each part alone."""
        if q.device.type != "cpu":  # a call a part computes nothing in vain, but on a GPU the calls themselves cost too much
            return self.attend_padded(q, k, v)
        sizes = [end - start for start, end in self.parts]
        split = zip(*(x.transpose(0, 1)[None].split(sizes, 2) for x in (q, k, v)), strict=True)
        see = plain_attention if q.dtype == torch.bfloat16 else partial(F.scaled_dot_product_attention, is_causal=True)
        return torch.cat([see(*part) for part in split], 2)[0].transpose(0, 1)

    def attend_padded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Do the same in one call, as a GPU likes it."""
        q, k, v = self.padded(q), self.padded(k), self.padded(v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1)[self.places]

    def padded(self, x: Tensor) -> Tensor:
        """Lay [n, heads, size] out as [parts, heads, length, size]; what follows a part is never seen, as it is later."""
        room = x.new_zeros(len(self.parts) * self.length, *x.shape[1:])
        return room.index_copy(0, self.places, x).unflatten(0, (-1, self.length)).transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by two products. In bf16 on processors that compute in it, 1.4-2 times as fast as the fused one."""
    length = q.shape[-2]
    mask = torch.full((length, length), -math.inf, dtype=q.dtype).triu_(1)
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return (torch.softmax(scores, -1) @ v.flatten(0, 1)).unflatten(0, q.shape[:2])


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, kv, bias=False)
        self.v_proj = nn.Linear(shape.width, kv, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, samples: Samples) -> Tensor:
        size = self.shape.head_width
        q = rotate(self.q_proj(x).view(len(x), -1, size), cos, sin)
        k = rotate(self.k_proj(x).view(len(x), -1, size), cos, sin)
        v = self.v_proj(x).view(len(x), -1, size)
        repeat = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        return self.o_proj(samples.attend(q, k, v).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, samples: Samples) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, samples)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)


class Llama(nn.Module):
    """Causal language model with tied embeddings."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)  # a new block starts as the identity: steadier start, and depth can be grown
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
        inverse = shape.rope_theta ** (-torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        angle = torch.outer(torch.arange(shape.context).float(), inverse).repeat(1, 2)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def hidden(self, tokens: Tensor, samples: Samples) -> Tensor:
        """Map token ids [n] to normalised hidden states [n, width]."""
        x = self.model.embed_tokens(tokens)
        cos, sin = self.cos[samples.positions], self.sin[samples.positions]
        for block in self.model.layers:
            x = block(x, cos, sin, samples)
        return self.model.norm(x)

    def loss(self, tokens: Tensor, targets: Tensor, samples: Samples) -> Tensor:
        """Mean cross-entropy in nats of targets [n] after tokens [n]."""
        hidden = self.hidden(tokens, samples)
        return ChunkedCrossEntropy.apply(hidden, self.model.embed_tokens.weight, targets)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [n, heads, size] in the half-split order of transformers' Llama."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None].to(x.dtype) + torch.cat((-second, first), dim=-1) * sin[:, None].to(x.dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a tied head in chunks; computes the gradient with the loss, so logits are never kept.

    The idea is Liger's fused linear cross-entropy (arXiv 2410.10989), in plain torch for the CPU.
    """

    CHUNK = 256  # rows of logits alive at once: 256 x 8192 floats = 8 MB stay in the cache; 1024 rows took 1.4 times as long

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        device = hidden.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        rows = hidden.shape[0]
        matrix = weight.to(low)
        for start in range(0, rows, ChunkedCrossEntropy.CHUNK):
            part = hidden[start : start + ChunkedCrossEntropy.CHUNK].to(low)
            logits = (part @ matrix.t()).float()
            index = targets[start : start + ChunkedCrossEntropy.CHUNK].unsqueeze(1)
            wanted, peak = logits.gather(1, index), logits.amax(-1, keepdim=True)
            mass = logits.sub_(peak).exp_().sum(-1, keepdim=True)
            total += (mass.log() + peak - wanted).sum()
            if ctx.needs_input_grad[0]:
                slope = logits.div_(mass).scatter_add_(1, index, logits.new_full(index.shape, -1.0)).to(low)
                grad_hidden[start : start + ChunkedCrossEntropy.CHUNK] = slope @ matrix
                grad_weight += slope.t() @ part
        ctx.save_for_backward(grad_hidden.div_(rows), grad_weight.div_(rows))
        return total / rows

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None
