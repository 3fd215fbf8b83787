"""Stage publish: the file goes into the artefact store under its own sha256, with its manifest and model card.

Of an adapter only the LoRA is stored; its base is one of the artefacts by reference, as many adapters share it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from agents.gguf_factory import (
    adapter,
    card,
    convert,
    curves,
    fingerprint,
    front_matter,
    pipeline,
    quantise,
    shared_base,
    staging,
    toolchain,
)
from agents.gguf_factory.base import base_name
from agents.gguf_factory.hashes import file_sha256
from agents.gguf_factory.job import LOCAL, MANIFEST, Job, StageResult
from agents.gguf_factory.shared_base import SharedBase
from protocol.format import FORMAT
from protocol.job import Artefact, Stage

PACKAGES = ("torch", "transformers", "peft", "llama-cpp-python")
BEFORE = tuple(stage for stage in Stage if stage is not Stage.PUBLISH)


def run(job: Job) -> StageResult:
    """Write home/artefacts/<sha256>/ with the GGUF, manifest.json, README.md and curves.svg; the file is never overwritten.

    Raises:
        FileNotFoundError: a stage before this one is not finished.
    """
    source = product(job)
    digest = file_sha256(source)
    store = job.home / "artefacts" / digest
    store.mkdir(parents=True, exist_ok=True)
    job.progress(note="publishing")
    target = store / source.name
    if not (target.is_file() and file_sha256(target) == digest):
        copy_durably(source, target)
    base = shared_base.of_job(job)[:2] if job.adapter else None
    papers = names(store, job.run.job)
    drawn = picture(job)
    if drawn is None:
        del papers["curves"]
    else:
        pipeline.write_durably(store / papers["curves"], drawn)
    facts = {**manifest(job, source, digest, base[1] if base else None), "curves": papers.get("curves")}
    pipeline.write_durably(store / papers["manifest"], json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    pipeline.write_durably(store / papers["card"], card.card(facts))
    kind = "adapter" if job.adapter else "gguf"
    artefacts = [artefact(kind, store / name) for kind, name in {kind: source.name, **papers}.items()]
    if base:
        artefacts.insert(1, artefact("base", base[0]))
    if job.run.provider != LOCAL and job.store is not None:
        job.progress(note="putting the files into the artefact store")
        artefacts = [staging.deliver(item, job.store) for item in artefacts]
    results = {"artefacts": [item.model_dump(mode="json") for item in artefacts]}
    return StageResult(results=results, artefacts=artefacts)


def product(job: Job) -> Path:
    """Return the finished file as a job's stages left it: the quantised model, or the adapter."""
    if job.adapter:
        return job.path("convert", adapter.file_name(job))
    return job.path("quantise", quantise.file_name(job))


def names(store: Path, job: str) -> dict[str, str]:
    """Return the names of a job's papers by kind; a second job that made the same file gets names of its own."""
    first = store / MANIFEST
    if not first.is_file() or json.loads(first.read_text(encoding="utf-8"))["job"] == job:
        return {"manifest": MANIFEST, "card": "README.md", "curves": "curves.svg"}
    return {"manifest": f"manifest-{job}.json", "card": f"README-{job}.md", "curves": f"curves-{job}.svg"}


def picture(job: Job) -> str | None:
    """Return the course of the training as SVG; None where none was recorded."""
    try:
        curve = json.loads(job.path("train", "curve.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return curves.picture(curve, f"{job.run.route.domain}: training of the job {job.run.job}")


def manifest(job: Job, source: Path, digest: str, base: SharedBase | None = None) -> dict[str, Any]:
    """Return everything that is known of a file: request, parameters, plan, data, results, gates, versions, lineage.

    Args:
        job: the job, with the stages before publish finished.
        source: the finished file.
        digest: its sha256.
        base: what an adapter belongs to; None for a whole model.
    """
    stages = {stage.value: job.read_manifest(stage) for stage in BEFORE if job.path(stage, MANIFEST).is_file()}
    run, known = job.run, front_matter.of_base(job.base)
    return {
        "format": FORMAT,
        "file": {"name": source.name, "sha256": digest, "bytes": source.stat().st_size},
        "job": run.job,
        "domain": run.route.domain,
        "profile": run.request.profile,
        "tier": run.route.tier,
        "request": run.request.model_dump(mode="json"),
        "parameters": job.parameters,
        "plan": run.plan.model_dump(mode="json"),
        "base": {
            "name": base_name(run.route.base), "sha256": convert.identity(job.base),
            **({"content_sha256": base.content, "file": asdict(base)} if base else {}),
        },
        "licences": {"base": known["licence"], "data": run.request.licence.lower() if run.request.licence else None},
        "languages": known["languages"],
        "safety_critical": run.route.safety_critical,
        "fingerprint": stages.get("plan", {}).get("results", {}).get("fingerprint"),
        "code_version": fingerprint.LOADED,
        "data": {name: value for name, value in job.parameters.items() if name.endswith("_sha256")},
        "results": {name: stage["results"] for name, stage in stages.items()},
        "gates": stages.get("validate", {}).get("gates", {}),
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 3),
        "stage_seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "versions": {
            **{name: _version(name) for name in PACKAGES}, "python": platform.python_version(),
            "converter_sha256": toolchain.LIST_SHA256,
        },
        "lineage": {name: stage["files"] for name, stage in stages.items()},
    }  # fmt: skip


def artefact(kind: str, path: Path) -> Artefact:
    """Describe a stored file."""
    return Artefact(kind=kind, uri=path.resolve().as_uri(), sha256=file_sha256(path), bytes=path.stat().st_size)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file so that after a crash the target is either whole or not there."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
