"""Predict a GGUF's size from a model's config. Pure arithmetic on shapes; knows nothing of weights.

The choice of types follows llama_tensor_get_type in llama.cpp's src/llama-quant.cpp, as it is with an importance matrix.
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
    "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_XS": (256, 136),
}  # fmt: skip
"""Weights and bytes of one block of each type (ggml-common.h)."""

FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"} | dict.fromkeys(
    ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
)
"""What llama.cpp takes where a row is not a multiple of 256."""

MAIN = {
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q2_K_S": "Q2_K", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S",
    "IQ3_M": "IQ3_S",
}  # fmt: skip
"""File types whose name is not the type of most of their tensors."""

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"})
"""Model types whose predictions were held against files (tests); of others no size is told."""

ALIGNMENT = 32  # bytes; general.alignment's default (gguf.md)
KEYS_BYTES = 3_000  # key-value pairs but vocabulary and template: about 30 of 60-100 bytes each
TOKEN_BYTES = 8 + 4  # a token's length and type beside its text (gguf.md: string u64, i32)
SCORE_BYTES = 4  # SentencePiece has a score too (f32)
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
    """Yield the tensors of a model of one of `FAMILIES` from config.json."""
    width, layers, forward = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    kv = (config.get("num_key_value_heads") or heads) * head
    kind = config.get("model_type", "llama")
    yield Tensor("token_embd", width, config["vocab_size"])
    if not tied(config):
        yield Tensor("output", width, config["vocab_size"])
    yield Tensor("output_norm", width, 1)
    if _rope_type(config) == "llama3":
        yield Tensor("rope_freqs", head // 2, 1)
    biased = ["q", "k", "v"] if kind == "qwen2" or config.get("attention_bias") else []
    if config.get("attention_bias") and kind != "qwen2":
        biased.append("output")
    norms = [("attn_norm", width), ("ffn_norm", width)]
    if kind.startswith("gemma"):
        norms += [("post_attention_norm", width), ("post_ffw_norm", width)]
    if kind in ("qwen3", "gemma3_text"):
        norms += [("attn_q_norm", head), ("attn_k_norm", head)]
    attention = {"q": (width, heads * head), "k": (width, kv), "v": (width, kv), "output": (heads * head, width)}
    feed_forward = {"gate": (width, forward), "up": (width, forward), "down": (forward, width)}
    for layer in range(layers):
        at = f"blk.{layer}."
        for name, size in norms:
            yield Tensor(f"{at}{name}", size, 1)
        for name, (columns, rows) in attention.items():
            yield Tensor(f"{at}attn_{name}", columns, rows)
            if name in biased:
                yield Tensor(f"{at}attn_{name}.bias", rows, 1)
        for name, (columns, rows) in feed_forward.items():
            yield Tensor(f"{at}ffn_{name}", columns, rows)
            if config.get("mlp_bias"):
                yield Tensor(f"{at}ffn_{name}.bias", rows, 1)


def tied(config: Mapping[str, Any]) -> bool:
    """Tell whether the head is the embedding; where config.json is silent, that is transformers' default."""
    return bool(config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma")))


def _rope_type(config: Mapping[str, Any]) -> str | None:
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return settings.get("rope_type") or settings.get("type")


def tensor_type(tensor: Tensor, quantisation: str, layers: int, *, tied: bool, gqa: float = 1.0) -> str:
    """Return the type that llama.cpp gives a tensor.

    Args:
        quantisation: the file type, such as Q4_K_M.
        layers: number of layers, on which the choice of better types depends.
        tied: the embedding is the output layer too, and is kept at the output's precision.
        gqa: query heads per key-value head, on which the values' type depends where it has few bits.
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
        if quantisation == "Q8_0" or tensor.width % 256:
            return "Q8_0"
        return "Q5_K" if quantisation.startswith("IQ2") or quantisation == "IQ3_XXS" else "Q6_K"
    if quantisation.startswith("IQ"):
        return _wanted_of_i_quants(tensor, quantisation, layers, gqa) or main
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
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        case ("Q4_0" | "Q5_0"), "ffn_down" if layer < layers // 8:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[quantisation]
        case "Q3_K_L", "attn_v" | "ffn_down":
            return "Q5_K"
        case "Q3_K_M", "attn_output":
            return "Q4_K"
        case "Q3_K_L", "attn_output":
            return "Q5_K"
        case "Q2_K", "attn_v":
            return "Q4_K" if gqa >= 4 else "Q3_K"
        case "Q2_K_S", "attn_v" if gqa >= 4:
            return "Q4_K"
        case "Q2_K_S", "ffn_down" if layer < layers // 8:
            return "Q4_K"
        case "Q2_K", "attn_output" | "ffn_down":
            return "Q3_K"
    return main


def _wanted_of_i_quants(tensor: Tensor, quantisation: str, layers: int, gqa: float) -> str | None:
    """Return the type of a tensor in an IQ file, or None for the one that most of its tensors have."""
    if tensor.name == "token_embd":
        return {"IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S"}.get(quantisation)
    parts = tensor.name.split(".")
    if len(parts) < 3:
        return None
    layer, name = int(parts[1]), parts[2]
    better = "IQ3_S" if quantisation in ("IQ2_S", "IQ2_M") else "Q2_K"
    match quantisation, name:
        case "IQ3_M", "attn_v" | "attn_output":
            return "Q4_K"
        case ("IQ4_NL" | "IQ4_XS"), "attn_v":
            return "Q5_K" if gqa >= 4 else None
        case _, "attn_v" if gqa >= 4:
            return "Q4_K"
        case ("IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ2_M"), "attn_v":
            return better
        case ("IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ2_M"), "ffn_down" if layer < layers // 8:
            return better
        case ("IQ2_S" | "IQ2_M" | "IQ3_XXS"), "attn_output":
            return "IQ3_S"
        case "IQ3_XXS", "attn_q" | "attn_k":
            return "IQ2_S"
        case "IQ3_XS", "attn_q" | "attn_k":
            return "IQ3_XXS"
        case "IQ3_XS", "ffn_gate" | "ffn_up" if layers // 8 <= layer < 7 * layers // 8:
            return "IQ3_XXS"
        case "IQ3_M", "ffn_down" if layer < layers // 8:
            return "Q4_K"
    return None


def _use_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule: the first and last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def file_bytes(config: Mapping[str, Any], vocabulary_bytes: int, quantisation: str = "Q4_K_M") -> int | None:
    """Predict the size of the whole file in bytes, within 2 % of measured files; None for a family of which none was.

    Args:
        config: the model's config.json.
        vocabulary_bytes: what the tokenizer takes in the file, by `vocabulary_bytes`.
        quantisation: GGUF file type.

    Raises:
        KeyError: a size is missing in the config.
    """
    if config.get("model_type", "llama") not in FAMILIES:
        return None
    layers = config["num_hidden_layers"]
    shared = tied(config)
    gqa = config["num_attention_heads"] / (config.get("num_key_value_heads") or config["num_attention_heads"])
    total = KEYS_BYTES + vocabulary_bytes
    for tensor in tensors(config):
        block, size = BLOCKS[tensor_type(tensor, quantisation, layers, tied=shared, gqa=gqa)]
        info = 8 + len(tensor.name) + len(".weight") + 4 + 8 * (2 if tensor.rows > 1 else 1) + 4 + 8  # gguf.md
        total += info + math.ceil(tensor.weights // block * size / ALIGNMENT) * ALIGNMENT
    return total


def vocabulary_bytes(folder: Path, size: int, template: str | None = None) -> int:
    """Return what the tokenizer in a folder takes in a GGUF: tokens, scores, types, merges, template, in bytes.

    Args:
        folder: the base's folder, with tokenizer.json or tokenizer.model.
        size: rows of the embedding; the converter fills the vocabulary up to it.
        template: the chat template; None: chat_template.jinja in the folder.
    """
    total = size * TOKEN_BYTES
    if (folder / "tokenizer.model").is_file():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        known = [pieces.id_to_piece(index) for index in range(pieces.get_piece_size())]
        total += size * SCORE_BYTES
    else:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model = content.get("model", {})
        known = list({**model.get("vocab", {}), **{item["content"]: 0 for item in content.get("added_tokens", [])}})
        for merge in model.get("merges", []):
            total += MERGE_BYTES + len((merge if isinstance(merge, str) else " ".join(merge)).encode())
    total += sum(len(token.encode()) for token in known)
    total += sum(len(f"[PAD{index}]") for index in range(len(known), size))
    file = folder / "chat_template.jinja"
    if template is None:
        template = file.read_text(encoding="utf-8") if file.is_file() else ""
    return total + len(template.encode())
