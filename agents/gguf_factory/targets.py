"""Which linear layers a LoRA changes, and how large its GGUF becomes. Pure arithmetic on shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from protocol import Code, LabError

ALL, ATTENTION = "all-linear", "attention"
LAYER = re.compile(r"\.layers\.(\d+)\.")
FIRST_OUT = ("gate_proj", "up_proj", "down_proj")
"""Layers outside attention in the order in which they are left out, after those with other names. AdaLoRA
(arXiv 2303.10512, figure 3) spends its ranks on the feed-forward's second matrix and on upper blocks; so the lower blocks'
go first."""

NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
"""transformers' names to GGUF's (gguf-py's tensor map); others are about as long."""

WEIGHT_BYTES = 2  # F16
ALIGNMENT = 32  # bytes; general.alignment's default (gguf.md)
KEYS_BYTES = 700  # 14 key-value pairs: the converter's six and those of `adapter.VALUES`


@dataclass(frozen=True)
class Module:
    """A linear layer by its full name in transformers; `inputs` and `outputs` are its widths."""

    name: str
    inputs: int
    outputs: int

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> int:
        found = LAYER.search(self.name)
        return int(found[1]) if found else 0

    @property
    def attention(self) -> bool:
        return "attn" in self.name or "attention" in self.name

    def weights(self, rank: int) -> int:
        """Return the LoRA's weights on this layer: A is rank x inputs, B is outputs x rank."""
        return rank * (self.inputs + self.outputs)


def modules(shapes: Mapping[str, Sequence[int]]) -> list[Module]:
    """Return the linear layers of a model's blocks, from its tensors' names and shapes (outputs, inputs)."""
    return [
        Module(name.removesuffix(".weight"), shape[1], shape[0])
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and LAYER.search(name)
    ]


def select(found: Sequence[Module], spec: str) -> list[Module]:
    """Return the modules that a parameter `lora_targets` means.

    Args:
        found: the base's linear layers.
        spec: `all-linear`, `attention`, or names with commas between them; `NAME@N` from block N up.

    Raises:
        LabError: INVALID_PARAMS, the base has no such layer.
    """
    if spec == ALL:
        return list(found)
    if spec == ATTENTION:
        return [module for module in found if module.attention]
    wanted = {}
    for part in spec.split(","):
        leaf, _, first = part.partition("@")
        wanted[leaf] = int(first or 0)
    chosen = [module for module in found if module.layer >= wanted.get(module.leaf, math.inf)]
    lost = [leaf for leaf in wanted if leaf not in {module.leaf for module in chosen}]
    if lost:
        known = sorted({module.leaf for module in found})
        raise LabError(
            Code.INVALID_PARAMS, f"parameters.lora_targets: the base has no linear layer {lost[0]!r} there.",
            advice=f"It has {', '.join(known)} in {1 + max(module.layer for module in found)} blocks.",
            field="parameters.lora_targets", known=known,
        )  # fmt: skip
    return chosen


def weights(chosen: Iterable[Module], rank: int) -> int:
    """Return how many weights a LoRA of this rank has on the modules."""
    return sum(module.weights(rank) for module in chosen)


def file_bytes(chosen: Iterable[Module], rank: int) -> int:
    """Predict the bytes of a LoRA's GGUF in F16."""
    total = KEYS_BYTES
    for module in chosen:
        name = f"blk.{module.layer}.{NAMES.get(module.leaf, module.leaf)}.weight.lora_a"
        for width in (module.inputs, module.outputs):
            total += 8 + len(name) + 4 + 2 * 8 + 4 + 8  # a tensor's entry in the header (gguf.md)
            total += math.ceil(width * rank * WEIGHT_BYTES / ALIGNMENT) * ALIGNMENT
    return total


@dataclass(frozen=True)
class Choice:
    """Layers and rank of an adapter, its predicted bytes, and in words what was given up for the size."""

    spec: str
    rank: int
    bytes: int
    notes: list[str] = field(default_factory=list)


def choose(found: Sequence[Module], spec: str, rank: int, limit: float | None) -> Choice:
    """Choose layers and rank so that the adapter's file is predicted to have at most `limit` bytes.

    First the feed-forward's layers are left out, from the lowest block up and one kind after another, until only those of
    attention are left; then the rank is lowered.

    Args:
        found: the base's linear layers.
        spec: what was asked for, as in `select`.
        rank: what was asked for.
        limit: bytes; None: no limit.

    Raises:
        LabError: INVALID_PARAMS, no such layer, or even rank 1 on attention alone is larger.
    """
    wanted = select(found, spec)
    whole = file_bytes(wanted, rank)
    if limit is None or whole <= limit:
        return Choice(spec, rank, whole)
    why = f"with rank {rank} on {spec} the adapter would have {whole:,} bytes, more than {limit:,.0f}"
    kept = list(wanted)
    others = sorted({module.leaf for module in wanted if not module.attention}, key=_usefulness)
    for leaf in others:
        for block in sorted({module.layer for module in kept if module.leaf == leaf}):
            kept = [module for module in kept if (module.leaf, module.layer) != (leaf, block)]
            if kept and (size := file_bytes(kept, rank)) <= limit:
                left_out = _missing(wanted, kept)
                return Choice(_spec(kept), rank, size, [f"{why}; left out: {left_out}."])
    kept = kept or wanted
    for lower in range(rank - 1, 0, -1):
        if (size := file_bytes(kept, lower)) <= limit:
            what = f"; left out: {_missing(wanted, kept)}" if len(kept) < len(wanted) else ""
            note = f"{why}{what}; the rank is lowered to {lower}, at the same alpha ÷ rank."
            return Choice(_spec(kept), lower, size, [note])
    raise LabError(
        Code.INVALID_PARAMS, f"Even an adapter of rank 1 on this base has {file_bytes(kept, 1):,} bytes, more than {limit:,.0f}.",
        advice="Choose a smaller base, or raise adapter_gates.file_bytes in tiers.yaml.", field="base",
    )  # fmt: skip


def _usefulness(leaf: str) -> tuple[int, str]:
    return (FIRST_OUT.index(leaf) if leaf in FIRST_OUT else -1, leaf)


def _spec(kept: Sequence[Module]) -> str:
    """Write modules as a parameter `lora_targets`; of each kind those from some block up are there."""
    first: dict[str, int] = {}
    for module in kept:
        first[module.leaf] = min(module.layer, first.get(module.leaf, module.layer))
    return ",".join(f"{leaf}@{layer}" if layer else leaf for leaf, layer in first.items())


def _missing(wanted: Sequence[Module], kept: Sequence[Module]) -> str:
    """Say which modules were left out, kind by kind."""
    blocks: dict[str, list[int]] = {}
    for module in wanted:
        if module not in kept:
            blocks.setdefault(module.leaf, []).append(module.layer)
    return ", ".join(
        f"{leaf} of block {found[0]}" if len(found) == 1 else f"{leaf} of blocks {found[0]}-{found[-1]}"
        for leaf, found in ((leaf, sorted(found)) for leaf, found in blocks.items())
    )
