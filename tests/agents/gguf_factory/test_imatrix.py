from __future__ import annotations

import numpy as np
import torch
from transformers.models.llama import LlamaForCausalLM

from agents.gguf_factory import imatrix, quantise, toolchain
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job

TEXTS = [[1, 5, 300, 400, 6], [1, 5, 17, 18, 19, 20, 6]]


def names(modules: list[str]) -> dict[str, str]:
    return toolchain.tensor_names(toolchain.check(), "llama", 2, modules)


def test_every_matrix_of_the_file_has_statistics_of_its_own_width(exported: Job) -> None:
    matrix = imatrix.read(exported.path("quantise", quantise.IMATRIX))
    header = read_header(exported.path("convert", "model-f16.gguf"))
    widths = {tensor.name: tensor.shape[0] for tensor in header.tensors if len(tensor.shape) > 1}
    assert {name: values.size for name, values in matrix.items()} == widths


def test_the_statistics_are_mean_squares_of_what_enters_the_layer(exported: Job) -> None:
    model = LlamaForCausalLM.from_pretrained(exported.path("merge", "model")).eval()
    matrix, tokens = imatrix.measure(model, TEXTS, names)
    assert tokens == 12
    total = np.zeros(256)
    with torch.no_grad():
        for ids in TEXTS:
            states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            total += states.double().square().sum(0).numpy()
    np.testing.assert_allclose(matrix["token_embd.weight"], total / 12, rtol=1e-4)
    assert "output.weight" not in matrix


def test_reading_ends_at_the_asked_number_of_tokens_and_takes_its_hooks_away(exported: Job) -> None:
    model = LlamaForCausalLM.from_pretrained(exported.path("merge", "model")).eval()
    _, tokens = imatrix.measure(model, TEXTS * 50, names, tokens=20)
    assert tokens == 20
    assert not any(module._forward_pre_hooks for module in model.modules())
