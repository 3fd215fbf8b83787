"""The size calculator against files that llama.cpp wrote."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from agents.gguf_factory import quantise, sizes
from configs.parameters import Quantisation
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


MEASURED = {
    "F32": (49_506_656, 40_077_248),
    "F16": (24_865_120, 20_154_304),
    "Q4_0": (7_706_976, 6_383_552),
    "Q4_1": (8_333_664, 6_866_880),
    "Q8_0": (13_314_400, 10_815_424),
    "Q5_0": (8_984_928, 7_366_592),
    "Q5_1": (9_611_616, 7_849_920),
    "Q2_K": (5_687_904, 4_806_592),
    "Q3_K_S": (6_336_864, 5_330_880),
    "Q3_K_M": (6_854_240, 5_656_512),
    "Q3_K_L": (7_325_280, 5_939_136),
    "Q4_K_S": (7_735_648, 6_399_936),
    "Q4_K_M": (8_049_504, 6_544_320),
    "Q5_K_S": (8_972_640, 7_358_400),
    "Q5_K_M": (9_155_424, 7_445_440),
    "Q6_K": (10_330_464, 8_402_880),
    "IQ2_XXS": (4_344_928, 3_937_216),
    "IQ2_XS": (4_644_960, 4_105_152),
    "Q2_K_S": (5_344_608, 4_624_320),
    "IQ3_XS": (6_092_640, 5_230_528),
    "IQ3_XXS": (5_539_168, 4_796_352),
    "IQ4_NL": (7_694_688, 6_408_128),
    "IQ3_S": (6_336_864, 5_365_696),
    "IQ3_M": (6_532_704, 5_522_368),
    "IQ2_S": (4_828_000, 4_478_912),
    "IQ2_M": (5_101_408, 4_614_080),
    "IQ4_XS": (7_375_200, 6_170_560),
    "BF16": (24_865_120, 20_154_304),
}
"""Bytes of files that the pinned llama.cpp made with an importance matrix: 13 layers, tied; and 16, untied, 4 heads a value."""


@pytest.mark.parametrize("quantisation", MEASURED)
def test_every_quantisation_is_predicted_as_llama_cpp_makes_it(quantisation: str) -> None:
    shapes = (
        starter_like(num_hidden_layers=13),
        {**starter_like(num_hidden_layers=16, intermediate_size=256, num_attention_heads=8), "tie_word_embeddings": False},
    )
    vocabulary = sizes.vocabulary_bytes(STARTER, 8192)
    for config, measured in zip(shapes, MEASURED[quantisation], strict=True):
        assert sizes.file_bytes(config, vocabulary, quantisation) == pytest.approx(measured, rel=0.001)


def test_every_quantisation_that_can_be_asked_for_can_be_made_and_predicted() -> None:
    assert set(MEASURED) == set(quantise.FTYPES) == set(get_args(Quantisation))


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
