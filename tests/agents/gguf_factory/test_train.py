from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents.gguf_factory import train
from agents.gguf_factory.job import Job, Stopped
from agents.gguf_factory.loop import History, Loop
from agents.gguf_factory.train import Options, lesson, threads
from protocol import Code, LabError
from tests.agents.gguf_factory.tiny import PARAMETERS, make_job


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETARA_THREADS", str(torch.get_num_threads()))


def measured(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name not in ("seconds", "tokens_per_s")}


def test_a_job_ends_with_an_adapter_a_curve_and_its_numbers(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    result = train.run(job)
    facts = result.results
    assert (facts["steps"], facts["micro_batch"], facts["notes"]) == (8, 4, [])
    assert facts["tokens"] == sum([24, 16] * 16) and 0.8 < facts["fill"] < 1 and facts["tokens_per_s"] > 0
    assert [point["step"] for point in facts["held_out"]] == [0, 2, 4, 6, 8]
    assert facts["held_out_loss"] == facts["held_out"][-1]["loss"] < facts["held_out_loss_before"]
    assert facts["lesson"]["step"] == 4
    assert facts["lesson"]["held_out_loss_true"] == facts["held_out"][2]["loss"]
    assert facts["lesson"]["held_out_loss_true"] != facts["lesson"]["held_out_loss_shuffled"]
    folder = job.path("train")
    assert [path.relative_to(folder).as_posix() for path in result.files] == [
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "curve.json",
    ]  # fmt: skip
    tensors = load_file(result.files[0])
    assert len(tensors) == 2 * 7 * 2 and facts["adapter_parameters"] == sum(t.numel() for t in tensors.values())
    assert json.loads(result.files[1].read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    curve = json.loads(result.files[2].read_text())
    assert len(curve["loss"]) == 8 and curve["loss"][-1] == facts["loss"] and len(curve["control_loss"]) == 4


def test_a_stopped_job_goes_on_to_the_same_adapter_and_numbers(tmp_path: Path) -> None:
    whole = make_job(tmp_path / "a")
    wanted = train.run(whole)
    broken = make_job(tmp_path / "b")
    looks, stops = 0, 0

    def stop() -> bool:
        nonlocal looks
        looks += 1
        return looks % 5 == 0

    broken.stop = stop
    while True:
        try:
            got = train.run(broken)
        except Stopped:
            stops += 1
            continue
        break
    assert stops == 2  # the second one in the control
    assert measured(got.results) == measured(wanted.results)
    ours, theirs = (load_file(result.files[0]) for result in (got, wanted))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_twin_that_diverges_costs_the_lesson_and_not_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Loop.run

    def run(loop: Loop, evaluate_at: set[int]) -> History:
        if loop.note == "control":
            raise loop.diverged("loss", math.nan)
        return learn(loop, evaluate_at)

    monkeypatch.setattr(Loop, "run", run)
    facts = train.run(make_job(tmp_path, max_steps=4)).results
    assert facts["lesson"] is None and facts["steps"] == 4
    assert facts["notes"] == ["control: the loss became nan at step 0; the last good checkpoint is kept."]


def test_a_twin_learns_at_the_rate_that_the_run_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, learn = {}, Loop.run

    def run(loop: Loop, evaluate_at: set[int]) -> History:
        rates[loop.note] = loop.settings.learning_rate
        history = learn(loop, evaluate_at)
        history.rates = [] if loop.note else [(0, 0.25)]
        return history

    monkeypatch.setattr(Loop, "run", run)
    facts = train.run(make_job(tmp_path, max_steps=4)).results
    assert rates["control"] == facts["learning_rate"] == 0.25 * rates[""]


def test_progress_tells_the_control_from_the_training(tmp_path: Path) -> None:
    job, seen = make_job(tmp_path, max_steps=4), []
    job.progress = lambda **facts: seen.append(facts)
    train.run(job)
    assert (seen[0]["note"], seen[0]["steps"]) == ("", 4)
    assert (seen[-1]["note"], seen[-1]["steps"]) == ("control", 4)


@pytest.mark.parametrize("missing", ["share", "file"])
def test_without_a_control_the_lesson_is_not_measured(tmp_path: Path, missing: str) -> None:
    job = make_job(tmp_path, max_steps=2, control_share=0 if missing == "share" else 0.5)
    if missing == "file":
        job.path("data", "control.safetensors").unlink()
    assert train.run(job).results["lesson"] is None


def test_the_lesson_is_the_ratio_of_perplexities_at_the_same_step() -> None:
    true = History(step=8, held_out=[{"step": 0, "loss": 3.0}, {"step": 4, "loss": 2.0}, {"step": 8, "loss": 1.0}])
    control = History(step=4, held_out=[{"step": 4, "loss": 2.1}])
    facts = lesson(true, control)
    assert facts is not None
    assert facts["percent"] == pytest.approx(100 * math.exp(0.1))
    assert lesson(true, History(step=5, held_out=[{"step": 5, "loss": 2.1}])) is None


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0), ("lora_dropout", 1.0), ("scheduler", "step"), ("batch_size", 0)])
def test_a_parameter_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(LabError, match=name) as caught:
        Options.read({**PARAMETERS, name: value})
    assert caught.value.code is Code.CONFIGURATION and caught.value.data["field"] == f"parameters.{name}"


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(LabError, match="learning_rate"):
        Options.read({name: value for name, value in PARAMETERS.items() if name != "learning_rate"})


def test_parameters_of_other_stages_are_left_alone() -> None:
    assert Options.read({**PARAMETERS, "quantisation": "Q4_K_M"}).batch_size == 4


def test_the_control_takes_at_least_four_steps_and_never_more_than_the_run() -> None:
    options = Options.read(PARAMETERS)
    assert [options.control_steps(steps) for steps in (100, 10, 2)] == [25, 4, 2]
    assert Options.read({**PARAMETERS, "control_share": 0}).control_steps(100) == 0


def test_cores_are_shared_among_slots_unless_the_user_says_otherwise() -> None:
    assert [threads({}, cores, slots) for cores, slots in ((8, 1), (8, 2), (2, 4), (None, 1))] == [8, 4, 1, 1]
    assert threads({"MEETARA_THREADS": "3"}, 8, 2) == 3
    assert threads({"MEETARA_THREADS": "zero"}, 8, 2) == 4


def test_a_base_that_is_no_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    job: Job = make_job(tmp_path)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(LabError, match=r"base model in .*cannot be loaded"):
        train.run(job)
