"""Tiny random bases of each family from plan to gates: ids, templates, answers that are learned, logits, sizes.

The stages up to merge run as in a job; all conversions share one process, which is most of a conversion's time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import base as bases
from agents.gguf_factory import (
    chat,
    convert,
    converter,
    fidelity,
    imatrix,
    llama,
    lora,
    pipeline,
    quantise,
    sizes,
    support,
    toolchain,
)
from agents.gguf_factory.gguf_header import Header, read_header
from agents.gguf_factory.job import Job
from agents.gguf_factory.light import LightTokenizer
from protocol import Code, LabError
from protocol.job import Stage
from tests.agents.gguf_factory import runs
from tests.agents.gguf_factory.bases import ROOT
from tests.agents.gguf_factory.families import FAMILIES, Family

PARAMETERS: dict[str, Any] = {
    "max_steps": 2, "batch_size": 2, "sequence_length": 256, "lora_r": 4,
    "control_share": 0.0, "learning_rate": 1e-3, "save_steps": 50,
}  # fmt: skip
TALK = [
    {"role": "user", "content": "Hello  there 1234"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why? 日本 🙂\n\tx"},
    {"role": "assistant", "content": "Because it's so."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
LEARNED = {
    "llama2": " Hi. </s> Because it's so. </s>",
    "llama3": "Hi.<|eot_id|>Because it's so.<|eot_id|>",
    "qwen2": "Hi.<|im_end|>Because it's so.<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\nHi.<|im_end|>|<think>\n\n</think>\n\nBecause it's so.<|im_end|>",
    "gemma2": "Hi.<end_of_turn>Because it's so.<end_of_turn>",
    "gemma3": "Hi.<end_of_turn>Because it's so.<end_of_turn>",
}
"""What the model is taught of TALK; two samples where the template rewrites earlier answers."""


@dataclass
class Made:
    """A family's job with everything up to the quantised file."""

    family: Family
    job: Job
    matrix: imatrix.Matrix

    @property
    def exact(self) -> Path:
        return self.job.path("convert", convert.FILE)

    def quantised(self, kind: str) -> Header:
        """Quantise in this process and return the file's header."""
        target = self.job.path("quantise", f"{kind}.gguf")
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            saved = target.with_name(quantise.IMATRIX)
            imatrix.save(self.matrix, saved)
            assert quantise._quantise_here(self.exact, target, kind, saved) == 0
        return read_header(target)


def write_rows(path: Path, first: int = 0, *, system: bool) -> Path:
    """Write twenty short rows that count from `first`, and as line 21 a longer one."""
    rows = [
        [{"role": "user", "content": f"What is {number} and 日本?"}, {"role": "assistant", "content": f"It's {number}."}]
        for number in range(first, first + 20)
    ]
    talk = [{"role": "user", "content": f"Hello to {first}"}, *TALK[1:]]
    rows += [[SYSTEM, *talk]] if system else [talk]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("families")
    found: dict[str, Made] = {}
    orders: list[str] = []
    for name, family in FAMILIES.items():
        base = family.build(root / f"a base größe {name}")
        rows = write_rows(root / f"{name}.jsonl", system=family.system)
        held_out = write_rows(root / f"{name}-eval.jsonl", 100, system=family.system)
        job = runs.make_job(root / name, base, dataset=str(rows), eval_dataset=str(held_out), parameters=PARAMETERS)
        stages = tuple(item for item in pipeline.stages_for("edge") if item[0] in (Stage.PLAN, Stage.DATA, Stage.TRAIN, Stage.MERGE))
        pipeline.run(job, lambda line: None, stages)
        merged = job.path("merge", "model")
        job.path("convert").mkdir()
        orders += [support.pre_name(bases.read(merged)) or converter.UNKNOWN, str(merged), str(job.path("convert", convert.FILE))]
        found[name] = Made(family, job, {})
    subprocess.run(
        [sys.executable, "-P", converter.__file__, str(toolchain.converter()), *orders], check=True,
        env={**os.environ, **toolchain.environment(toolchain.folder())}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for each in found.values():
        each.matrix, _ = imatrix.measure(each.exact, [list(range(3, 60))])
    return found


NAMES = list(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_the_same_ids_templates_and_logits(made: dict[str, Made], name: str) -> None:
    one = made[name]
    merged = one.job.path("merge", "model")
    tokenizer = chat.load(merged)
    one.quantised("Q4_K_M")
    with (
        llama.load(one.exact, n_ctx=512, exact=True) as exact,
        llama.load(one.job.path("quantise", "Q4_K_M.gguf"), n_ctx=512) as product,
    ):
        ids = fidelity.tokenizer_ids(tokenizer, exact, [chat.render(tokenizer, TALK)])
        template = fidelity.chat_template(tokenizer, exact, [TALK, TALK[:2], TALK[:1]])
        assert (ids.value, template.value) == (0, 0), (ids.detail, template.detail)
        assert exact.ends(tokenizer.convert_tokens_to_ids(one.family.turn_end))
        sample = [*chat.encode(tokenizer, TALK[:2])[0], *range(10, 90)]  # longer than the families' windows here
        f16, quantised, _ = fidelity.mean_divergences(lora.load_base(merged).eval(), exact, product, [sample])
    assert f16 is not None and f16 < 1e-5
    assert quantised is not None and 1e-6 < quantised < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_answers_alone_are_learned_each_with_the_end_of_its_turn(made: dict[str, Made], name: str) -> None:
    tokenizer = chat.load(made[name].job.base)
    found = chat.samples(tokenizer, TALK, 1000)
    texts = [
        tokenizer.decode([token for token, mark in zip(sample.ids, sample.supervised, strict=True) if mark],
                         clean_up_tokenization_spaces=False)
        for sample in found
    ]  # fmt: skip
    assert "|".join(texts).replace("</s> ", "</s>") == LEARNED[name].replace("</s> ", "</s>").removeprefix(" ")
    prompt = tokenizer.encode(chat.render(tokenizer, TALK[:1], prompt=True), add_special_tokens=False)
    assert found[0].ids[: len(prompt)] == prompt and not any(found[0].supervised[: len(prompt)])


@pytest.mark.parametrize("name", NAMES)
def test_planning_counts_the_tokens_that_training_reads(made: dict[str, Made], name: str) -> None:
    base = bases.read(made[name].job.base)
    light, full = LightTokenizer(base), chat.load(base.folder)
    talks = [TALK, *([[SYSTEM, *TALK]] if made[name].family.system else [])]
    for talk in talks:
        assert chat.samples(light, talk, 1000) == chat.samples(full, talk, 1000)
    assert made[name].job.run.plan.tokens == made[name].job.read_manifest("data")["results"]["tokens"]
    assert light.size <= base.config["vocab_size"]


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "Q3_K_M", "Q2_K"])
@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_predicted_within_two_percent(made: dict[str, Made], name: str, kind: str) -> None:
    one = made[name]
    header = one.quantised(kind)
    base = bases.read(one.job.base)
    vocabulary = sizes.vocabulary_bytes(base.folder, base.config["vocab_size"], base.template)
    predicted = sizes.file_bytes(base.config, vocabulary, kind)
    assert predicted == pytest.approx(one.job.path("quantise", f"{kind}.gguf").stat().st_size, rel=0.02)
    if kind == "Q4_K_M":
        assert one.job.run.plan.file_bytes == predicted
        wanted = {f"{tensor.name}.weight".replace(".bias.weight", ".bias"): tensor for tensor in sizes.tensors(base.config)}
        assert {tensor.name: tensor.weights for tensor in header.tensors} == {n: t.weights for n, t in wanted.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_has_an_adapter_and_every_matrix_an_importance(made: dict[str, Made], name: str) -> None:
    one = made[name]
    layers = bases.read(one.job.base).config["num_hidden_layers"]
    assert one.job.read_manifest("merge")["results"]["modules"] == 7 * layers
    matrices = {tensor.name for tensor in one.quantised("Q4_K_M").tensors if len(tensor.shape) > 1}
    assert matrices - set(one.matrix) <= {"token_embd.weight"}  # an untied embedding is looked up, not multiplied


def test_what_a_base_is_stored_in_does_not_matter(made: dict[str, Made]) -> None:
    assert len(bases.weight_files(made["qwen2"].job.base)) > 1  # several files
    assert bases.read(made["qwen3"].job.base).config["dtype"] == "bfloat16"
    for name in ("qwen2", "qwen3"):
        config = json.loads(made[name].job.path("merge", "model", "config.json").read_text())
        assert config["dtype"] == "float32"


def test_a_base_without_padding_is_told_what_fills_its_rows(made: dict[str, Made]) -> None:
    assert any("no pad_token" in warning for warning in made["llama3"].job.run.plan.warnings)
    assert not any("pad_token" in warning for warning in made["qwen3"].job.run.plan.warnings)
    stops = chat.ends(chat.load(made["qwen3"].job.base))
    assert len(stops) == 2 and chat.filler(min(stops), stops) == 0  # Qwen's pad ends a text: it does not fill rows


def test_a_template_without_system_turns_refuses_them_by_line(made: dict[str, Made], tmp_path: Path) -> None:
    rows, held_out = (write_rows(tmp_path / f"{first}.jsonl", first, system=True) for first in (0, 100))
    with pytest.raises(LabError, match=r"line 21 \(System role not supported\)") as caught:
        runs.make_job(tmp_path / "home", made["gemma2"].job.base, dataset=str(rows), eval_dataset=str(held_out))
    assert caught.value.code is Code.BAD_DATA and caught.value.data["line"] == 21
    assert "before the first question" in caught.value.advice


def test_a_system_turn_goes_where_the_template_puts_it(made: dict[str, Made]) -> None:
    tokenizer = chat.load(made["gemma3"].job.base)
    assert "<start_of_turn>user\nBe brief.\n\nHello" in chat.render(tokenizer, [SYSTEM, *TALK])


def test_a_missing_part_of_the_weights_is_named(made: dict[str, Made], tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    source = made["qwen2"].job.base
    for path in source.iterdir():
        if "00002" not in path.name:
            (folder / path.name).symlink_to(path)
    with pytest.raises(LabError, match="model-00002-of-") as caught:
        bases.read(folder)
    assert caught.value.code is Code.NOT_FOUND


def test_the_documentation_names_every_family_that_is_proven(made: dict[str, Made]) -> None:
    page = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8")
    for one in made.values():
        base = bases.read(one.job.base)
        assert base.architecture in support.PROVEN and base.config["model_type"] in sizes.FAMILIES
        assert f"| `{base.architecture}` |" in page
