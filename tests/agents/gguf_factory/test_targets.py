"""Which layers learn, and how large an adapter becomes: Qwen2.5-0.5B's published shape, and a file that llama.cpp took."""

from __future__ import annotations

import pytest

from agents.gguf_factory import adapter, targets
from agents.gguf_factory import base as bases
from agents.gguf_factory.job import Job
from agents.gguf_factory.targets import Module
from protocol import Code, LabError

LIMIT = 8_800_000


def qwen25() -> list[Module]:
    """The linear layers of Qwen2.5-0.5B: width 896, 24 blocks, 2 key-value heads of 64, feed-forward 4864 (its config.json)."""
    widths = {
        "self_attn.q_proj": (896, 896), "self_attn.k_proj": (128, 896), "self_attn.v_proj": (128, 896),
        "self_attn.o_proj": (896, 896), "mlp.gate_proj": (4864, 896), "mlp.up_proj": (4864, 896), "mlp.down_proj": (896, 4864),
    }  # fmt: skip
    shapes = {
        f"model.layers.{layer}.{name}.weight": shape for layer in range(24) for name, shape in widths.items()
    }
    others = {"model.embed_tokens.weight": (151936, 896), "model.layers.0.input_layernorm.weight": (896,), "model.norm.weight": (896,)}
    return targets.modules({**shapes, **others})


def test_an_adapter_of_rank_8_on_half_a_billion_weights_has_just_over_the_limit() -> None:
    found = qwen25()
    assert len(found) == 24 * 7
    assert targets.weights(found, 8) == 8 * 24 * (2 * 1792 + 2 * 1024 + 3 * 5760) == 4_399_104
    assert targets.file_bytes(found, 8) == pytest.approx(2 * 4_399_104, rel=0.005)
    assert targets.file_bytes(found, 8) > LIMIT


def test_so_the_least_useful_layer_of_one_block_is_left_out_and_the_plan_says_so() -> None:
    choice = targets.choose(qwen25(), "all-linear", 8, LIMIT)
    assert choice.rank == 8 and 0.99 * LIMIT < choice.bytes <= LIMIT
    assert choice.spec == "q_proj,k_proj,v_proj,o_proj,up_proj,down_proj,gate_proj@1"
    assert "more than 8,800,000; left out: gate_proj of block 0." in choice.notes[0]
    kept = targets.select(qwen25(), choice.spec)
    assert len(kept) == 24 * 7 - 1 and targets.file_bytes(kept, 8) == choice.bytes


@pytest.mark.parametrize(
    ("limit", "spec", "rank"),
    [
        (9_000_000, "all-linear", 8),
        (4_400_000, "q_proj,k_proj,v_proj,o_proj,down_proj", 8),
        (2_200_000, "q_proj,k_proj,v_proj,o_proj", 8),
        (2_000_000, "q_proj,k_proj,v_proj,o_proj", 7),
        (300_000, "q_proj,k_proj,v_proj,o_proj", 1),
        (None, "all-linear", 8),
    ],
)
def test_layers_go_down_to_attention_before_the_rank_does(limit: int | None, spec: str, rank: int) -> None:
    choice = targets.choose(qwen25(), "all-linear", 8, limit)
    assert (choice.spec, choice.rank) == (spec, rank)
    assert limit is None or choice.bytes <= limit
    assert bool(choice.notes) == ((spec, rank) != ("all-linear", 8))
    assert ("rank is lowered" in "".join(choice.notes)) == (rank < 8)


def test_what_cannot_be_made_small_enough_is_refused_with_its_size() -> None:
    with pytest.raises(LabError, match=r"rank 1 on this base has 2\d\d,\d\d\d bytes, more than 100,000") as caught:
        targets.choose(qwen25(), "all-linear", 8, 100_000)
    assert caught.value.code is Code.INVALID_PARAMS and caught.value.data["field"] == "base"


def test_layers_are_chosen_by_kind_name_and_block() -> None:
    found = qwen25()
    assert {module.leaf for module in targets.select(found, "attention")} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    some = targets.select(found, "q_proj,down_proj@20")
    assert [module.layer for module in some if module.leaf == "down_proj"] == [20, 21, 22, 23] and len(some) == 28
    for spec in ("q_proj,qkv", "down_proj@24"):
        with pytest.raises(LabError, match="no linear layer") as caught:
            targets.select(found, spec)
        assert caught.value.data["field"] == "parameters.lora_targets"


def test_the_prediction_is_within_two_percent_of_the_file(adapted: Job) -> None:
    found = targets.modules(bases.read(adapted.base).shapes)
    size = adapted.path("convert", adapter.file_name(adapted)).stat().st_size
    rank = adapted.read_manifest("convert")["results"]["rank"]
    assert targets.file_bytes(found, rank) == pytest.approx(size, rel=0.02)
