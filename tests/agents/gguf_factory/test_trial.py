"""A base of an architecture that never went the whole way is converted and compared before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import fidelity, pipeline, trial
from agents.gguf_factory.chat import Sample
from agents.gguf_factory.job import Job
from protocol import Code, LabError
from protocol.job import Stage
from tests.agents.gguf_factory import families, runs

PLAN = tuple(item for item in pipeline.stages_for("edge") if item[0] is Stage.PLAN)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A planned job on a random Granite, with the base converted by the plan stage."""
    root = tmp_path_factory.mktemp("trial")
    job = runs.make_job(root / "home", families.granite(root / "base"))
    pipeline.run(job, lambda line: None, PLAN)
    return job


def test_the_plan_says_that_it_was_never_tried_and_its_stage_tries_it(job: Job) -> None:
    assert "GraniteForCausalLM has not gone the whole way" in job.run.plan.warnings[0]
    assert job.run.plan.file_bytes is None and job.run.plan.disk_bytes > 0
    found = job.read_manifest("plan")["results"]["trial"]
    assert found["tokenizer_ids"] == found["chat_template"] == 0 and found["f16_kl"] < 1e-5
    assert len(list((job.home / "models").glob("*/model-f16.gguf"))) == 1  # the gates find it there


def test_a_file_that_says_something_else_ends_the_job_before_training(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: Any) -> tuple[float, None, int]:
        return 0.25, None, 60

    monkeypatch.setattr(fidelity, "mean_divergences", apart)
    shutil.rmtree(job.path("plan"))
    with pytest.raises(LabError, match="Before training, on the base itself \\(GraniteForCausalLM\\): the gate f16_kl") as caught:
        pipeline.run(job, lambda line: None, PLAN)
    assert caught.value.code is Code.GATE_MISSED and not Path(job.path("train")).exists()


def test_a_network_that_training_cannot_drive_is_named_before_training() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    samples = [Sample([1, 2, 3, 4], [False, False, True, True])] * 2
    for kind, words in (("gpt2", "no linear layers"), ("bloom", "rows of several samples")):
        config = AutoConfig.for_model(kind, vocab_size=8, hidden_size=16, n_embd=16, n_layer=1, n_head=2, num_attention_heads=2)
        with pytest.raises(LabError, match=words) as caught:
            trial.check_training(AutoModelForCausalLM.from_config(config), samples)
        assert caught.value.code is Code.CONFIGURATION


def test_the_trials_conversations_tell_wrong_ids_by_many_kinds_of_letters() -> None:
    text = "".join(turn["content"] for talk in trial.TALKS for turn in talk)
    assert {"\n", "日", "🙂", "3"} < set(text)
