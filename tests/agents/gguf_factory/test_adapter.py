"""An adapter's GGUF: what is in it, what it says, what it belongs to, and that it answers as peft does."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from agents.gguf_factory import adapter, convert, llama, merge, proof, shared_base
from agents.gguf_factory.fidelity import divergence, torch_logits
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.gguf_values import add_values
from agents.gguf_factory.job import Job
from agents.gguf_factory.llama import Model
from configs import GATES
from protocol import Code, LabError
from tests.agents.gguf_factory import adapters

IDS = [1, 4, 300, 301, 302, 6, 5, 77, 78]


def made(job: Job) -> Path:
    return job.path("convert", adapter.file_name(job))


@pytest.fixture(scope="module")
def exact(adapted: Job) -> Iterator[Model]:
    """The base in F16 with exact keys and values."""
    path = convert.convert_base(adapted.base, adapted.home)
    with llama.load(path, n_ctx=256, exact=True) as model:
        yield model


def test_the_file_has_two_tensors_a_module_and_says_rank_alpha_and_base(adapted: Job) -> None:
    header, results = read_header(made(adapted)), adapted.read_manifest("convert")["results"]
    assert len(header.tensors) == results["tensors"] == 2 * results["modules"] == 2 * 2 * 7
    assert (header.values[adapter.RANK], header.values[adapter.ALPHA]) == (adapters.RANK, adapters.ALPHA)
    assert header.values["general.type"] == "adapter" and header.values["adapter.type"] == "lora"
    assert header.values[llama.BASE_SHA256] == adapter.content(adapted.base)
    assert (header.values[adapter.BASE_NAME], header.values[adapter.BASE_QUANTISATION]) == ("model", "Q4_K_M")


def test_a_good_adapter_passes_every_gate_that_concerns_it(adapted: Job) -> None:
    manifest = adapted.read_manifest("validate")
    gates, results = manifest["gates"], manifest["results"]
    assert list(gates) == list(GATES)
    assert [name for name, gate in gates.items() if gate["value"] is None] == ["private_mb"]
    assert all(gate["ok"] for gate in gates.values() if gate["level"] == "fail"), gates
    assert gates["f16_kl"]["value"] < 1e-6
    assert gates["file_bytes"]["value"] == made(adapted).stat().st_size and gates["file_bytes"]["threshold"] == 8_800_000
    assert gates["quality_percent"]["value"] == pytest.approx(100 * results["base_perplexity"] / results["tuned_perplexity"])
    assert gates["load_ms"]["value"] == results["adapter_load_ms"] > 0
    assert results["answers"][0]["tuned"] != results["answers"][0]["base"]


def test_two_adapters_on_one_base_answer_as_peft_does_and_leave_the_base_as_it_was(
    adapted: Job, exact: Model, tmp_path: Path
) -> None:
    trained = adapted.path("train", "adapter")
    other = adapters.negated(made(adapted), trained, tmp_path / "other")
    base = exact.logits(IDS)
    found = {}
    for file, folder in ((made(adapted), trained), (other, other.parent), (made(adapted), trained)):
        loaded = exact.load_adapter(file)
        exact.use(loaded)
        found[file] = exact.logits(IDS)
        wanted = torch_logits(merge.load_adapted(adapted.base, folder), IDS)
        assert divergence(wanted, found[file]) / len(IDS) < 1e-5
        exact.drop(loaded)
    one, two = found.values()
    assert divergence(one, two) / len(IDS) > 0.01 < divergence(one, base) / len(IDS)
    assert exact.adapter is None
    np.testing.assert_array_equal(exact.logits(IDS), base)


def test_an_adapter_of_another_base_is_refused_and_the_one_in_use_stays(
    adapted: Job, exported: Job, exact: Model, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow.gguf"  # as of a base of half the width
    content, name = made(adapted).read_bytes(), b"blk.0.attn_q.weight.lora_a"
    at = content.index(name) + len(name) + 4
    assert struct.unpack_from("<QQ", content, at) == (256, adapters.RANK)
    narrow.write_bytes(content[:at] + struct.pack("<QQ", 128, 2 * adapters.RANK) + content[at + 16 :])
    with pytest.raises(LabError, match="incorrect shape") as caught:
        exact.load_adapter(narrow)
    assert caught.value.code is Code.BAD_DATA and caught.value.data["file"] == str(narrow)

    marked = tmp_path / "marked.gguf"  # as wide, another content
    shutil.copyfile(exported.path("convert", convert.FILE), marked)
    add_values(marked, {llama.BASE_SHA256: "0" * 64})
    with llama.load(marked, n_ctx=256) as model:
        before = model.logits(IDS)
        with pytest.raises(LabError, match=r"another base .* though of the same shape") as caught:
            model.load_adapter(made(adapted))
        assert caught.value.data["wanted"] == adapter.content(adapted.base)
        np.testing.assert_array_equal(model.logits(IDS), before)


def test_a_whole_model_or_a_cut_file_is_no_adapter(adapted: Job, exact: Model, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made(adapted).read_bytes()[:-5_000])
    for path, told in ((exact.path, "got: model"), (cut, "."), (tmp_path / "nowhere.gguf", "there is no file")):
        with pytest.raises(LabError, match=told):
            exact.load_adapter(path)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5]}, {"use_rslora": True},
     {"alpha_pattern": {"q_proj": 3}}, {"rank_pattern": {"q_proj": 3}}, {"bias": "all"}],
)  # fmt: skip
def test_what_no_gguf_can_carry_is_refused_before_the_converter_runs(adapted: Job, tmp_path: Path, change: Any) -> None:
    shutil.copytree(adapted.path("train", "adapter"), tmp_path / "adapter")
    edit(tmp_path / "adapter", **change)
    with pytest.raises(LabError, match=next(iter(change))[:4]) as caught:
        adapter.convert_adapter(tmp_path / "adapter", adapted.base, tmp_path / "a.gguf", name="b", quantisation="Q4_K_M")
    assert caught.value.code is Code.CONFIGURATION and not list(tmp_path.glob("*.gguf"))


def test_added_tokens_are_refused(adapted: Job, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapted.path("train", "adapter"), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"] = np.zeros((8, 8), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(LabError, match="embed_tokens"):
        adapter.convert_adapter(folder, adapted.base, tmp_path / "a.gguf", name="b", quantisation="Q4_K_M")


@pytest.mark.parametrize(
    ("modules", "rank", "alpha", "told"),
    [(13, 8, 16.0, "28 tensors, the adapter 13 modules"), (14, 4, 16.0, "another rank than 4"), (14, 8, 8.0, "alpha 16.0")],
)
def test_a_converted_adapter_that_lost_something_is_told(
    adapted: Job, modules: int, rank: int, alpha: float, told: str
) -> None:
    with pytest.raises(LabError, match=told):
        adapter.check_whole(read_header(made(adapted)), modules, rank, alpha)


def test_published_are_the_adapter_and_its_base_by_reference(adapted: Job) -> None:
    artefacts = {item["kind"]: item for item in adapted.read_manifest("publish")["artefacts"]}
    assert list(artefacts) == ["adapter", "base", "manifest", "card"]
    path, base, again = shared_base.of_job(adapted)
    assert not again and artefacts["base"]["uri"] == path.as_uri() and artefacts["base"]["sha256"] == base.sha256
    store = adapted.home / "artefacts" / artefacts["adapter"]["sha256"]
    assert sorted(item.name for item in store.iterdir()) == ["README.md", "manifest.json", "sleep-adapter.gguf"]
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["profile"] == "adapter" and manifest["base"]["file"]["sha256"] == base.sha256
    card = (store / "README.md").read_text()
    assert base.sha256 in card and "--lora sleep-adapter.gguf" in card


def test_further_values_leave_every_tensor_as_it_was(adapted: Job, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    shutil.copyfile(made(adapted), file)
    before = read_header(file)
    data = file.read_bytes()[before.data_start :]
    add_values(file, {"a.text": "ü", "a.number": 7, "a.part": 0.5})
    after = read_header(file)
    assert after.values == {**before.values, "a.text": "ü", "a.number": 7, "a.part": 0.5}
    assert after.tensors == before.tensors and file.read_bytes()[after.data_start :] == data
    with pytest.raises(LabError, match=r"a value of a\.text already"):
        add_values(file, {"a.text": "x"})
    assert list(tmp_path.iterdir()) == [file], "nothing half-made is left"


def test_any_adapter_can_be_proven_on_its_base_and_a_damaged_one_is_found(adapted: Job, tmp_path: Path) -> None:
    only = ("integrity", "tokenizer_ids", "quality_percent", "file_bytes")
    held_out = str(adapted.path("data", "held_out.jsonl"))
    report = proof.prove(
        proof.Request(made(adapted), str(adapted.base), held_out, tier="starter", only=only), adapted.home
    )
    gates = adapted.read_manifest("validate")["gates"]
    assert report["ok"] and report["gates"]["file_bytes"] == gates["file_bytes"]
    assert report["gates"]["quality_percent"]["value"] == pytest.approx(gates["quality_percent"]["value"])
    damaged = tmp_path / "damaged.gguf"
    content = bytearray(made(adapted).read_bytes())
    content[read_header(made(adapted)).data_start + 1] = 0x7C  # the exponent of a 16-bit infinity or NaN
    damaged.write_bytes(content)
    request = proof.Request(damaged, str(adapted.base), held_out, tier="starter", only=("integrity",))
    report = proof.prove(request, adapted.home)
    assert not report["ok"] and "blk.0" in report["gates"]["integrity"]["detail"]
