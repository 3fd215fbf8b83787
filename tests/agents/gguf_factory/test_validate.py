from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.gguf_factory import chat, convert, fidelity, footprint, llama, measure, quantise, validate
from agents.gguf_factory.job import Job, Stopped
from configs import GATES, GateRule
from protocol import Code, LabError
from tests.agents.gguf_factory import exports, patches
from tests.agents.gguf_factory.exports import ROWS


def only(*names: str) -> dict:
    return {name: exports.rules()[name] for name in names}


def test_a_good_file_passes_every_gate_with_a_number(exported: Job) -> None:
    manifest = exported.read_manifest("validate")
    gates = manifest["gates"]
    assert list(gates) == list(GATES)
    assert all(gate["value"] is not None for gate in gates.values()), gates
    assert all(gate["ok"] for gate in gates.values() if gate["level"] == "fail"), gates
    assert gates["f16_kl"]["value"] < 1e-5 < gates["quant_kl"]["value"]
    assert gates["lesson_percent"]["value"] == 140
    results = manifest["results"]
    ratio = 100 * results["base_perplexity"] / results["tuned_perplexity"]
    assert gates["quality_percent"]["value"] == pytest.approx(ratio)
    assert results["answers"][0]["question"] == ROWS[0][0]["content"]
    assert results["answers"][0]["tuned"] == ROWS[0][1]["content"] != results["answers"][0]["base"]
    assert json.loads(exported.path("validate", "gates.json").read_text())["gates"] == gates


def test_another_chat_template_is_counted(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    template = job.path("merge", "model", "chat_template.jinja")
    template.write_text(template.read_text().replace("message['content'] +", "' ' + message['content'] +"))
    tokenizer = chat.load(job.path("merge", "model"))
    with llama.load(job.path("convert", convert.FILE), n_ctx=256) as model:
        found = fidelity.chat_template(tokenizer, model, ROWS)
    assert found.value == len(ROWS) and "renders differ" in found.detail


def test_an_eos_that_does_not_end_the_turn_is_counted(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    settings = job.path("merge", "model", "tokenizer_config.json")
    settings.write_text(settings.read_text().replace('"eos_token": "<|end|>"', '"eos_token": "<|user|>"'))
    patches.set_number(job.path("convert", convert.FILE), "tokenizer.ggml.eos_token_id", 4)
    tokenizer = chat.load(job.path("merge", "model"))
    with llama.load(job.path("convert", convert.FILE), n_ctx=256) as model:
        found = fidelity.chat_template(tokenizer, model, ROWS)
    assert found.value == len(ROWS) and "no end token" in found.detail


def test_markers_that_are_no_special_tokens_are_counted(exported: Job) -> None:
    tokenizer = chat.load(exported.path("merge", "model"))
    with llama.load(exported.path("convert", convert.FILE), n_ctx=256) as model:
        good = fidelity.tokenizer_ids(tokenizer, model, ["<|user|>hello<|end|>"])
        tokenize = model.tokenize
        model.tokenize = lambda text: tokenize(text, special=False)  # type: ignore[method-assign]
        split = fidelity.tokenizer_ids(tokenizer, model, ["<|user|>hello<|end|>"])
    assert good.value == 0
    assert split.value is not None and split.value >= 5


def test_an_untrained_model_misses_quality_and_its_files_stay(exported: Job, tmp_path: Path, general: Path) -> None:
    job = exports.copy(exported, tmp_path)
    product = job.path("quantise", "sleep-Q4_K_M.gguf")
    quantise.quantise(convert.convert_base(job.base, job.home), product, "Q4_K_M", None)
    with pytest.raises(LabError, match="quality_percent was missed") as caught:
        validate.run(job, only("quality_percent", "stops_percent", "file_bytes"), general)
    error = caught.value
    assert error.code is Code.GATE_MISSED
    assert 99 < error.data["value"] < 101 == error.data["threshold"]
    written = json.loads(job.path("validate", "gates.json").read_text())["gates"]
    assert written["file_bytes"]["ok"] is True, "every gate is measured before the verdict"
    assert written["stops_percent"]["ok"] is False, "random weights do not stop"
    assert product.is_file()


def test_a_truncated_product_is_a_clear_error(exported: Job, tmp_path: Path, general: Path) -> None:
    job = exports.copy(exported, tmp_path)
    product = job.path("quantise", "sleep-Q4_K_M.gguf")
    product.write_bytes(product.read_bytes()[:-500_000])
    with pytest.raises(LabError, match="not a whole GGUF file") as caught:
        validate.run(job, exports.rules(), general)
    assert caught.value.data["file"] == str(product)


def test_a_missing_general_text_is_not_measured_and_fails_only_a_failing_gate(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    wanted = only("forgetting_percent", "quality_percent")
    wanted["forgetting_percent"] = GateRule(level="fail", threshold=10)
    with pytest.raises(LabError, match=r"forgetting_percent could not be measured \(no general text at .*none.txt"):
        validate.run(job, wanted, tmp_path / "none.txt")
    result = validate.run(job, only("forgetting_percent", "quality_percent"), tmp_path / "none.txt")
    gate = result.gates["forgetting_percent"]
    assert (gate.value, gate.ok) == (None, None) and "none.txt" in gate.detail


def test_line_separators_within_an_answer_do_not_cut_the_row(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    turns = [{"role": "user", "content": "two\u2028lines?"}, {"role": "assistant", "content": "yes\x85\u2029both"}]
    for name in ("train.jsonl", "held_out.jsonl"):
        job.path("data", name).write_text(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    assert validate.subject(job).held_out == [turns]


def test_a_stop_ends_the_stage(exported: Job, tmp_path: Path, general: Path) -> None:
    job = exports.copy(exported, tmp_path)
    job.stop = lambda: True
    with pytest.raises(Stopped):
        validate.run(job, exports.rules(), general)


def test_the_sample_of_general_text_is_spread_over_all_documents(exported: Job) -> None:
    tokenizer = chat.load(exported.base)
    text = "\n<|doc|>\n".join(f"{word} " * 60 for word in ("alpha", "beta", "gamma", "delta", "omega", "zeta"))
    windows = measure.spread(text, tokenizer, 32, most=200)
    joined = tokenizer.decode([token for ids in windows for token in ids])
    assert sum(map(len, windows)) <= 200 and all(ids[0] == tokenizer.bos_token_id for ids in windows)
    assert sum(word in joined for word in ("alpha", "beta", "gamma", "delta", "omega", "zeta")) >= 5
    assert measure.spread(text, tokenizer, 32, most=200) == windows


def test_private_memory_leaves_out_the_model_files_own_mapping() -> None:
    smaps = (
        "7f00-7f10 r--s 00000000 08:01 42                         /tmp/model.gguf\nPrivate_Clean:  8000 kB\nPrivate_Dirty: 0 kB\n"
        "7f20-7f30 rw-p 00000000 00:00 0 \nPrivate_Clean: 4 kB\nPrivate_Dirty:  100 kB\nShared_Clean: 50 kB\n"
    )
    assert footprint.private_bytes(smaps, "/tmp/model.gguf") == 104 * 1024
    assert footprint.private_bytes(smaps, "/tmp/other.gguf") == 8104 * 1024
