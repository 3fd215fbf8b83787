"""Predict a GGUF's size from a model's config. Pure arithmetic on shapes; knows nothing of weights.

The choice of types follows llama_tensor_get_type in llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20),
    "Q5_0": (32, 22), "Q5_1": (32, 24), "IQ4_NL": (32, 18), "Q2_K": (256, 84), "Q3_K": (256, 110),
    "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip
"""Weights and bytes of one block of each type (ggml-common.h)."""

FALLBACKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is not a multiple of 256."""

MAIN = {
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
}  # fmt: skip
"""File types whose name is not the type of most of their tensors."""

ALIGNMENT = 32  # bytes; general.alignment's default (gguf.md)
KEYS_BYTES = 3_000  # key-value pairs but vocabulary and template: about 30 of 60-100 bytes each
TOKEN_BYTES = 8 + 4 + 4  # a token's length, score and type beside its text (gguf.md: string u64, f32, i32)
MERGE_BYTES = 8


@dataclass(frozen=True)
class Tensor:
    """A tensor by its GGUF name; `width` is the length of a row, which is what blocks are cut from."""

    name: str
    width: int
    rows: int

    @property
    def weights(self) -> int:
        return self.width * self.rows


def tensors(config: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a Llama-like model (Llama, Mistral, Qwen2, Qwen3) from config.json."""
    width, layers, forward = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    kv = (config.get("num_key_value_heads") or heads) * head
    kind = config.get("model_type", "llama")
    biased = kind == "qwen2" or bool(config.get("attention_bias"))
    yield Tensor("token_embd", width, config["vocab_size"])
    if not config.get("tie_word_embeddings", False):
        yield Tensor("output", width, config["vocab_size"])
    yield Tensor("output_norm", width, 1)
    for layer in range(layers):
        at = f"blk.{layer}."
        yield Tensor(f"{at}attn_norm", width, 1)
        yield Tensor(f"{at}ffn_norm", width, 1)
        yield Tensor(f"{at}attn_q", width, heads * head)
        yield Tensor(f"{at}attn_k", width, kv)
        yield Tensor(f"{at}attn_v", width, kv)
        yield Tensor(f"{at}attn_output", heads * head, width)
        yield Tensor(f"{at}ffn_gate", width, forward)
        yield Tensor(f"{at}ffn_up", width, forward)
        yield Tensor(f"{at}ffn_down", forward, width)
        if kind == "qwen3":
            yield Tensor(f"{at}attn_q_norm", head, 1)
            yield Tensor(f"{at}attn_k_norm", head, 1)
        if biased:
            yield Tensor(f"{at}attn_q.bias", heads * head, 1)
            yield Tensor(f"{at}attn_k.bias", kv, 1)
            yield Tensor(f"{at}attn_v.bias", kv, 1)


def tensor_type(tensor: Tensor, quantisation: str, layers: int, *, tied: bool, gqa: float = 1.0) -> str:
    """Return the type that llama.cpp gives a tensor.

    Args:
        quantisation: the file type, such as Q4_K_M.
        layers: number of layers, on which the choice of better types depends.
        tied: the embedding is the output layer too, and is kept at the output's precision.
        gqa: query heads per key-value head, which matters to Q2_K only.
    """
    if tensor.rows == 1:
        return "F32"
    if quantisation in ("F32", "F16", "BF16"):
        return quantisation
    wanted = _wanted(tensor, quantisation, layers, tied=tied, gqa=gqa)
    if tensor.width % BLOCKS[wanted][0]:
        wanted = FALLBACKS.get(wanted, "F16")
        if tensor.width % BLOCKS[wanted][0]:
            return "F16"
    return wanted


def _wanted(tensor: Tensor, quantisation: str, layers: int, *, tied: bool, gqa: float) -> str:
    main = MAIN.get(quantisation, quantisation)
    if tensor.name == "output" or (tied and tensor.name == "token_embd"):
        return "Q8_0" if quantisation == "Q8_0" or tensor.width % 256 else "Q6_K"
    parts = tensor.name.split(".")
    if len(parts) < 3:
        return main
    layer, name = int(parts[1]), parts[2]
    better = name in ("attn_v", "ffn_down") and _use_more_bits(layer, layers)
    match quantisation, name:
        case ("Q4_K_M" | "Q5_K_M"), _ if better:
            return "Q6_K"
        case "Q4_K_S", "attn_v":
            return "Q5_K" if layer < 4 else main
        case "Q4_K_S", "ffn_down":
            return "Q5_K" if layer < layers // 8 else main
        case "Q3_K_M", "attn_v":
            return "Q5_K" if layer < 2 else "Q4_K"
        case "Q3_K_M", "ffn_down":
            return "Q5_K" if layer < layers // 16 else "Q4_K" if _use_more_bits(layer, layers) else main
        case "Q3_K_L", "attn_v" | "ffn_down":
            return "Q5_K"
        case "Q3_K_M", "attn_output":
            return "Q4_K"
        case "Q3_K_L", "attn_output":
            return "Q5_K"
        case "Q2_K", "attn_v":
            return "Q4_K" if gqa >= 4 else "Q3_K"
        case "Q2_K", "attn_output" | "ffn_down":
            return "Q3_K"
    return main


def _use_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule: the first and last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def file_bytes(config: Mapping[str, Any], vocabulary_bytes: int, quantisation: str = "Q4_K_M") -> int:
    """Predict the size of the whole file in bytes (within 2 % of measured files; see traps in the test).

    Args:
        config: the model's config.json.
        vocabulary_bytes: what the tokenizer takes in the file, by `vocabulary_bytes`.
        quantisation: GGUF file type.

    Raises:
        KeyError: a size is missing in the config.
    """
    layers = config["num_hidden_layers"]
    tied = bool(config.get("tie_word_embeddings", False))
    gqa = config["num_attention_heads"] / (config.get("num_key_value_heads") or config["num_attention_heads"])
    total = KEYS_BYTES + vocabulary_bytes
    for tensor in tensors(config):
        block, size = BLOCKS[tensor_type(tensor, quantisation, layers, tied=tied, gqa=gqa)]
        info = 8 + len(tensor.name) + len(".weight") + 4 + 8 * (2 if tensor.rows > 1 else 1) + 4 + 8  # gguf.md
        total += info + math.ceil(tensor.weights // block * size / ALIGNMENT) * ALIGNMENT
    return total


def vocabulary_bytes(folder: Path, size: int) -> int:
    """Return what the tokenizer in a folder takes in a GGUF: tokens, scores, types, merges, template, in bytes.

    Args:
        folder: the base's folder, with tokenizer.json or tokenizer.model.
        size: rows of the embedding; the converter fills the vocabulary up to it.
    """
    merges = 0
    if (folder / "tokenizer.model").is_file():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        text = sum(len(pieces.id_to_piece(index).encode()) for index in range(pieces.get_piece_size()))
    else:
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("model", {})
        text = sum(len(token.encode()) for token in model.get("vocab", {}))
        for merge in model.get("merges", []):
            merged = merge if isinstance(merge, str) else " ".join(merge)
            merges += MERGE_BYTES + len(merged.encode())
    template = folder / "chat_template.jinja"
    return size * TOKEN_BYTES + text + merges + (template.stat().st_size if template.is_file() else 0)
