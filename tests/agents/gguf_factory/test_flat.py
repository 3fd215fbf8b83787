"""The flat path against peft and transformers: same loss, same gradients, for every shape it claims to fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from agents.gguf_factory.abreast import Abreast
from agents.gguf_factory.lora import Network
from agents.gguf_factory.rows import IGNORED, Batch, Rows
from agents.gguf_factory.spans import Spans, alike
from agents.gguf_factory.targets import ALL
from tests.agents.gguf_factory.tiny import llama, network, packed, rows

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
SOME = "q_proj@1,k_proj,v_proj@1,down_proj@1"
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "llama with everything": LlamaConfig(
        **SIZES | {"num_key_value_heads": 4},
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=SCALED,
        tie_word_embeddings=True,
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES | {"num_key_value_heads": 1}),
}


def model(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()
    with torch.no_grad():
        for _, parameter in made.named_parameters():
            if parameter.ndim == 1:  # gains and biases begin as ones and zeros, which hides mistakes
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    made.config.use_cache = False
    return made


def taught(config: Any, dropout: float = 0.0, layers: str = ALL) -> Network:
    """A network whose B is not zero."""
    net = Network(model(config), rank=4, alpha=8, dropout=dropout, seed=1, layers=layers)
    with torch.no_grad():
        for parameter in net.parameters.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return net


def learned(net: Network, batch: Batch, flat: Abreast | None) -> tuple[float, dict[str, Tensor]]:
    """Return the loss per token and its gradients, by the flat path or, with None, by peft."""
    kept, net.flat = net.flat, flat
    loss = net.loss(batch) / int(batch.supervised.sum())
    loss.backward()
    gradients = {}
    for name, parameter in net.parameters.items():
        assert parameter.grad is not None
        gradients[name], parameter.grad = parameter.grad, None
    net.flat = kept
    return float(loss.detach()), gradients


def uneven() -> Rows:
    """Rows of samples of 2 to 13 tokens, among them samples and ends of samples with nothing to learn."""
    found = packed(6)
    for row, places in enumerate(([0, 2, 15], [0, 13], [0, 5, 9, 12], [0], [0, 20], [0, 3, 6, 9])):
        for start, end in zip(places, [*places[1:], 24], strict=True):
            found["position_ids"][row, start:end] = torch.arange(end - start)
    found["labels"][:, 1::3] = found["input_ids"][:, 1::3]
    found["labels"][0, 2:15] = IGNORED
    found["labels"][4, 14:20] = IGNORED
    return Rows(**found)


@pytest.mark.parametrize(("family", "layers"), [*((family, ALL) for family in FAMILIES), ("qwen3", SOME)])
def test_loss_and_gradients_are_those_of_peft(family: str, layers: str) -> None:
    net = taught(FAMILIES[family], layers=layers)
    net.peft.train()
    assert net.flat is not None
    for batch in (rows().take([0, 1, 2]), uneven().take([0, 1, 2, 3, 4])):
        loss, gradients = learned(net, batch, net.flat)
        wanted, reference = learned(net, batch, None)
        assert loss == pytest.approx(wanted, abs=1e-6)
        assert len(gradients) == (2 * 14 if layers == ALL else 2 * 5)
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 1e-4
            torch.testing.assert_close(gradient, reference[name], rtol=1e-5, atol=1e-6)


def test_attention_that_is_computed_again_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = taught(FAMILIES["llama"]), uneven().take([0, 1, 2])
    _, kept = learned(net, batch, net.flat)
    monkeypatch.setattr("agents.gguf_factory.spans.KEPT", 4)
    _, again = learned(net, batch, net.flat)
    assert all(torch.equal(gradient, again[name]) for name, gradient in kept.items())


def test_dropout_drops_inputs_of_a_for_all_tokens_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is peft on a base whose adapters' A have the same columns dropped."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    net, batch = taught(FAMILIES["qwen3"], dropout=0.5), uneven().take([0, 1, 2])
    net.peft.train()
    torch.manual_seed(5)
    loss, gradients = learned(net, batch, net.flat)
    torch.manual_seed(5)
    masks: dict[str, Tensor] = {}
    for number in range(2):
        for names, width in (
            (("q_proj", "k_proj", "v_proj"), 32),
            (("o_proj",), 64),
            (("gate_proj", "up_proj"), 32),
            (("down_proj",), 48),
        ):
            mask = torch.empty(width).bernoulli_(0.5) * 2
            masks |= {f".{number}.self_attn.{name}.": mask for name in names} | {
                f".{number}.mlp.{name}.": mask for name in names
            }
    with torch.no_grad():
        for name, parameter in net.parameters.items():
            if "lora_A" in name:
                parameter.mul_(next(mask for place, mask in masks.items() if place in name))
    net.peft.eval()
    wanted, reference = learned(net, batch, None)
    assert loss == pytest.approx(wanted, abs=1e-6)
    for name, gradient in gradients.items():
        expected = reference[name]
        if "lora_A" in name:
            expected = expected * next(mask for place, mask in masks.items() if place in name)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_without_training_nothing_is_dropped() -> None:
    net, batch = taught(FAMILIES["llama"], dropout=0.5), rows().take([0])
    net.peft.train()
    assert not torch.equal(net.loss(batch), net.loss(batch))
    net.peft.eval()
    assert torch.equal(net.loss(batch), net.loss(batch))


def test_a_sample_has_the_loss_that_it_has_alone_whatever_its_neighbours_are() -> None:
    net, part = network(dropout=0.0), packed(1)
    net.peft.eval()
    assert net.flat is not None
    whole = float(net.loss(Rows(**part).take([0])).detach())
    alone = 0.0
    for at in (0, 8, 16):
        ids = part["input_ids"][:, at : at + 8].long()
        alone += float(F.cross_entropy(net.causal(input_ids=ids).logits[0, 3:7], ids[0, 4:8], reduction="sum"))
    assert whole == pytest.approx(alone, rel=1e-5)


def test_a_network_that_the_flat_path_was_not_written_for_is_left_to_peft() -> None:
    for config in (
        GemmaConfig(**SIZES),
        MistralConfig(**SIZES, sliding_window=8),
        LlamaConfig(**SIZES, hidden_act="gelu"),
    ):
        net = taught(config)
        assert net.flat is None
        net.loss(rows().take([0])).backward()
        assert all(parameter.grad is not None for parameter in net.parameters.values())
    half = Network(llama().bfloat16(), rank=4, alpha=8, dropout=0.0, seed=1)
    assert half.flat is None


def test_a_flat_path_that_differs_from_the_models_own_logits_is_put_aside() -> None:
    net, batch = taught(FAMILIES["llama"]), rows().take([0])
    net.check_head(batch)
    assert net.flat is not None
    for block in (block for decoder in net.flat.decoders for block in decoder.blocks):
        block.scaling *= 2
    net.check_head(batch)
    assert net.flat is None


def test_only_tokens_that_a_loss_depends_on_are_computed() -> None:
    batch = uneven().take([0, 4])
    spans = Spans.of(batch, 4, 2)
    # row 0: samples from 0, 2 (nothing to learn) and 15, last labels at 1 and 23; row 4: from 0 and 20, at 13 and 23
    assert len(spans.ids) == 1 + 8 + 13 + 3
    assert len(spans.wanted) == int(batch.supervised.sum())


def test_samples_of_nearly_one_length_are_computed_together() -> None:
    groups = list(alike([10, 40, 39, 9, 100], heads=4))
    assert groups == [[4], [1, 2], [0, 3]]
    assert [len(group) for group in alike([1000] * 3, heads=4)] == [1, 1, 1]
