from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from starter import export
from starter.model import Llama, Shape
from starter.pretrain import Optimiser, save

TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "starter"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random network of 2 layers, as the pre-training saves it."""
    model = Llama(Shape(width=32, layers=2, heads=4, kv_heads=2, feed_forward=48), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder, model, Optimiser(model), {"step": 5, "shape": model.shape.as_dict()})
    return folder


def test_the_folder_is_a_llama_that_transformers_loads(checkpoint: Path, tmp_path: Path) -> None:
    done = export.export(checkpoint, tmp_path / "out", TOKENIZER)
    assert done.difference < 1e-3 and (done.layers, done.step) == (2, 5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] is True
    assert (config["num_hidden_layers"], config["max_position_embeddings"]) == (2, 1024)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == done.parameters
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() == done.parameters


def test_the_special_tokens_are_the_tokenizers(checkpoint: Path, tmp_path: Path) -> None:
    export.export(checkpoint, tmp_path / "out", TOKENIZER)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((tmp_path / "out" / name).read_text())
        wanted = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == wanted
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|end|>"


def test_a_network_that_transformers_computes_differently_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.config

    def wrong(model: Llama, end: int) -> object:
        settings = right(model, end)
        settings.rope_parameters["rope_theta"] = 500.0
        return settings

    monkeypatch.setattr(export, "config", wrong)
    with pytest.raises(ValueError, match="logits differ"):
        export.export(checkpoint, tmp_path / "out", TOKENIZER)
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.safetensors"):
        export.export(tmp_path, tmp_path / "out", TOKENIZER)
