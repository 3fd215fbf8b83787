"""A model from elsewhere comes into the home whole, as its job said it, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from meetara import models
from meetara.fetch import fetch
from protocol import Code, LabError
from protocol.job import Artefact

FILES = {
    "gguf": ("sleep.gguf", b"GGUF"),
    "manifest": ("manifest.json", json.dumps({"domain": "sleep", "job": "j1", "file": {"name": "sleep.gguf"}}).encode()),
}
SHA = hashlib.sha256(b"GGUF").hexdigest()


@pytest.fixture
def artefacts() -> Iterator[list[Artefact]]:
    memory = fsspec.filesystem("memory")
    made = []
    for kind, (name, content) in FILES.items():
        memory.pipe_file(f"/lab/artefacts/{SHA}/{name}", content)
        uri = f"memory://lab/artefacts/{SHA}/{name}"
        made.append(Artefact(kind=kind, uri=uri, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)))
    yield made
    memory.store.clear()


def test_a_fetched_model_is_one_of_the_home(artefacts: list[Artefact], tmp_path: Path) -> None:
    assert [path.name for path in fetch(artefacts, tmp_path)] == ["sleep.gguf", "manifest.json"]
    found = models.named("sleep", tmp_path)
    assert found.job == "j1" and found.path == tmp_path / "artefacts" / SHA / "sleep.gguf"
    fsspec.filesystem("memory").store.clear()
    assert fetch(artefacts, tmp_path)[0] == found.path, "what is here is not asked for again"


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"uri": "memory://lab/.."}, {"uri": "memory://lab/a b"}, {"sha256": "../x"}])
def test_what_is_not_as_the_job_said_does_not_stay(artefacts: list[Artefact], tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(LabError) as caught:
        fetch([artefacts[0].model_copy(update=change)], tmp_path)
    assert caught.value.code is Code.BAD_DATA
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_store_that_does_not_answer_is_told(artefacts: list[Artefact], tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot be read at nosuch://") as caught:
        fetch([artefacts[0].model_copy(update={"uri": "nosuch://b/sleep.gguf"})], tmp_path)
    assert caught.value.code is Code.UNREACHABLE
