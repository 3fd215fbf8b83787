"""Every fault that ruins a fine-tuned file elsewhere is planted into a tiny real one; each test names the gate that finds it."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama import LlamaForCausalLM

from agents.gguf_factory import chat, convert, gates, validate
from agents.gguf_factory.job import Job
from agents.gguf_factory.measure import Measurement
from agents.gguf_factory.subject import ModelFile, Subject
from configs import GateRule
from protocol import Code, LabError
from tests.agents.gguf_factory import exports, patches
from tests.agents.gguf_factory.exports import ROWS

FAILING = {name: rule for name, rule in exports.rules().items() if rule.level == "fail" and name != "stops_percent"}
STRICT = {**FAILING, **{name: GateRule(level="fail", threshold=threshold) for name, threshold in (
    ("quant_kl", 0.1), ("overfit_percent", 100), ("pairing_percent", 101),
)}}  # fmt: skip
"""The starter's failing gates, and as failing ones those that only warn there; drawing answers has tests of its own."""


@pytest.fixture(scope="module")
def network(exported: Job) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(exported.path("merge", "model")).eval()


@pytest.fixture
def healthy(exported: Job, network: LlamaForCausalLM, general: Path) -> Subject:
    """The finished file of the fixture and what it is measured against."""
    return dataclasses.replace(validate.subject(exported, general), network=lambda: network)


@pytest.fixture(scope="module")
def taught(exported: Job, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Any]], Path]:
    """Return a function that trains the same base on other rows and returns it as an F16 file."""

    def teach(rows: list[Any]) -> Path:
        model = LlamaForCausalLM.from_pretrained(exported.base)
        exports.teach(model, chat.load(exported.base), steps=25, rows=rows, sure=False)
        target = patches.copy(exported.path("convert", convert.FILE), tmp_path_factory.mktemp("taught"))
        patches.put_weights(target, model)
        return target

    return teach


def missed(subject: Subject, *names: str) -> dict[str, str]:
    """Measure gates (default: all but the footprint's) and return the missed ones with what they say."""
    rules = {name: STRICT[name] for name in names or STRICT}
    state = Measurement(subject, rules, subject.product.path.parent, samples=0)
    state.run()
    judged = gates.judge(state.measured, rules)
    return {name: judged[name].detail for name in gates.missed(judged)}


def with_product(healthy: Subject, path: Path, **changes: Any) -> Subject:
    """Put another file to the test. Nobody wrote its hash down: what finds a fault shall not be the hash."""
    return dataclasses.replace(healthy, product=ModelFile(path), sha256=None, **changes)


def test_a_healthy_file_misses_no_gate(healthy: Subject) -> None:
    assert missed(healthy) == {}


def test_weights_put_into_a_copy_are_the_same_file(exported: Job, network: LlamaForCausalLM, tmp_path: Path) -> None:
    source = exported.path("convert", convert.FILE)
    target = patches.copy(convert.convert_base(exported.base, exported.home), tmp_path)
    patches.put_weights(target, network)
    assert target.read_bytes()[-4_000_000:] == source.read_bytes()[-4_000_000:], "or the faults below would be others"


@pytest.mark.parametrize("tensor", ["blk.0.attn_q.weight", "blk.1.attn_k.weight"])
def test_permuted_rows_of_queries_or_keys_are_found_by_integrity(healthy: Subject, tmp_path: Path, tensor: str) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    patches.permute_rows(broken, tensor)
    found = missed(with_product(healthy, broken), "integrity")
    assert f"{tensor} differs from the F16 file's" in found["integrity"]


def test_rows_permuted_by_the_conversion_are_found_by_f16_kl(healthy: Subject, tmp_path: Path) -> None:
    assert healthy.exact is not None
    broken = patches.copy(healthy.exact.path, tmp_path)
    patches.permute_rows(broken, "blk.0.attn_q.weight")
    assert "f16_kl" in missed(with_product(healthy, broken, exact=ModelFile(broken)), "integrity", "f16_kl", "quant_kl")


def test_a_wrong_chat_template_is_found_by_chat_template(healthy: Subject, tmp_path: Path) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    patches.set_template(broken, "<|end|>", "<|eot|>")
    assert list(missed(with_product(healthy, broken))) == ["chat_template"]


def test_a_wrong_end_token_is_found_by_tokenizer_ids(healthy: Subject, tmp_path: Path) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    patches.set_number(broken, "tokenizer.ggml.eos_token_id", 2)
    found = missed(with_product(healthy, broken))
    assert "eos is 2 in the file, 6 in the tokenizer" in found["tokenizer_ids"]


def test_token_ids_shifted_in_the_vocabulary_are_found_by_tokenizer_ids(healthy: Subject, tmp_path: Path) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    size = patches.tensor(broken, "token_embd.weight").shape[1]
    patches.reorder_tokens(broken, [*range(300), size - 1, *range(300, size - 1)])
    assert "tokenizer_ids" in missed(with_product(healthy, broken), "tokenizer_ids")


def test_token_ids_shifted_in_the_embedding_are_found_by_integrity_and_quality(
    healthy: Subject, tmp_path: Path
) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    patches.shift_rows(broken, "token_embd.weight")
    found = missed(with_product(healthy, broken))
    assert "token_embd.weight" in found["integrity"]
    assert "quality_percent" in missed(with_product(healthy, broken, exact=None), "quality_percent"), "without F16 too"


def test_a_swapped_tokenizer_is_found_by_tokenizer_ids(healthy: Subject, tmp_path: Path) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    size = patches.tensor(broken, "token_embd.weight").shape[1]
    order = list(range(size))
    tail = order[300:]
    random.Random(0).shuffle(tail)
    patches.reorder_tokens(broken, [*order[:300], *tail])
    found = missed(with_product(healthy, broken))
    assert int(found["tokenizer_ids"].split()[0]) > len(ROWS)


def test_an_untrained_adapter_is_found_by_quality(healthy: Subject) -> None:
    found = missed(with_product(healthy, healthy.base().path, exact=None, network=None), "quality_percent")
    assert "quality_percent" in found


def test_training_on_shuffled_answers_is_found_by_pairing(healthy: Subject, taught: Any) -> None:
    rows = [[turns[0], ROWS[i - 1][1]] for i, turns in enumerate(ROWS)]
    subject = with_product(healthy, taught(rows), exact=None, train=rows)
    found = missed(subject, "quality_percent", "pairing_percent")
    assert list(found) == ["pairing_percent"], "quality passes it: the form of the answers was learned"


def test_an_overfitted_adapter_is_found_by_overfit(healthy: Subject, taught: Any) -> None:
    file = taught(ROWS[:3])
    subject = with_product(healthy, file, exact=None, train=ROWS[:3], held_out=ROWS[3:])
    assert list(missed(subject, "quality_percent", "overfit_percent")) == ["overfit_percent"], (
        "random weights gain anyhow"
    )


def test_a_truncated_file_is_refused_by_its_header(healthy: Subject, tmp_path: Path) -> None:
    broken = tmp_path / "short.gguf"
    broken.write_bytes(healthy.product.path.read_bytes()[:-1000])
    with pytest.raises(LabError, match="not a whole GGUF file") as caught:
        missed(with_product(healthy, broken))
    assert (caught.value.code, caught.value.data["file"]) == (Code.TOOLCHAIN, str(broken))


def test_one_flipped_bit_anywhere_is_found_by_integrity_where_the_hash_is_known(
    healthy: Subject, tmp_path: Path
) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    patches.flip(broken, "blk.1.ffn_up.weight", byte=100, mask=1)
    subject = dataclasses.replace(healthy, product=ModelFile(broken))
    assert "its manifest says" in missed(subject, "integrity")["integrity"]


# byte 1 of a Q4_K block is the high half of its 16-bit scale: 0x40 is an exponent bit, 0x7C all of them
@pytest.mark.parametrize(("mask", "why"), [(0x40, "differs from the F16"), (0x7C, "no numbers|differs from the F16")])
def test_a_damaged_scale_is_found_by_integrity_without_a_hash(
    healthy: Subject, tmp_path: Path, mask: int, why: str
) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    assert patches.tensor(broken, "blk.0.ffn_gate.weight").type == "Q4_K"
    patches.flip(broken, "blk.0.ffn_gate.weight", byte=1, mask=mask)
    found = missed(with_product(healthy, broken), "integrity")
    assert re.search(f"blk.0.ffn_gate.weight.*({why})", found["integrity"])


def test_a_scale_grown_beyond_the_bases_is_found_by_integrity_with_nothing_but_the_base(
    healthy: Subject, tmp_path: Path
) -> None:
    broken = patches.copy(healthy.product.path, tmp_path)
    patches.flip(broken, "blk.0.ffn_gate.weight", byte=1, mask=0x20)
    found = missed(with_product(healthy, broken, exact=None), "integrity")
    assert "blk.0.ffn_gate.weight has weights up to" in found["integrity"]
