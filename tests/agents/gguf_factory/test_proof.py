from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.llama import LlamaForCausalLM
from typer.testing import CliRunner

from agents.gguf_factory import convert, proof, validate
from agents.gguf_factory.chat import Sample
from agents.gguf_factory.job import Job
from agents.gguf_factory.measure import Measurement
from meetara.cli import app
from protocol import Code, LabError
from tests.agents.gguf_factory import exports, patches

CHEAP = ("integrity", "tokenizer_ids", "chat_template", "quality_percent")


@pytest.fixture
def elsewhere(exported: Job, tmp_path: Path) -> proof.Request:
    """The finished file as somebody else has it: no job, no manifest."""
    file = tmp_path / "theirs.gguf"
    shutil.copyfile(exported.path("quantise", "sleep-Q4_K_M.gguf"), file)
    return proof.Request(
        file, str(exported.base), str(exported.path("data", "held_out.jsonl")), tier="starter", only=CHEAP
    )


def prove(request: proof.Request, exported: Job, **changes: Any) -> dict[str, Any]:
    return proof.prove(dataclasses.replace(request, **changes), exported.home)


def test_a_file_without_a_job_is_measured_with_what_was_given(elsewhere: proof.Request, exported: Job) -> None:
    report = prove(elsewhere, exported, only=(*CHEAP, "f16_kl", "quant_kl", "overfit_percent", "lesson_percent"))
    assert report["ok"] and report["sha256"] == convert.file_sha256(elsewhere.file)
    assert {name for name, gate in report["gates"].items() if gate["ok"]} == set(CHEAP)
    for name, why in (
        ("f16_kl", "no torch weights"),
        ("overfit_percent", "no training rows"),
        ("lesson_percent", "manifest.json"),
    ):
        gate = report["gates"][name]
        assert (gate["value"], gate["ok"]) == (None, None) and why in gate["detail"]


def test_the_f16_file_and_the_torch_weights_let_both_divergences_be_measured(
    elsewhere: proof.Request, exported: Job
) -> None:
    twin, model = exported.path("convert", convert.FILE), exported.path("merge", "model")
    gates = prove(elsewhere, exported, f16=twin, model=model, only=("f16_kl", "quant_kl"))["gates"]
    assert gates["f16_kl"]["ok"] and 1e-5 < gates["quant_kl"]["value"] < 1


def test_training_rows_show_overfitting_and_are_not_counted_as_held_out(
    elsewhere: proof.Request, exported: Job, tmp_path: Path
) -> None:
    part = tmp_path / "part.jsonl"
    part.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in exports.ROWS[:4]))
    report = prove(elsewhere, exported, train_data=str(part), only=("overfit_percent",))
    assert report["gates"]["overfit_percent"]["value"] is not None
    assert report["results"]["held_out_also_trained"] == 4
    with pytest.raises(LabError, match="nothing is left that was not trained on"):
        prove(elsewhere, exported, train_data=elsewhere.data)


def test_a_published_file_is_held_to_its_manifest(exported: Job, tmp_path: Path, elsewhere: proof.Request) -> None:
    published = Path(exported.read_manifest("publish")["artefacts"][0]["uri"].removeprefix("file://"))
    folder = tmp_path / "store"
    shutil.copytree(published.parent, folder)
    file = folder / published.name
    gates = prove(elsewhere, exported, file=file, only=("integrity", "lesson_percent"))["gates"]
    assert gates["lesson_percent"]["value"] == 140
    assert gates["integrity"]["detail"] == "compared with the base"
    patches.flip(file, "blk.1.ffn_up.weight", byte=100, mask=1)
    gates = prove(elsewhere, exported, file=file, only=("integrity", "lesson_percent"))["gates"]
    assert gates["integrity"]["ok"] is False and "its manifest says" in gates["integrity"]["detail"]
    assert gates["lesson_percent"]["value"] is None, "the lesson was another file's"


def test_an_adapter_of_peft_is_merged_into_the_base(exported: Job, tmp_path: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(exported.base)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.tensor([[1, 300, 400, 6]])
    with torch.no_grad():
        wanted = adapted.eval()(ids).logits
        found = proof.load_tuned(tmp_path / "adapter", exported.base)(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_token_ids_beyond_the_files_vocabulary_fail_every_comparison_instead_of_the_program(
    exported: Job, general: Path
) -> None:
    subject = validate.subject(exported, general)
    subject.samples = [Sample([1, 9000, 6], [False, True, True])]
    state = Measurement(subject, exports.rules(), exported.folder, samples=0)
    state.rules = {name: exports.rules()[name] for name in ("quality_percent", "quant_kl", "stops_percent")}
    state.run()
    assert {name: state.measured[name].value for name in state.rules} == dict.fromkeys(state.rules)
    assert (
        "the file has 8192 tokens, but the base's tokenizer gives the id 9000"
        in state.measured["quality_percent"].detail
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"only": ("quality",)}, Code.INVALID_PARAMS, "no gate has this name"),
        ({"only": ("load_ms",), "tier": "fast"}, Code.INVALID_PARAMS, "off in the tier fast"),
        ({"tier": "golden"}, Code.INVALID_PARAMS, "no tier golden"),
        ({"base": "/nowhere/base"}, Code.NOT_FOUND, "not a folder"),
        ({"file": Path("/nowhere.gguf")}, Code.NOT_FOUND, "no model file"),
        ({"model": Path("/nowhere")}, Code.NOT_FOUND, "neither config.json nor adapter_config.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    elsewhere: proof.Request, exported: Job, changes: dict[str, Any], code: Code, words: str
) -> None:
    with pytest.raises(LabError, match=words) as caught:
        prove(elsewhere, exported, **changes)
    assert caught.value.code is code


def test_the_command_prints_the_gates_and_exits_with_1_for_a_missed_one(
    elsewhere: proof.Request, exported: Job
) -> None:
    patches.set_number(elsewhere.file, "tokenizer.ggml.eos_token_id", 2)
    command = ["validate", str(elsewhere.file), "--base", elsewhere.base, "--data", elsewhere.data]
    options = ["--tier", "starter", "--only", "tokenizer_ids,chat_template,file_bytes", "--home", str(exported.home)]
    told = CliRunner().invoke(app, [*command, *options])
    assert told.exit_code == 1, told.output
    assert "missed: tokenizer_ids" in told.stdout and "eos is 2 in the file" in told.stdout


def test_ctrl_c_ends_it_and_leaves_nothing_behind(elsewhere: proof.Request, exported: Job, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.gguf_factory.proof", str(elsewhere.file), "--base", elsewhere.base,
         "--data", elsewhere.data, "--model", str(exported.path("merge", "model"))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "TMPDIR": str(scratch), "MEETARA_HOME": str(exported.home)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "converting" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read().splitlines()
    assert process.wait(60) == 130
    assert json.loads(rest[-1])["error"]["code"] == Code.CANCELLED
    assert list(scratch.iterdir()) == []
