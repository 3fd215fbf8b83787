"""Planning refuses what cannot work and predicts the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.gguf_factory import machine, plan
from configs import GateRule
from protocol import Code, LabError
from protocol.job import PlanRequest, Route, TrainRequest
from tests.agents.gguf_factory.bases import QA, QA_EVAL, ROOT, make_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "a base with spaces ü")


def request(base: Path | str, **changes: Any) -> PlanRequest:
    route = Route(
        domain="time_management", category="productivity", tier="starter", base=str(base), voice="v", empathy="e",
        quality_floor=101.0, safety_critical=False,
    )  # fmt: skip
    return PlanRequest(job="j1", request=TrainRequest(domain="time_management", **{"dataset": str(QA), **changes}), route=route)


def refused(wanted: PlanRequest, home: Path) -> LabError:
    with pytest.raises(LabError) as caught:
        plan.plan(wanted, home)
    return caught.value


def test_a_plan_counts_and_predicts(base: Path, tmp_path: Path) -> None:
    found = plan.plan(request(base), tmp_path)
    assert found.rows + found.held_out_rows == 318 and found.held_out_rows >= 8
    assert 20_000 < found.tokens < 40_000
    assert found.base_parameters == 8192 * 32 + 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 64) + 32
    assert found.parameters["max_epochs"] == 3.0 and len(found.parameters["dataset_sha256"]) == 64
    assert 0 < found.seconds_p50 < found.seconds_p90
    assert found.disk_bytes > 2 * found.file_bytes > 0


def test_a_requests_parameters_and_limits_are_used(base: Path, tmp_path: Path) -> None:
    found = plan.plan(request(base, parameters={"max_steps": 7, "batch_size": 2}, quantisation="Q8_0"), tmp_path)
    assert found.steps == 7
    assert (found.parameters["batch_size"], found.parameters["quantisation"]) == (2, "Q8_0")


def test_an_adapter_is_planned_for_its_size_and_the_plan_tells_what_was_left_out(base: Path, tmp_path: Path) -> None:
    edge = plan.plan(request(base), tmp_path)
    found = plan.plan(request(base, profile="adapter"), tmp_path)
    assert found.file_bytes < found.base_file_bytes == edge.file_bytes and edge.base_file_bytes is None
    assert found.parameters["lora_targets"] == "all-linear" and found.warnings == edge.warnings
    tiers = configs.load().tiers
    small = GateRule(level="fail", threshold=9_000)
    tight = tiers["starter"].model_copy(update={"adapter_gates": {"file_bytes": small}})
    cut = plan.plan(request(base, profile="adapter"), tmp_path, {"starter": tight})
    assert cut.file_bytes <= 9_000
    assert cut.parameters["lora_targets"].startswith("k_proj,o_proj,q_proj,v_proj")
    assert cut.parameters["lora_alpha"] / cut.parameters["lora_r"] == 2
    assert "more than 9,000; left out:" in cut.warnings[0]
    assert plan.plan(request(base), tmp_path, {"starter": tight}).parameters["lora_targets"] == "all-linear"


def test_an_evaluation_set_is_used_whole(base: Path, tmp_path: Path) -> None:
    found = plan.plan(request(base, eval_dataset=str(QA_EVAL)), tmp_path)
    assert found.held_out_rows == len(QA_EVAL.read_text().splitlines())
    assert "eval_dataset_sha256" in found.parameters


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"parameters": {"lora_rank": 4}}, "parameters.lora_rank"),
        ({"parameters": {"lora_r": "four"}}, "parameters.lora_r"),
        ({"parameters": {"learning_rate": -1.0}}, "parameters.learning_rate"),
        ({"quantisation": "Q4_K_X"}, "quantisation"),
        ({"parameters": {"lora_targets": "every one"}}, "parameters.lora_targets"),
        ({"parameters": {"lora_targets": "qkv_proj"}}, "parameters.lora_targets"),
    ],
)
def test_wrong_parameters_are_named(base: Path, tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    error = refused(request(base, **changes), tmp_path)
    assert error.code == Code.INVALID_PARAMS and error.data["field"] == field and error.advice


def edit(file: Path, **changes: Any) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_bases_that_cannot_work_are_refused(base: Path, tmp_path: Path) -> None:
    missing = refused(request(tmp_path / "nowhere"), tmp_path)
    assert (missing.code, missing.data["field"]) == (Code.NOT_FOUND, "base")
    assert "hub cache" in refused(request("nobody/no-such-model"), tmp_path).message
    kept = (base / "tokenizer_config.json").read_text()
    edit(base / "tokenizer_config.json", eos_token=None)
    assert "no eos_token" in refused(request(base), tmp_path).message
    (base / "tokenizer_config.json").write_text(kept)
    edit(base / "tokenizer_config.json", additional_special_tokens=["<|new|>"])
    assert "8193 tokens" in refused(request(base), tmp_path).message
    (base / "tokenizer_config.json").write_text(kept)
    edit(base / "config.json", vocab_size=8000)
    assert "vocab_size 8000" in refused(request(base), tmp_path).message
    edit(base / "config.json", vocab_size=8192)
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-1])
    assert "promises" in refused(request(base), tmp_path).message
    (base / "model.safetensors").write_bytes(weights)
    (base / "chat_template.jinja").unlink()
    assert "chat template" in refused(request(base), tmp_path).message


def test_text_with_chat_markers_is_refused_by_line(base: Path, tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "a" if n != 30 else "a<|end|>b"} for n in range(40)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refused(request(base, dataset=str(tmp_path / "r.jsonl")), tmp_path)
    assert error.code == Code.BAD_DATA and error.data["line"] == 31


def test_a_disk_too_small_is_refused_with_sums(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.DISK_LIMIT, "1000000")
    error = refused(request(base), tmp_path)
    assert error.code == Code.NO_SPACE and error.data["free_bytes"] == 1_000_000
    assert error.data["needed_bytes"] > 1_000_000 and "1 MB" in error.message


def test_a_machine_too_small_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1_000_000)
    assert refused(request(base), tmp_path).code == Code.NO_CAPACITY


def test_what_another_machine_may_train_is_planned_with_the_reason_why_not_here(base, tmp_path, monkeypatch) -> None:
    wanted = request(base).model_copy(update={"elsewhere": True})
    found = plan.plan(wanted, tmp_path)
    assert found.not_here is None and found.trained_tokens >= found.tokens * 3
    assert found.working_bytes == found.memory_bytes - plan.PROCESS_BYTES - 4 * found.base_parameters > 0
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1_000_000)
    assert "this machine has 1 MB" in plan.plan(wanted, tmp_path).not_here


def test_finished_jobs_calibrate_the_time(base: Path, tmp_path: Path) -> None:
    before = plan.plan(request(base), tmp_path)
    for seconds in (20.0, 30.0, 40.0):
        machine.remember(tmp_path, machine.Finished(str(base), 1, 60.0, seconds))
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"base": "cut')
    after = plan.plan(request(base), tmp_path)
    assert after.seconds_p50 == pytest.approx(before.seconds_p50 / 2)
    assert after.seconds_p90 == pytest.approx(before.seconds_p50 * 40 / 60)


def test_the_planning_process_answers_one_line_and_imports_no_torch(base: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from agents.gguf_factory import work; code = work.main(['--plan']); "
        "sys.exit(9 if {'torch', 'transformers'} & set(sys.modules) else code)"
    )
    environment = {"MEETARA_HOME": str(tmp_path / "home"), "PATH": ""}
    for wanted, status, member in ((request(base), 0, "plan"), (request("/nowhere"), 1, "error")):
        done = subprocess.run(
            [sys.executable, "-c", code], input=wanted.model_dump_json(), capture_output=True, text=True, cwd=ROOT,
            env=environment, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert member in json.loads(done.stdout) and done.stdout.count("\n") == 1
