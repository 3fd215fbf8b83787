from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agents.gguf_factory import lora, merge
from agents.gguf_factory.job import Job
from agents.gguf_factory.rows import Rows
from protocol import Code, LabError
from tests.agents.gguf_factory.tiny import make_job


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Job]:
    """A job whose adapter moves every logit."""
    job = make_job(tmp_path)
    net = lora.Network(lora.load_base(job.base), rank=4, alpha=8, dropout=0.0, seed=3)
    with torch.no_grad():
        for parameter in net.parameters.values():
            torch.nn.init.normal_(parameter, std=0.2)
    net.save(job.path("train", "adapter"), "base")
    yield job


def edit_config(job: Job, **changes: object) -> None:
    path = job.path("train", "adapter", "adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_merged_model_answers_as_base_and_adapter_do(trained: Job) -> None:
    result = merge.run(trained)
    assert result.results["max_logit_difference"] < 1e-4
    assert (result.results["modules"], result.results["adapter_tensors"]) == (14, 28)
    batch = Rows.load(trained.path("data", "held_out.safetensors")).take([0])
    merged = AutoModelForCausalLM.from_pretrained(trained.path("merge", "model")).eval()
    plain = lora.load_base(trained.base).eval()
    assert merged.dtype == torch.float32
    assert float((merge.logits(merged, batch) - merge.logits(plain, batch)).abs().max()) > 0.1


def test_the_tokenizers_files_come_along(trained: Job) -> None:
    (trained.base / "tokenizer.model").write_bytes(b"pieces")
    (trained.base / "README.md").write_text("not the tokenizer's")
    names = {path.name for path in merge.run(trained).files}
    assert {"config.json", "model.safetensors", "chat_template.jinja", "tokenizer.model"} <= names
    assert "README.md" not in names
    assert (trained.path("merge", "model", "tokenizer.model")).read_bytes() == b"pieces"


def test_a_second_run_replaces_what_the_first_left(trained: Job) -> None:
    merge.run(trained)
    (trained.path("merge", "model") / "stale.safetensors").write_bytes(b"")
    assert "stale.safetensors" not in {path.name for path in merge.run(trained).files}


@pytest.mark.parametrize(("name", "value"), [("use_dora", True), ("modules_to_save", ["lm_head"]), ("bias", "all")])
def test_an_adapter_that_no_gguf_can_carry_is_refused(trained: Job, name: str, value: object) -> None:
    edit_config(trained, **{name: value})
    with pytest.raises(LabError) as caught:
        merge.run(trained)
    assert caught.value.code is Code.CONFIGURATION
    assert not trained.path("merge", "model").exists()


def test_half_a_pair_is_refused(trained: Job) -> None:
    path = trained.path("train", "adapter", "adapter_model.safetensors")
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if ".lora_B" in name))
    save_file(tensors, path)
    with pytest.raises(LabError, match="one A and one B per module"):
        merge.run(trained)


def test_a_tensor_that_was_not_used_is_found(trained: Job) -> None:
    path = trained.path("train", "adapter", "adapter_model.safetensors")
    tensors = load_file(path)
    save_file({name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(LabError, match=r"not used: .*layers\.7"):
        merge.run(trained)


def test_a_merge_that_changes_the_logits_is_not_written(trained: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LoraModel.merge_and_unload

    def wrong(self: LoraModel, **options: bool) -> torch.nn.Module:
        merged = original(self, **options)
        with torch.no_grad():
            merged.model.layers[0].mlp.up_proj.weight.mul_(1.01)
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(LabError, match="logits differ"):
        merge.run(trained)
    assert not trained.path("merge", "model").exists()
