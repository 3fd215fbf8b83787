"""The size calculator against files that llama.cpp wrote."""

from __future__ import annotations

from typing import Any

import pytest

from agents.gguf_factory import sizes
from tests.agents.gguf_factory.bases import STARTER, llama_config


def starter_like(**changes: int) -> dict[str, Any]:
    return llama_config(
        **{"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 14, "num_attention_heads": 4,
           "num_key_value_heads": 2, "vocab_size": 8192, **changes}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "measured"),
    [({}, 8_570_000), ({"vocab_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 4}, 7_540_000)],
)
def test_within_two_percent_of_measured_files(changes: dict[str, int], measured: int) -> None:
    config = starter_like(**changes)
    vocabulary = sizes.vocabulary_bytes(STARTER, 8192) * config["vocab_size"] // 8192
    assert sizes.file_bytes(config, vocabulary) == pytest.approx(measured, rel=0.02)


def types(config: dict[str, Any], quantisation: str = "Q4_K_M") -> dict[str, str]:
    layers = config["num_hidden_layers"]
    tied = config["tie_word_embeddings"]
    return {t.name: sizes.tensor_type(t, quantisation, layers, tied=tied) for t in sizes.tensors(config)}


def test_q4_k_m_keeps_sensitive_tensors_at_six_bits() -> None:
    found = types(starter_like())
    assert found["token_embd"] == "Q6_K" and found["output_norm"] == "F32"
    assert [n for n in range(14) if found[f"blk.{n}.ffn_down"] == "Q6_K"] == [0, 3, 6, 9, 12, 13]
    assert found["blk.1.attn_v"] == found["blk.0.attn_q"] == "Q4_K"


def test_untied_embeddings_cost_an_output_of_six_bits() -> None:
    found = types({**starter_like(), "tie_word_embeddings": False})
    assert (found["output"], found["token_embd"]) == ("Q6_K", "Q4_K")


def test_rows_off_the_block_width_fall_back() -> None:
    found = types(starter_like(hidden_size=320, intermediate_size=800))
    assert found["token_embd"] == "Q8_0" and found["blk.1.attn_q"] == "Q5_0" and found["blk.0.ffn_down"] == "Q8_0"
    assert types(starter_like(hidden_size=40, num_attention_heads=2))["blk.0.attn_q"] == "F16"


def test_fewer_bits_make_smaller_files() -> None:
    order = ["Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32"]
    found = [sizes.file_bytes(starter_like(), 0, name) for name in order]
    assert found == sorted(found) and len(set(found)) == len(found)
