from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.llama import LlamaForCausalLM

from agents.gguf_factory import convert, imatrix, quantise
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job, Stopped

TEXTS = [[1, 5, 300, 400, 6], [1, 5, 17, 18, 19, 20, 6]]


@pytest.fixture
def f16(exported: Job) -> Path:
    return exported.path("convert", convert.FILE)


def test_every_matrix_of_the_file_has_statistics_of_its_own_width(exported: Job, f16: Path) -> None:
    matrix = imatrix.read(exported.path("quantise", quantise.IMATRIX))
    widths = {tensor.name: tensor.shape[0] for tensor in read_header(f16).tensors if len(tensor.shape) > 1}
    assert {name: values.size for name, values in matrix.items()} == widths


def test_the_statistics_are_mean_squares_of_what_enters_the_layer_in_torch(exported: Job, f16: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(exported.path("merge", "model")).eval()
    entered: dict[str, list[torch.Tensor]] = {
        "token_embd.weight": [],
        "blk.1.attn_k.weight": [],
        "blk.0.ffn_down.weight": [],
    }
    layers = {
        "token_embd.weight": model.lm_head, "blk.1.attn_k.weight": model.model.layers[1].self_attn.k_proj,
        "blk.0.ffn_down.weight": model.model.layers[0].mlp.down_proj,
    }  # fmt: skip
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: entered[name].append(inputs[0][0]))
    with torch.no_grad():
        for ids in TEXTS:
            model(input_ids=torch.tensor([ids]))
    matrix, tokens = imatrix.measure(f16, TEXTS)
    assert tokens == 12
    for name, rows in entered.items():
        np.testing.assert_allclose(matrix[name], torch.cat(rows).double().square().mean(0).numpy(), rtol=5e-3)


def test_reading_ends_at_the_asked_number_of_tokens(f16: Path) -> None:
    assert imatrix.measure(f16, TEXTS * 50, tokens=20)[1] == 20


def test_a_stop_is_obeyed_before_the_next_text(f16: Path) -> None:
    with pytest.raises(Stopped):
        imatrix.measure(f16, TEXTS, stop=lambda: True)
