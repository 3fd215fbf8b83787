"""Checkpoints that outlive their machine: real stores, a killed process, and a second home that goes on."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch

import configs
from agents.gguf_factory import checkpoint, checkpoint_store, gc
from agents.gguf_factory.checkpoint_store import KEPT, CheckpointStore, spacing
from agents.gguf_factory.job import Job
from agents.gguf_factory.store import filesystem
from protocol import Code, LabError, Retry
from tests.agents.gguf_factory import forked
from tests.agents.gguf_factory.tiny import make_job

HOUR = 3600.0
ADAPTER = "job/train/adapter/adapter_model.safetensors"


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place of its own in three of fsspec's stores: one with folders, and two with keys only, one of them a real server."""
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/{uuid4().hex}/j1/checkpoints"
        return
    root = (tmp_path / "store").as_uri() if request.param == "file" else f"memory://{uuid4().hex}"
    yield f"{root}/j1/checkpoints"
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


def save(folder: Path, step: int, pinned: bool = False) -> Path:
    return checkpoint.save(folder, {"a": torch.full((3,), step)}, {"step": step}, pinned=pinned)


def stored(uri: str) -> list[int]:
    files, root = filesystem(uri)
    return sorted(name.number for name in checkpoint_store.listed(files, root))


def newest(folder: Path, pinned: bool = False) -> int:
    found = checkpoint.load(folder, pinned=pinned).checkpoint
    assert found is not None
    return int(found.meta["step"])


def damage(uri: str, number: int) -> None:
    files, root = filesystem(uri)
    name = next(name for name in checkpoint_store.listed(files, root) if name.number == number)
    files.pipe_file(f"{root}/{name}", files.cat_file(f"{root}/{name}")[:-4])


def test_another_folder_gets_the_newest_and_the_newest_pinned(uri: str, tmp_path: Path) -> None:
    store = CheckpointStore(uri, mtbf_s=HOUR)
    for step in range(1, 7):
        save(tmp_path / "a", step, pinned=step == 2)
        store.finish(tmp_path / "a")
    assert store.notes == [] and stored(uri) == [2, 5, 6]
    notes = CheckpointStore(uri, mtbf_s=HOUR).pull(tmp_path / "b")
    assert notes == ["checkpoint-000002 came from the artefact store", "checkpoint-000006 came from the artefact store"]
    assert (newest(tmp_path / "b"), newest(tmp_path / "b", pinned=True)) == (6, 2)
    assert CheckpointStore(uri, mtbf_s=HOUR).pull(tmp_path / "b") == [], "what is there already is not fetched again"


def test_a_damaged_one_is_passed_over_and_told_of(uri: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path / "a", step)
        CheckpointStore(uri, mtbf_s=HOUR).finish(tmp_path / "a")
    damage(uri, 2)
    notes = CheckpointStore(uri, mtbf_s=HOUR).pull(tmp_path / "b")
    assert notes == ["checkpoint-000002 is damaged in the artefact store", "checkpoint-000001 came from the artefact store"]
    assert newest(tmp_path / "b") == 1 and len(list((tmp_path / "b").iterdir())) == 1
    CheckpointStore(uri, mtbf_s=HOUR).finish(tmp_path / "a")
    assert CheckpointStore(uri, mtbf_s=HOUR).pull(tmp_path / "b") == ["checkpoint-000002 came from the artefact store"], "it was mended"


def test_a_folder_that_is_further_on_keeps_its_own(uri: str, tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    CheckpointStore(uri, mtbf_s=HOUR).finish(tmp_path / "a")
    for step in (1, 2):
        save(tmp_path / "b", 10 * step)
    assert CheckpointStore(uri, mtbf_s=HOUR).pull(tmp_path / "b") == [] and newest(tmp_path / "b") == 20


def test_the_next_upload_is_due_when_youngs_rule_says_so(uri: str, tmp_path: Path) -> None:
    at = {"clock": 0.0, "took": 0.0}
    store = CheckpointStore(uri, mtbf_s=HOUR, now=lambda: at["clock"])
    store._push = functools.partial(lambda push, folder: max(push(folder), at["took"]), store._push)  # type: ignore[method-assign]
    seen = []
    for step, (clock, took) in enumerate([(0.0, 0.5), (59.0, 0.0), (61.0, 2.0), (180.0, 0.0), (182.0, 0.0)], 1):
        at |= {"clock": clock, "took": took}
        save(tmp_path, step)
        store.offer(tmp_path)
        if store._upload is not None:
            store._settle()
        seen.append(max(stored(uri)))
    assert seen == [1, 1, 3, 3, 5], "an upload of 0.5 s is repeated after 60 s, one of 2 s after 120 s, where a machine lasts an hour"


def test_youngs_interval_loses_the_least_and_uploads_never_take_more_than_a_tenth_of_the_time() -> None:
    def lost(interval: float, seconds: float, mtbf: float) -> float:
        return seconds / interval + interval / (2 * mtbf)

    for seconds, mtbf in [(0.5, HOUR), (2.0, 4 * HOUR), (20.0, 1000 * HOUR)]:
        best = spacing(seconds, mtbf)
        assert best == pytest.approx((2 * seconds * mtbf) ** 0.5)
        assert lost(best, seconds, mtbf) < min(lost(0.9 * best, seconds, mtbf), lost(1.1 * best, seconds, mtbf))
    assert spacing(60.0, 60.0) == 600.0 and spacing(0.0, HOUR) == 0.0


def test_a_store_that_does_not_take_them_is_noted_once_and_does_not_stop_the_training(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, not a folder")
    store = CheckpointStore((tmp_path / "store" / "j1").as_uri(), mtbf_s=HOUR)
    for step in (1, 2):
        save(tmp_path / "a", step)
        store.finish(tmp_path / "a")
    assert len(store.notes) == 1 and "could not be put into the artefact store" in store.notes[0]


@pytest.mark.parametrize(("gone", "notes"), [(True, 0), (False, 1)])
def test_a_bucket_that_is_not_there_is_noted_but_not_a_checkpoint_that_gave_way_to_a_newer_one(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool, notes: int
) -> None:
    def missing(*arguments: Any, **_: object) -> None:
        if gone:
            Path(arguments[-2]).unlink()
        raise FileNotFoundError("the bucket does not exist")

    files, _ = filesystem(uri)
    its = files if uri.startswith("s3") else type(files)  # of its asynchronous stores fsspec wraps each instance
    monkeypatch.setattr(its, "put_file", missing)
    save(tmp_path / "a", 1)
    store = CheckpointStore(uri, mtbf_s=HOUR)
    store.finish(tmp_path / "a")
    assert len(store.notes) == notes


def test_a_store_that_cannot_be_read_is_an_error_that_passes(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="nosuch") as caught:
        CheckpointStore("nosuch://x/j1", mtbf_s=HOUR).pull(tmp_path)
    assert caught.value.code is Code.UNREACHABLE and caught.value.retry is Retry.LATER


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("MEETARA_STORE", (tmp_path / "store").as_uri())
    return make_job(tmp_path / "home")


@pytest.mark.parametrize(("asked", "provider", "where"), [
    (None, "local", False), ("store", "local", True), (None, "runpod", True), ("machine", "runpod", False),
])  # fmt: skip
def test_they_go_where_the_request_says_or_away_from_a_machine_that_may_be_gone(
    job: Job, asked: str | None, provider: str, where: bool
) -> None:
    job.run.provider, job.run.request.checkpoints = provider, asked
    assert (CheckpointStore.of(job, "checkpoints") is not None) is job.stored is where


def test_without_a_store_of_the_lab_they_go_into_the_home(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run.request.checkpoints = "store"
    monkeypatch.delenv("MEETARA_STORE")
    assert checkpoint_store.root_of(job) == f"{job.home.as_uri()}/checkpoints/j1"


def test_those_of_a_job_that_is_over_are_removed_and_forgotten_ones_when_they_are_old(job: Job, tmp_path: Path) -> None:
    job.run.request.checkpoints = "store"
    for run in ("checkpoints", "control"):
        save(tmp_path / "a", 1)
        store = CheckpointStore.of(job, run)
        assert store is not None
        store.finish(tmp_path / "a")
    other = tmp_path / "store" / "checkpoints" / "j2" / "checkpoints"
    shutil.copytree(tmp_path / "store" / "checkpoints" / "j1" / "checkpoints", other)
    checkpoint_store.clear(job)
    assert [path.name for path in (tmp_path / "store" / "checkpoints").iterdir()] == ["j2"]
    checkpoint_store.clear(job, datetime.now(UTC) + KEPT)
    assert list((tmp_path / "store" / "checkpoints").iterdir()) == []
    checkpoint_store.clear(job)


def test_gc_removes_those_in_the_home_of_a_job_that_ended_without_a_model(tmp_path: Path) -> None:
    for job in ("ended", "going"):
        save(tmp_path / "checkpoints" / job / "checkpoints", 1)
    limits = configs.load().storage
    (item,) = gc.find(tmp_path, limits, ["ended", "../jobs"])
    assert (item.what, item.job) == ("checkpoints", "ended") and item.bytes > 0
    gc.remove(item, tmp_path, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["going"]


def test_an_empty_home_goes_on_where_a_killed_machine_was_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    straight, first, second = tmp_path / "straight", tmp_path / "first", tmp_path / "second"
    assert forked.run(forked.train_job, straight, (tmp_path / "unused").as_uri(), 0) == 0
    assert forked.run(forked.train_job, first, store, 7) == -signal.SIGKILL
    shutil.rmtree(first)
    assert forked.run(forked.train_job, second, store, 0) == 0
    assert (second / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    result, wanted = (json.loads((folder / "result.json").read_text()) for folder in (second, straight))
    assert "came from the artefact store" in result["notes"][0] and result["notes"][-1].startswith("training went on at step ")
    assert int(result["notes"][-1].split()[-1]) >= 2
    assert wanted["notes"] == [] and result["held_out"] == wanted["held_out"] and result["lesson"] == wanted["lesson"]
