from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec

from agents.gguf_factory import card, publish
from agents.gguf_factory.job import Job
from protocol.job import Artefact, Staged
from tests.agents.gguf_factory import exports


def stored(artefact: Artefact) -> Path:
    return Path(url2pathname(urlsplit(artefact.uri).path))


def test_every_artefact_is_where_its_uri_says_with_the_hash_it_says(exported: Job) -> None:
    manifest = exported.read_manifest("publish")
    artefacts = [Artefact.model_validate(item) for item in manifest["artefacts"]]
    assert [artefact.kind for artefact in artefacts] == ["gguf", "manifest", "card", "curves"]
    for artefact in artefacts:
        content = stored(artefact).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (artefact.sha256, artefact.bytes)
    gguf = artefacts[0]
    assert stored(gguf) == exported.home / "artefacts" / gguf.sha256 / "sleep-Q4_K_M.gguf"
    assert manifest["results"]["artefacts"] == manifest["artefacts"]


def test_the_manifest_tells_what_was_used_and_measured(exported: Job) -> None:
    gguf = Artefact.model_validate(exported.read_manifest("publish")["artefacts"][0])
    facts = json.loads((stored(gguf).parent / "manifest.json").read_text())
    assert facts["file"] == {"name": "sleep-Q4_K_M.gguf", "sha256": gguf.sha256, "bytes": gguf.bytes}
    assert facts["gates"] == exported.read_manifest("validate")["gates"]
    assert facts["parameters"] == exported.parameters
    assert set(facts["versions"]) >= {"torch", "transformers", "peft", "llama-cpp-python"}
    assert facts["base"]["name"] == "base" and len(facts["base"]["sha256"]) == 64
    assert facts["lineage"]["convert"]["model-f16.gguf"]["sha256"]


def test_the_card_shows_gates_and_samples_and_null_for_what_was_not_measured(exported: Job) -> None:
    gguf = Artefact.model_validate(exported.read_manifest("publish")["artefacts"][0])
    text = (stored(gguf).parent / "README.md").read_text()
    assert f"| sha256 | `{gguf.sha256}` |" in text
    assert "| [quality_percent](#quality_percent) |" in text and "| passed | fail |" in text
    assert "![Loss of training and held-out answers by optimiser step](curves.svg)" in text
    assert "> *this file:* With bread goes butter." in text
    assert "| held-out loss before | null |" in text
    assert str(exported.home) not in text


def test_files_of_a_rented_machine_are_in_the_store_which_its_job_names(exported: Job, tmp_path: Path, bucket: str) -> None:
    job = exports.copy(exported, tmp_path)
    job.home = tmp_path / "home"
    staged = Staged(store=f"{bucket}/published", dataset=job.run.request.dataset, base="owner/base")
    plan = job.run.plan.model_copy(update={"staged": staged})
    job.run = job.run.model_copy(update={"provider": "vast", "plan": plan})
    made = publish.run(job).artefacts
    assert [artefact.kind for artefact in made] == ["gguf", "manifest", "card", "curves"]
    for artefact in made:
        assert artefact.uri.startswith(f"{bucket}/published/artefacts/{made[0].sha256}/")
        with fsspec.open(artefact.uri, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == artefact.sha256


def test_publishing_again_changes_nothing_but_mends_a_broken_copy(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    job.home = tmp_path / "home"
    first = publish.run(job)
    path = stored(first.artefacts[0])
    inode = path.stat().st_ino
    assert publish.run(job).artefacts == first.artefacts
    assert path.stat().st_ino == inode
    path.write_bytes(b"half")
    publish.run(job)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first.artefacts[0].sha256
    assert not list(path.parent.glob(".*"))


def test_a_cell_cannot_break_its_table() -> None:
    assert card.text("a|b\nc") == "a\\|b c"
    assert card.text(None) == "null"
    assert card.text({"Q4_K": 12, "F32": 0.5}) == "Q4_K 12, F32 0.5"


def test_a_second_job_with_the_same_file_keeps_the_first_ones_papers(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    job.home = tmp_path / "home"
    first = publish.run(job).artefacts
    job.run = job.run.model_copy(update={"job": "second"})
    second = publish.run(job).artefacts
    assert second[0] == first[0]
    for artefact in first + second:
        assert hashlib.sha256(stored(artefact).read_bytes()).hexdigest() == artefact.sha256
    assert json.loads(stored(second[1]).read_text())["job"] == "second"
