"""What a base lacks is told before anything is paid: its architecture, its vocabulary, its end of turn."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import base as bases
from agents.gguf_factory import support, toolchain
from protocol import Code, LabError
from tests.agents.gguf_factory.bases import make_base
from tests.agents.gguf_factory.families import LLAMA3, QWEN2, byte_level


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama with the starter's SentencePiece."""
    return make_base(tmp_path / "base")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def with_vocabulary(base: Path, pattern: str, **settings: Any) -> Path:
    """Give the base a byte-level BPE in place of its SentencePiece."""
    (base / "tokenizer.model").unlink()
    content = json.loads(byte_level(["some text of ours"] * 4, pattern, size=270, **settings).to_str())
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": 300, "content": "<|end|>", "special": True, **marks}]
    (base / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return base


def refused(base: Path) -> LabError:
    with pytest.raises(LabError) as caught:
        support.check(bases.read(base))
    assert caught.value.data["field"] == "base" and caught.value.advice
    return caught.value


def test_the_converters_own_table_is_read() -> None:
    known = support.converter_architectures(toolchain.check())
    assert len(known) > 150 and known > {*support.PROVEN, "PhiForCausalLM", "GraniteForCausalLM"}
    assert support.causal_architectures() > set(support.PROVEN)


def test_reading_what_is_known_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from agents.gguf_factory import support, toolchain\n"
        "support.converter_architectures(toolchain.folder()); support.causal_architectures()\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_proven_architecture_has_no_notes(base: Path) -> None:
    assert support.check(bases.read(base)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": []}, "names no architecture"),
        ({"architectures": ["LlamaForCausalLN"]}, "LlamaForCausalLN, which llama.cpp's converter does not know"),
        ({"architectures": ["BertModel"]}, "no causal language model"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"vocab_size": 8192}}, "more than text"),
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "state from token to token"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised \\(gptq\\)"),
    ],
)
def test_what_cannot_go_the_whole_way_says_what_is_missing(base: Path, changes: dict[str, Any], words: str) -> None:
    edit(base / "config.json", **changes)
    error = refused(base)
    assert error.code is Code.BAD_DATA and error.data["file"].endswith("config.json")
    with pytest.raises(LabError, match=words):
        raise error


def test_an_unknown_architecture_is_told_its_neighbours(base: Path) -> None:
    edit(base / "config.json", architectures=["Qwen3ForCausalLN"])
    assert "Qwen3ForCausalLM" in refused(base).advice


def test_an_architecture_that_was_never_tried_works_and_says_so(base: Path) -> None:
    edit(base / "config.json", architectures=["GraniteForCausalLM"], num_local_experts=4)
    notes = support.check(bases.read(base))
    assert "GraniteForCausalLM" in notes[0] and "experts" in notes[1]


def test_a_vocabulary_of_ones_own_needs_no_hash(base: Path) -> None:
    found = bases.read(with_vocabulary(base, QWEN2))
    assert support.check(found) == [] and support.pre_name(found) == "qwen2"


def test_merges_that_find_every_token_make_both_ways_of_merging_equal(base: Path) -> None:
    found = bases.read(with_vocabulary(base, QWEN2, ignore_merges=True))
    assert support.check(found) == [] and support.pre_name(found) == "qwen2"
    content = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"zzz": 290}
    (base / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert "ignore_merges" in refused(base).message


def test_an_unknown_pre_tokenizer_is_named_with_those_that_are_known(base: Path) -> None:
    error = refused(with_vocabulary(base, r"[aeiou]+|\s+|[^\s]"))
    assert r"cuts text by [aeiou]+|\s+|[^\s]" in error.message and "Llama 3; Qwen 2 and 3" in error.message


def test_a_pre_tokenizer_known_by_its_hash_alone_is_taken_with_a_note(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toolchain.folder() / "conversion" / "base.py"
    text, table = support._hashes(path)
    assert len(table) > 90 and table["0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5"] == "llama-bpe"
    with_vocabulary(base, "[a-z]+")
    monkeypatch.setattr(support, "_by_hash", lambda path: "command-r")
    found = bases.read(base)
    assert "hash alone" in support.check(found)[0] and support.pre_name(found) is None
    assert "3333" in text


def test_a_broken_tokenizer_json_is_named(base: Path) -> None:
    with_vocabulary(base, "[a-z]+")
    edit(base / "tokenizer.json", added_tokens=[{"id": 300}])
    assert "cannot be read" in refused(base).message


def test_a_sentencepiece_without_its_model_is_refused(base: Path) -> None:
    (base / "tokenizer.model").unlink()
    content = {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"a": 0}, "merges": []}}
    (base / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    error = refused(base)
    assert error.code is Code.NOT_FOUND and "tokenizer.model" in error.message


def test_several_ends_need_a_tokenizer_json_to_tell_which_is_eos(base: Path) -> None:
    edit(base / "config.json", eos_token_id=[6, 2])
    assert "eos_token_id [6, 2]" in refused(base).message


def test_an_end_of_turn_at_which_llama_cpp_would_go_on_is_refused(base: Path) -> None:
    added = {"5": {"content": "<|done|>", "special": True}, "7": {"content": "<|im_end|>", "special": True}}
    edit(base / "tokenizer_config.json", added_tokens_decoder=added)
    found = bases.read(base)
    support.check_stop(found, 7)
    with pytest.raises(LabError, match=r"ends answers with <\|done\|>"):
        support.check_stop(found, 5)


def test_end_tokens_are_those_of_generation_config(base: Path) -> None:
    assert bases.end_ids(base) == {6}
    (base / "generation_config.json").write_text('{"eos_token_id": [6, 2]}')
    assert bases.end_ids(base) == {2, 6}


def test_the_template_is_found_where_transformers_keeps_it(base: Path) -> None:
    jinja = base / "chat_template.jinja"
    text = jinja.read_text()
    jinja.unlink()
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": text}]
    for place, content in (("tokenizer_config.json", text), ("tokenizer_config.json", named), ("chat_template.json", text)):
        shutil.copy(base / "tokenizer_config.json", base / "kept")
        if place == "chat_template.json":
            (base / place).write_text("{}")
        edit(base / place, chat_template=content)
        assert bases.read(base).template == text
        shutil.copy(base / "kept", base / "tokenizer_config.json")


def test_llama_3s_cuts_have_a_name_for_both_ways_of_merging(base: Path) -> None:
    assert support.pre_name(bases.read(with_vocabulary(base, LLAMA3))) == "smaug-bpe"


def test_a_hub_name_is_found_in_the_local_cache(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place, revision = tmp_path / "hub" / "models--people--tiny", "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    (place / "blobs").mkdir()
    snapshot = place / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for number, file in enumerate(base.iterdir()):  # the cache holds files by content, and links to them by name
        shutil.copy(file, place / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    found = bases.read(bases.resolve("people/tiny"))
    assert found.folder == snapshot and found.architecture == "LlamaForCausalLM" and support.check(found) == []
