"""Pre-tokenizers by structure: every row of the table gives llama.cpp's own ids; what is in no row says which part."""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from agents.gguf_factory import pretokenizer, toolchain
from agents.gguf_factory.fidelity import ODD_TEXTS
from agents.gguf_factory.pretokenizer import GPT2, KNOWN, LLAMA3, NEARLY, QWEN2, SPACES, Structure, UnknownStructure
from tests.agents.gguf_factory.bases import ROOT
from tests.agents.gguf_factory.families import byte_level, corpus

LETTERS = (
    "abcXYZ'sSdDtT  \t\n\r.,!?/-_$+=<>^~|`#(){}[]:;0123456789éÉßİıǅǆАаЖ日本한กำनि्\u0301\u0308\u200d\u00a0\u3000\u2028²½Ⅷ٣①😀🇩🇪"
    "—…“”«»€℃ªʰˇ\ufeff\u0903\u20dd\u0085\u001c\u180e\u1680‿・ー々〆ｱＡ"
)
NAMES = [(row.steps, whole, name) for row in KNOWN for whole, name in ((False, row.merging), (True, row.whole)) if name]

WRITE = """
import gguf, json, sys
for name, source, target in json.load(sys.stdin):
    model = json.load(open(source, encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types([6 if token.startswith("<0x") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
"""


def mixed(count: int, seed: int) -> list[str]:
    """Return random strings that mix scripts, spaces, marks and signs."""
    generator = random.Random(seed)
    return ["".join(generator.choices(LETTERS, k=generator.randint(1, 14))) for _ in range(count)]


def merges(texts: list[str], *, spaces: bool) -> Tokenizer:
    """Train merges over whole texts, so that most pairs have one and a cut in another place shows in the ids."""
    if spaces:
        controls = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
        trainer = trainers.BpeTrainer(vocab_size=2_000, special_tokens=controls, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=3_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def cutting(steps: tuple[str, ...]) -> Any:
    if steps == (SPACES,):
        return pre_tokenizers.Split(" ", "merged_with_previous")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in steps)
    cuts = [
        pre_tokenizers.Digits(individual_digits=True) if step == r"\p{N}" else pre_tokenizers.Split(Regex(step), "isolated")
        for step in steps if step != GPT2
    ]  # fmt: skip
    return pre_tokenizers.Sequence([*cuts, byte_level])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Path]]:
    """Each known name with a tokenizer of its structure, and a vocabulary in a GGUF under that name."""
    folder = tmp_path_factory.mktemp("vocabularies")
    texts = [*mixed(4_000, 1), *corpus()[:100]]
    trained = {spaces: merges(texts, spaces=spaces) for spaces in (False, True)}
    made: dict[str, tuple[Tokenizer, Path]] = {}
    jobs = []
    for steps, whole, name in NAMES:
        tokenizer = trained[steps == (SPACES,)]
        tokenizer.pre_tokenizer = cutting(steps)
        content = json.loads(tokenizer.to_str())
        content["model"]["ignore_merges"] = whole
        assert pretokenizer.name(pretokenizer.structure(content)) == name
        source = folder / f"{name}.json"
        source.write_text(json.dumps(content), encoding="utf-8")
        made[name] = (Tokenizer.from_file(str(source)), folder / f"{name}.gguf")
        jobs.append((name, str(source), str(made[name][1])))
    subprocess.run(
        [sys.executable, "-P", "-c", WRITE], input=json.dumps(jobs), text=True, check=True,
        env={**os.environ, **toolchain.environment(toolchain.check())},
    )  # fmt: skip
    return made


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def quiet(level: int, text: bytes, user_data: object) -> None:
    pass


def differences(tokenizer: Tokenizer, file: Path, texts: list[str]) -> list[str]:
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    found = []
    for text in texts:
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 2))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
        if list(ids[:count]) != tokenizer.encode(text, add_special_tokens=False).ids:
            found.append(text)
    llama_cpp.llama_model_free(model)
    return found


@pytest.mark.parametrize("name", [name for _, _, name in NAMES])
def test_a_known_structure_gives_llama_cpps_own_ids(compared: dict[str, tuple[Tokenizer, Path]], name: str) -> None:
    texts = [*mixed(300, 2), *ODD_TEXTS, *corpus()[:10]]
    found = differences(*compared[name], texts)
    if name in NEARLY:
        assert 0 < len(found) < len(texts) / 10  # the test can see a cut in another place; 6 of 100 mixed strings
    else:
        assert found == []


def test_a_vocabulary_of_ones_own_is_known_by_how_it_cuts() -> None:
    own = json.loads(byte_level(corpus()[:50], QWEN2, size=300, nfc=True).to_str())
    assert pretokenizer.structure(own) == Structure((QWEN2,), False, "NFC")
    assert pretokenizer.name(pretokenizer.structure(own)) == "qwen2"


def test_other_spellings_of_the_same_cuts_are_the_same() -> None:
    cases = LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    for pattern, behaviour, invert in ((cases, "Isolated", False), (LLAMA3, "Removed", True)):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": invert}
        level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        content = {
            "model": {"type": "BPE", "ignore_merges": True},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        }
        assert pretokenizer.name(pretokenizer.structure(content)) == "llama-bpe"


def test_whole_words_first_matter_only_where_merging_would_not_find_them() -> None:
    found = Structure((QWEN2,), whole=True)
    with pytest.raises(UnknownStructure, match="ignore_merges"):
        pretokenizer.name(found)
    assert pretokenizer.name(found, merges_suffice=True) == "qwen2"


LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"type": "Unigram"}}, "Unigram"),
        ({"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": LEVEL, "normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated"}, LEVEL | {"use_regex": False},
        ]}}, r"\[a-z\]\+.*known are those of: Llama 3; Qwen"),
    ],
)  # fmt: skip
def test_what_llama_cpp_has_nothing_for_is_named(content: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownStructure, match=words):
        pretokenizer.name(pretokenizer.structure(content))


def test_the_documentation_names_every_row() -> None:
    page = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8")
    for row in KNOWN:
        names = " | ".join(f"`{name}`" if name else "-" for name in (row.merging, row.whole))
        nearly = NEARLY.get(row.merging or row.whole or "")
        assert f"| {row.family} | {names} | {f'nearly all: {nearly}' if nearly else 'equal'} |" in page
