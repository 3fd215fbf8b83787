"""The loss of a Llama-shaped network and the gradients of its LoRA, written out for the CPU: no padding, no autograd.

The tokens of a batch stand in one list (`spans`). Layers that read the same input are one matrix with their adapters
merged into it, W + s·B·A, written anew for every batch, so that a token costs no second pass through small matrices.
peft computes the same numbers, and the tests hold one against the other. Dropout drops inputs of A, the same for all
tokens of a micro-batch: with merged weights it cannot differ between tokens (docs/decisions/0022-flat-training.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from agents.gguf_factory.rows import Batch
from agents.gguf_factory.spans import Spans

ADAPTER = "default"  # peft's name of the only adapter
ROWS = 256  # rows of logits alive at once: with 8,192 tokens 8 MB, which stays in the cache
KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")  # whose layers are `Block`s
JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


class Joined:
    """Layers that read the same input, each with a LoRA or without, as one matrix; its rows are outputs, then ranks, its columns inputs, then ranks.

        [ W + s·B·A   s·B ]
        [     A        0  ]

    A product with the left columns gives the outputs and A·x, one with the upper rows the gradient of x and s·Bᵀ·dy.
    """

    def __init__(self, layers: Sequence[Any], matrices: dict[Any, Tensor]) -> None:
        """`matrices` holds those of earlier layers: layers of one shape take turns in one."""
        adapted = [isinstance(layer, LoraLinear) for layer in layers]
        bases = [layer.get_base_layer() if has else layer for layer, has in zip(layers, adapted, strict=True)]
        self.weights = [base.weight.detach() for base in bases]
        self.downs, self.ups, self.scale = list[Tensor](), list[Tensor](), 1.0
        for layer, has, weight in zip(layers, adapted, self.weights, strict=True):
            self.downs.append(layer.lora_A[ADAPTER].weight if has else weight.new_empty(0, weight.shape[1]))
            self.ups.append(layer.lora_B[ADAPTER].weight if has else weight.new_empty(len(weight), 0))
            self.scale = float(layer.scaling[ADAPTER]) if has else self.scale
        biases = [base.bias for base in bases]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.sizes = [len(weight) for weight in self.weights]
        self.outputs, self.inputs = sum(self.sizes), self.weights[0].shape[1]
        self.ranks = sum(map(len, self.downs))
        shape = (self.outputs + self.ranks, self.inputs + self.ranks)
        parts = self.inputs, *self.sizes, *map(len, self.downs)
        self.matrix = matrices[parts] if parts in matrices else matrices.setdefault(parts, torch.zeros(shape))
        self.gain: Tensor | None = None

    def merge(self, gain: Tensor | None, kept: Tensor | None) -> None:
        """Write the matrix. `gain` [inputs] multiplies the input; so does `kept`, but for A alone: 0 or 1 / (1 - p)."""
        self.gain = gain if kept is None else kept if gain is None else gain * kept
        row = rank = 0
        for weight, down, up in zip(self.weights, self.downs, self.ups, strict=True):
            rows, ranks = slice(row, row + len(weight)), slice(rank, rank + len(down))
            body, low = self.matrix[rows, : self.inputs], self.matrix[self.outputs :, : self.inputs][ranks]
            torch.mul(weight, 1.0 if gain is None else gain, out=body)
            torch.mul(down, 1.0 if self.gain is None else self.gain, out=low)
            body.addmm_(up, low, alpha=self.scale)
            torch.mul(up, self.scale, out=self.matrix[rows, self.inputs :][:, ranks])
            row, rank = rows.stop, ranks.stop

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs [tokens, outputs] and A·x [tokens, ranks]."""
        both = x @ self.matrix[:, : self.inputs].t()
        y, low = both[:, : self.outputs], both[:, self.outputs :]
        if self.bias is not None:
            y += self.bias
        return y, low

    def backward(
        self, x: Tensor, low: Tensor, dy: Tensor, gradients: dict[Tensor, Tensor], deep: bool = True
    ) -> Tensor:
        """Add to `gradients` those of A and B, and return that of x, without a value unless `deep`."""
        both = dy @ self.matrix[: self.outputs, None if deep else self.inputs :]
        downs = both[:, both.shape[1] - self.ranks :].t() @ x
        if self.gain is not None:
            downs *= self.gain
        row = rank = 0
        for down, up in zip(self.downs, self.ups, strict=True):
            rows, ranks = slice(row, row + len(up)), slice(rank, rank + len(down))
            gradients[down] = downs[ranks]
            product = low[:, ranks].t() @ dy[:, rows]  # several times faster than its transpose
            gradients[up] = torch.mul(product.t(), self.scale, out=torch.empty_like(up))
            row, rank = rows.stop, ranks.stop
        return both[:, : both.shape[1] - self.ranks]


class Norm:
    """A root mean square norm over the last axis; its gain is left to what reads it."""

    def __init__(self, module: Any) -> None:
        self.gain, self.epsilon = module.weight.detach(), float(module.variance_epsilon)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x divided by its root mean square, and the factor."""
        factor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        factor.div_(x.shape[-1]).add_(self.epsilon).rsqrt_()
        return x * factor, factor

    @staticmethod
    def backward(dy: Tensor, y: Tensor, factor: Tensor) -> Tensor:
        """Return the gradient of x."""
        return torch.addcmul(dy, y, (dy * y).mean(-1, keepdim=True), value=-1).mul_(factor)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Turn heads [tokens, heads, width] by the angles [tokens, 1, width / 2] into `out`, in the layout of transformers."""
    (a, b), (first, second) = heads.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)


class Block:
    """One decoder layer."""

    def __init__(self, layer: Any, matrices: dict[Any, Tensor]) -> None:
        modules = dict(layer.self_attn.named_children()) | dict(layer.mlp.named_children())
        self.read, self.mix, self.rise, self.fall = (Joined([modules[n] for n in names], matrices) for names in JOINED)
        self.before, self.between = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.width, self.scaling = layer.self_attn.head_dim, layer.self_attn.scaling
        self.q, self.kv, _ = (size // self.width for size in self.read.sizes)
        self.head_norm: Norm | None = None
        if "q_norm" in modules:
            self.head_norm = Norm(modules["q_norm"])
            gains = modules["q_norm"].weight.expand(self.q, -1), modules["k_norm"].weight.expand(self.kv, -1)
            self.head_norm.gain = torch.cat(gains).detach()

    def draw(self, dropout: float) -> list[Tensor | None]:
        """Draw what each A keeps of its inputs."""
        keep, joined = 1 - dropout, (self.read, self.mix, self.rise, self.fall)
        return [torch.empty(one.inputs).bernoulli_(keep).div_(keep) if dropout else None for one in joined]

    def merge(self, kept: Sequence[Tensor | None]) -> None:
        self.read.merge(self.before.gain, kept[0])
        self.mix.merge(None, kept[1])
        self.rise.merge(self.between.gain, kept[2])
        self.fall.merge(None, kept[3])

    def turned(self, given: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return [tokens, q + 2 kv, width] with the heads of q and k turned."""
        out, count = torch.empty(given.shape), self.q + self.kv
        rotate(given[:, :count], cos, sin, out[:, :count])
        out[:, count:] = given[:, count:]
        return out

    def forward(
        self, x: Tensor, spans: Spans, angles: tuple[Tensor, Tensor], kept: Any, last: bool
    ) -> tuple[Tensor, Any]:
        """Return the residual stream after this layer, and what `backward` needs; x is overwritten.

        The last layer returns it only where a label is predicted.
        """
        self.merge(kept)
        y1, f1 = self.before.forward(x)
        flat, low1 = self.read.forward(y1)
        heads, low1, normed = flat.unflatten(1, (-1, self.width)), low1.clone(), None
        if self.head_norm is not None:
            count = self.q + self.kv
            normed = self.head_norm.forward(heads[:, :count])
            heads[:, :count] = normed[0] * self.head_norm.gain
        mixed, attention = spans.attend(self.turned(heads, *angles), self.scaling)
        if last:
            x, mixed = x[spans.predicting], mixed[spans.predicting]
        added, low2 = self.mix.forward(mixed)
        x += added
        y2, f2 = self.between.forward(x)
        pair, low3 = self.rise.forward(y2)
        gate, up = pair.chunk(2, 1)
        added, low4 = self.fall.forward(F.silu(gate).mul_(up))
        x += added
        return x, (kept, y1, f1, normed, low1, attention, mixed, low2.clone(), y2, f2, pair, low3, low4.clone())

    def backward(
        self, d: Tensor, saved: Any, spans: Spans, angles: tuple[Tensor, Tensor], gradients: dict[Tensor, Tensor],
        first: bool, last: bool,
    ) -> Tensor:  # fmt: skip
        """Return the gradient of the residual stream before this layer (of no use if it is the first)."""
        kept, y1, f1, normed, low1, attention, mixed, low2, y2, f2, pair, low3, low4 = saved
        self.merge(kept)
        gate, up = pair.chunk(2, 1)
        opened = F.silu(gate)
        inner = self.fall.backward(opened * up, low4, d, gradients)
        dpair = torch.empty(pair.shape)
        dgate, dup = dpair.chunk(2, 1)
        torch.mul(inner, opened, out=dup)
        torch.ops.aten.silu_backward.grad_input(torch.mul(inner, up, out=opened), gate, grad_input=dgate)
        d += Norm.backward(self.rise.backward(y2, low3, dpair, gradients), y2, f2)
        dmixed = self.mix.backward(mixed, low2, d, gradients)
        if last:
            dmixed, d = (t.new_zeros(len(y1), t.shape[1]).index_copy_(0, spans.predicting, t) for t in (dmixed, d))
        cos, sin = angles
        heads = self.turned(spans.backward(dmixed, attention, self.scaling), cos, -sin)
        if self.head_norm is not None:
            part = heads[:, : self.q + self.kv]
            part.copy_(Norm.backward(part * self.head_norm.gain, *normed))
        dy1 = self.read.backward(y1, low1, heads.flatten(1), gradients, deep=not first)
        return d if first else d.add_(Norm.backward(dy1, y1, f1))


class Decoder:
    """A causal language model with a LoRA of peft's on linear layers of its blocks; see `fits`."""

    def __init__(self, causal: Any, dropout: float) -> None:
        body, matrices = causal.get_decoder(), dict[Any, Tensor]()
        self.blocks = [Block(layer, matrices) for layer in body.layers]
        self.norm, self.angles = Norm(body.norm), body.rotary_emb
        self.embedding, self.head = body.embed_tokens.weight.detach(), causal.get_output_embeddings().weight.detach()
        self.dropout = dropout

    @staticmethod
    def fits(causal: Any) -> bool:
        """Say whether a model is one for which this is written, in fp32 on the CPU."""
        config, head = causal.config, causal.get_output_embeddings()
        plain = getattr(config, "sliding_window", None) is None and getattr(config, "hidden_act", None) == "silu"
        here = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in causal.parameters())
        return (
            type(causal).__name__ in KINDS and plain and here and head.bias is None
            and not getattr(config, "attention_dropout", 0)
            and all(isinstance(module, LoraLinear | torch.nn.Linear) for layer in causal.get_decoder().layers
                    for name, module in layer.named_modules() if name.endswith("_proj"))
        )  # fmt: skip

    def draw(self, training: bool) -> list[list[Tensor | None]]:
        """Draw what each block's As keep of their inputs: everything, unless `training`."""
        return [block.draw(self.dropout if training else 0.0) for block in self.blocks]

    @torch.no_grad()
    def nats(self, batch: Batch, kept: list[list[Tensor | None]], gradients: dict[Tensor, Tensor] | None) -> Tensor:
        """Return the sum of nats over the supervised tokens, and fill in the gradients of the adapter, if asked for."""
        spans = Spans.of(batch, self.blocks[0].q, self.blocks[0].kv)
        x = self.embedding[spans.ids]
        cos, sin = self.angles(x, spans.positions[None])
        angles = tuple(t[0, :, None, : t.shape[-1] // 2] for t in (cos, sin))
        saved: list[Any] = []
        for block, masks in zip(self.blocks, kept, strict=True):
            x, state = block.forward(x, spans, angles, masks, block is self.blocks[-1])
            if gradients is not None:
                saved.append(state)
            del state
        y, factor = self.norm.forward(x)
        total, d = cross_entropy(y * self.norm.gain, self.head, spans.wanted, gradients is not None)
        if gradients is not None:
            d = Norm.backward(d * self.norm.gain, y, factor)
            for block in reversed(self.blocks):
                ends = block is self.blocks[0], block is self.blocks[-1]
                d = block.backward(d, saved.pop(), spans, angles, gradients, *ends)
        return total


def cross_entropy(hidden: Tensor, head: Tensor, wanted: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
    """Return the sum of nats under a head, and the gradient of `hidden`, without a value unless `learn`."""
    total, gradient = torch.zeros(()), torch.empty_like(hidden)
    space = torch.empty(2, ROWS, len(head))
    for start in range(0, len(hidden), ROWS):
        part = slice(start, min(start + ROWS, len(hidden)))
        logits, shares = space[:, : part.stop - start]
        index = wanted[part, None]
        torch.mm(hidden[part], head.t(), out=logits)
        torch.softmax(logits, -1, out=shares)
        total += (logits.amax(-1) - shares.amax(-1).log_() - logits.gather(1, index)[:, 0]).sum()
        if learn:
            torch.mm(shares.scatter_add_(1, index, torch.full(index.shape, -1.0)), head, out=gradient[part])
    return total, gradient
