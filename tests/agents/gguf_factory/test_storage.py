"""Rooms have limits: what is made again goes by itself, what is not is told before work starts, gc goes in its order."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import gc, storage
from agents.gguf_factory.cache import Cache
from agents.gguf_factory.gc import Item
from configs import Storage
from protocol import Code, LabError
from protocol.job import Plan

OLD = 2 * storage.SETTLED_S
FREE = Storage(artefacts_bytes=None, models_bytes=None, jobs_bytes=None, cache_models=10, cache_bytes=None)
PLAN = Plan(
    rows=1, held_out_rows=1, tokens=1, steps=1, parameters={}, base_parameters=50, file_bytes=100, disk_bytes=1000,
    memory_bytes=1, seconds_p50=1, seconds_p90=1,
)  # fmt: skip


def limits(**changes: Any) -> Storage:
    return FREE.model_copy(update=changes)


def write(path: Path, size: int, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


def model(home: Path, name: str, age: float = 0.0, size: int = 100) -> Path:
    """Put a finished model with its manifest into the store."""
    file = write(home / "artefacts" / name / "m.gguf", size, age)
    paper = file.with_name("manifest.json")
    paper.write_text(json.dumps({"job": f"of-{name}"}))
    os.utime(paper, (time.time() - age,) * 2)
    return file


def job(home: Path, name: str, *, published: Path | None = None, age: float = OLD) -> Path:
    """Leave a job's folder behind: 500 bytes of a merged model, a log, and the manifest of publish if it came so far."""
    folder = home / "jobs" / name
    write(folder / "merge" / "model" / "model.safetensors", 500, age)
    write(folder / "log.txt", 5)
    write(folder / storage.LOCK, 0)
    if published is not None:
        paper = folder / "publish" / "manifest.json"
        paper.parent.mkdir()
        paper.write_text(json.dumps({"artefacts": [{"uri": published.as_uri()}]}))
        os.utime(paper, (time.time() - age,) * 2)
    return folder


def refused(home: Path, name: str = "new", **changes: Any) -> LabError:
    with pytest.raises(LabError) as caught:
        storage.check(PLAN, home, limits(**changes), name)
    assert caught.value.code is Code.NO_SPACE
    return caught.value


def test_a_full_store_is_told_with_sums_setting_and_way_out(tmp_path: Path) -> None:
    kept = model(tmp_path, "a")
    taken = storage.used(tmp_path / "artefacts")
    storage.check(PLAN, tmp_path, limits(artefacts_bytes=taken + 100), "new")
    error = refused(tmp_path, artefacts_bytes=taken + 99)
    assert error.data["field"] == "artefacts_bytes" and str(tmp_path / "artefacts") in error.message
    assert (error.data["needed_bytes"], error.data["used_bytes"]) == (100, taken)
    assert "meetara gc --models" in error.advice and "artefacts_bytes" in error.advice
    assert kept.exists(), "no finished model goes by itself"


def test_the_working_files_of_published_jobs_make_room_the_oldest_first(tmp_path: Path) -> None:
    stored = model(tmp_path, "a")
    older, newer = job(tmp_path, "older", published=stored, age=OLD + 9), job(tmp_path, "newer", published=stored)
    storage.check(PLAN, tmp_path, limits(jobs_bytes=storage.used(tmp_path / "jobs") + 600), "new")
    assert not (older / "merge" / "model" / "model.safetensors").exists() and (older / "log.txt").exists()
    assert (newer / "merge" / "model" / "model.safetensors").exists(), "no more than is needed"


def test_jobs_that_may_go_on_are_never_touched(tmp_path: Path) -> None:
    stored = model(tmp_path, "a")
    folders = [job(tmp_path, "running"), job(tmp_path, "fresh", published=stored, age=10.0)]
    folders.append(job(tmp_path, "lost", published=tmp_path / "artefacts" / "gone.gguf"))
    folders.append(job(tmp_path, "worked", published=stored))
    with (folders[-1] / storage.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = refused(tmp_path, jobs_bytes=1500)
        assert storage.remove(folders[-1]) == 0
    assert error.data["field"] == "jobs_bytes" and "meetara gc" in error.advice
    assert all((folder / "merge" / "model" / "model.safetensors").exists() for folder in folders)


def test_what_a_job_has_already_is_part_of_what_it_needs(tmp_path: Path) -> None:
    job(tmp_path, "resumed")
    storage.check(PLAN, tmp_path, limits(jobs_bytes=1000), "resumed")


def test_bases_go_by_last_use_but_not_the_one_in_use(tmp_path: Path) -> None:
    bases = [write(tmp_path / "models" / name / storage.F16, 100, age) for name, age in (("a", 30), ("b", 20), ("c", 10))]
    storage.shrink_models(tmp_path, limits(models_bytes=150), bases[0])
    assert [path.exists() for path in bases] == [True, False, False]
    storage.shrink_models(tmp_path, limits(models_bytes=10), bases[0])
    assert bases[0].exists()
    storage.check(PLAN, tmp_path, limits(models_bytes=100), "new")
    write(tmp_path / "models" / "a" / "Q4_K_M-1.gguf", 1)
    assert refused(tmp_path, models_bytes=100).data["field"] == "models_bytes", "adapters need that one"


# gc


def steps(items: list[Item]) -> list[tuple[int, str]]:
    return [(item.step, item.what) for item in items]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one of everything that is there in vain, and of everything that is not."""
    stored = model(tmp_path, "kept")
    model(tmp_path, "forgotten", age=50)
    cache = Cache(tmp_path, FREE)
    cache.folder.mkdir()
    cache.path("k").write_text(json.dumps({"job": "of-kept", "artefacts": [{"uri": stored.as_uri()}], "bytes": 100}))
    write(tmp_path / "artefacts" / "kept" / ".m.gguf.4194305", 7, OLD)
    write(tmp_path / "artefacts" / "half" / "m.gguf", 8, OLD)
    os.utime(tmp_path / "artefacts" / "half", (time.time() - OLD,) * 2)
    job(tmp_path, "published", published=stored)
    job(tmp_path, "failed")
    job(tmp_path, "running")
    write(tmp_path / "models" / "a" / storage.F16, 100, gc.UNUSED_S + 60)
    write(tmp_path / "models" / "b" / storage.F16, 100)
    write(tmp_path / "models" / "b" / "Q4.gguf", 50)
    (tmp_path / "models" / "b" / "Q4.json").write_text(json.dumps({"sha256": "5" * 64}))
    return tmp_path


ORDER = [(1, "leftover"), (1, "leftover"), (2, "working files"), (3, "job"), (4, "base")]


def test_the_order_is_from_what_costs_nothing_to_what_costs_a_training(home: Path) -> None:
    found = gc.find(home, FREE, ["failed"], models=True)
    assert steps(found) == [*ORDER, (5, "model"), (5, "shared base")]
    assert [Path(item.path).name for item in found[2:6]] == ["published", "failed", storage.F16, "forgotten"]


def test_finished_models_are_not_even_listed_unless_they_are_asked_for(home: Path) -> None:
    assert steps(gc.find(home, FREE, ["failed"])) == ORDER
    assert (3, "job") not in steps(gc.find(home, FREE)), "while the lab is down nobody knows what goes on"
    assert gc.find(home, FREE, ["../artefacts", "..", ".", "nothing", ""])[-1].what == "base"


def test_what_is_removed_is_what_was_found_and_the_rest_stays(home: Path) -> None:
    before = storage.used(home)
    found = gc.find(home, FREE, ["failed"], models=True)
    freed = sum(gc.remove(item, home, FREE) for item in found)
    assert freed == sum(item.bytes for item in found) == before - storage.used(home)
    left = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert left == {
        "artefacts/kept/m.gguf", "artefacts/kept/manifest.json", "cache/k.json", "jobs/published/log.txt",
        "jobs/published/publish/manifest.json", "jobs/published/work.lock", "jobs/running/log.txt", "jobs/running/work.lock",
        "jobs/running/merge/model/model.safetensors", f"models/b/{storage.F16}",
    }  # fmt: skip
    assert gc.find(home, FREE, ["failed"], models=True) == []


def test_a_store_beyond_its_limit_offers_remembered_models_by_last_use(home: Path) -> None:
    found = [item for item in gc.find(home, limits(artefacts_bytes=50), models=True) if item.what == "model"]
    assert [(Path(item.path).name, item.job) for item in found] == [("forgotten", "of-forgotten"), ("kept", "of-kept")]
    gc.remove(found[1], home, FREE)
    assert Cache(home, FREE).entries() == [], "what is gone is not remembered"


def test_a_shared_base_that_an_adapter_names_stays(home: Path) -> None:
    paper = home / "artefacts" / "kept" / "manifest.json"
    paper.write_text(json.dumps({"job": "of-kept", "base": {"file": {"sha256": "5" * 64}}}))
    assert "shared base" not in [item.what for item in gc.find(home, FREE, models=True)]


def test_links_lead_nowhere(home: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "precious.new", 9, OLD)
    (home / "artefacts" / "kept" / "link.new").symlink_to(outside)
    (home / "jobs" / "linked").symlink_to(outside.parent)
    found = gc.find(home, FREE, ["linked"], models=True)
    assert not [item for item in found if "link" in Path(item.path).name]
    for item in found:
        gc.remove(item, home, FREE)
    assert outside.exists()
