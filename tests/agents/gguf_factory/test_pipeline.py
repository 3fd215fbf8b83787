"""Stages run once, in order, and again only where their input or output changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import pipeline
from agents.gguf_factory.hashes import file_sha256
from agents.gguf_factory.job import Job, StageResult, Stopped
from protocol.job import Artefact, Stage
from tests.agents.gguf_factory.bases import make_base
from tests.agents.gguf_factory.runs import make_job


class Recorder:
    """Three small stages that write one file each and say that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.content = {stage: stage.value for stage in (Stage.DATA, Stage.TRAIN, Stage.MERGE)}
        self.fail: Stage | None = None

    def stages(self) -> tuple[tuple[Stage, Callable[[Job], StageResult]], ...]:
        return tuple((stage, self.make(stage)) for stage in self.content)

    def make(self, stage: Stage) -> Callable[[Job], StageResult]:
        def run(job: Job) -> StageResult:
            self.ran.append(stage.value)
            file = job.path(stage, "out.txt")
            file.write_text(self.content[stage])
            if self.fail is stage:
                raise Stopped
            return StageResult(files=[file], results={"length": len(self.content[stage])})

        return run

    def go(self, job: Job) -> dict[Stage, dict[str, Any]]:
        self.ran.clear()
        self.reports.clear()
        return pipeline.run(job, self.reports.append, self.stages())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path / "home", make_base(tmp_path / "base"))


def test_all_stages_run_in_order_and_report(job: Job) -> None:
    recorder = Recorder()
    manifests = recorder.go(job)
    assert recorder.ran == ["data", "train", "merge"]
    assert [(line["kind"], line["stage"]) for line in recorder.reports] == [
        (kind, stage) for stage in recorder.ran for kind in ("stage_started", "stage_done")
    ]
    assert manifests[Stage.MERGE]["results"] == {"length": 5} == recorder.reports[-1]["results"]
    assert set(manifests[Stage.MERGE]["inputs"]) == {"request", "data", "train"}
    assert job.read_manifest("merge")["files"]["out.txt"]["bytes"] == 5


def test_finished_stages_are_skipped_and_their_end_told_again(job: Job) -> None:
    recorder = Recorder()
    first = recorder.go(job)
    ends = [line for line in recorder.reports if line["kind"] == "stage_done"]
    assert recorder.go(job) == first
    assert recorder.ran == [] and recorder.reports == [{**line, "again": True} for line in ends]


def test_a_stage_whose_artefact_was_removed_is_done_again(job: Job, tmp_path: Path) -> None:
    stored = tmp_path / "a model.gguf"

    def publish(job: Job) -> StageResult:
        stored.write_bytes(b"GGUF")
        item = Artefact(kind="gguf", uri=stored.as_uri(), sha256=file_sha256(stored), bytes=4)
        return StageResult(artefacts=[item])

    stages = ((Stage.PUBLISH, publish),)
    pipeline.run(job, lambda line: None, stages)
    for change in (stored.unlink, lambda: stored.write_bytes(b"GGML")):
        change()
        told: list[dict[str, Any]] = []
        pipeline.run(job, told.append, stages)
        assert [line["kind"] for line in told] == ["stage_started", "stage_done"] and stored.read_bytes() == b"GGUF"


def test_a_damaged_file_is_made_again_and_later_stages_only_if_it_comes_out_different(job: Job) -> None:
    recorder = Recorder()
    recorder.go(job)
    job.path("train", "out.txt").write_text("TRAIN")
    recorder.go(job)
    assert recorder.ran == ["train"]
    job.path("train", "out.txt").unlink()
    recorder.content[Stage.TRAIN] = "other weights"
    recorder.go(job)
    assert recorder.ran == ["train", "merge"]


def test_other_parameters_make_every_stage_run_again_but_another_lease_none(job: Job) -> None:
    recorder = Recorder()
    recorder.go(job)
    job.run.fence, job.run.attempt, job.run.lease = 9, 2, "other"
    recorder.go(job)
    assert recorder.ran == []
    job.run.plan.parameters["seed"] += 1
    recorder.go(job)
    assert recorder.ran == ["data", "train", "merge"]


@pytest.mark.parametrize(("stage", "kept"), [(Stage.TRAIN, True), (Stage.MERGE, False)])
def test_half_done_work_is_kept_for_training_only(job: Job, stage: Stage, kept: bool) -> None:
    recorder = Recorder()
    recorder.fail = stage
    with pytest.raises(Stopped) as stopped:
        recorder.go(job)
    assert stopped.value.args == (stage,)
    job.path(stage, "half").write_text("x")
    recorder.fail = None
    recorder.go(job)
    assert job.path(stage, "half").exists() is kept
    assert recorder.ran[0] == stage.value


def test_a_broken_manifest_counts_as_none(job: Job) -> None:
    recorder = Recorder()
    recorder.go(job)
    job.path("merge", "manifest.json").write_text('{"inputs": ')
    recorder.go(job)
    assert recorder.ran == ["merge"]


def test_a_stop_is_seen_between_stages(job: Job) -> None:
    recorder = Recorder()
    job.stop = lambda: len(recorder.ran) == 1
    with pytest.raises(Stopped) as stopped:
        recorder.go(job)
    assert recorder.ran == ["data"] and stopped.value.args == (Stage.TRAIN,)


def test_every_stage_of_the_protocol_has_its_place_and_an_adapter_is_not_merged() -> None:
    assert [stage for stage, _ in pipeline.stages_for("edge")] == list(Stage)
    assert [stage for stage, _ in pipeline.stages_for("adapter")] == [stage for stage in Stage if stage is not Stage.MERGE]
