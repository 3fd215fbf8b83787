"""The stages in order. A finished stage leaves a manifest and is skipped as long as what it read is the same."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agents.gguf_factory.hashes import file_sha256
from agents.gguf_factory.job import MANIFEST, Job, StageResult, Stopped
from protocol.format import FORMAT, check_format
from protocol.job import Stage, stages_of

Report = Callable[[dict[str, Any]], None]
StageRun = Callable[[Job], StageResult]


def _late(module: str) -> StageRun:
    """Return a stage's `run`, imported when it is called: torch costs seconds that a skipped stage need not pay."""

    def run(job: Job) -> StageResult:
        result: StageResult = importlib.import_module(f"agents.gguf_factory.{module}").run(job)
        return result

    return run


OF_ADAPTER = {Stage.CONVERT: "adapter", Stage.QUANTISE: "shared_base"}
"""Modules that do a stage for the profile adapter; the others are named as their stage."""


def stages_for(profile: str) -> tuple[tuple[Stage, StageRun], ...]:
    """Return a profile's stages in order, with what does them."""
    other = OF_ADAPTER if profile == "adapter" else {}
    return tuple((stage, _late(other.get(stage, stage.value))) for stage in stages_of(profile))


KEPT = frozenset({Stage.TRAIN})
"""Stages whose half-done folder holds checkpoints; any other is cleared and done anew."""


def run(job: Job, report: Report, stages: tuple[tuple[Stage, StageRun], ...] | None = None) -> dict[Stage, dict[str, Any]]:
    """Run what is not finished yet and return all manifests.

    Args:
        job: the job; its `progress` gets a note for each stage that is skipped.
        report: takes {"kind": "stage_started", "stage"} and {"kind": "stage_done", "stage", "seconds", "results"}; for a
            stage that was finished before only the latter, with "again": a kill may have swallowed it.
        stages: the stages, for tests; default: those of the request's profile.

    Raises:
        Stopped: a stop was asked for; its argument is the stage to go on with.
        LabError: a stage failed.
    """
    manifests: dict[Stage, dict[str, Any]] = {}
    previous: dict[str, str] = {}
    for stage, function in stages or stages_for(job.run.request.profile):
        inputs = {"request": _request_digest(job), **previous}
        manifest = finished(job, stage, inputs)
        if manifest is None:
            if job.stop():
                raise Stopped(stage)
            report({"kind": "stage_started", "stage": stage.value})
            manifest = _run_one(job, stage, function, inputs)
            report({
                "kind": "stage_done", "stage": stage.value, "seconds": manifest["seconds"],
                "results": manifest["results"],
            })  # fmt: skip
        else:
            job.progress(note=f"{stage.value} was finished before")
            report({
                "kind": "stage_done", "stage": stage.value, "seconds": manifest["seconds"],
                "results": manifest["results"], "again": True,
            })  # fmt: skip
        manifests[stage] = manifest
        previous = {**previous, stage.value: _output_digest(manifest)}
    return manifests


def finished(job: Job, stage: Stage, inputs: dict[str, str]) -> dict[str, Any] | None:
    """Return the stage's manifest if it is whole, was made from these inputs, and its files are unchanged."""
    try:
        manifest = job.read_manifest(stage)
        check_format(manifest, job.path(stage, MANIFEST))
        if manifest["inputs"] != inputs:
            return None
        for name, facts in manifest["files"].items():
            path = job.path(stage, name)
            if path.stat().st_size != facts["bytes"] or file_sha256(path) != facts["sha256"]:
                return None
        for facts in manifest["artefacts"]:
            place = urlsplit(facts["uri"])
            if place.scheme == "file" and file_sha256(Path(unquote(place.path))) != facts["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no manifest, or one that is not whole: the stage is done anew
    return manifest


def _run_one(job: Job, stage: Stage, function: StageRun, inputs: dict[str, str]) -> dict[str, Any]:
    folder = job.path(stage)
    if folder.exists() and stage not in KEPT:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        result = function(job)
    except Stopped as stopped:
        raise Stopped(stage) from stopped
    manifest = {
        "format": FORMAT,
        "stage": stage.value,
        "inputs": inputs,
        "parameters": job.parameters,
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in result.files
        },
        "results": result.results,
        "artefacts": [artefact.model_dump(mode="json") for artefact in result.artefacts],
        "gates": {name: gate.model_dump(mode="json") for name, gate in result.gates.items()},
        "seconds": round(time.perf_counter() - start, 3),
    }
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def write_durably(path: Path, text: str) -> None:
    """Write a file so that after a crash it is either whole or not there."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _output_digest(manifest: dict[str, Any]) -> str:
    """Hash what later stages build on; not the measurements, so that an equal output redone changes nothing."""
    parts = [manifest["stage"], manifest["inputs"], manifest["files"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _request_digest(job: Job) -> str:
    """Hash what decides the result: request, route, parameters. Not lease, fence or attempt."""
    parts = [job.run.request.model_dump(mode="json"), job.run.route.model_dump(mode="json"), job.parameters]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
