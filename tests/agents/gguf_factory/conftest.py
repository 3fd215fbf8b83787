from __future__ import annotations

from pathlib import Path

import pytest

from agents.gguf_factory import adapter, convert, pipeline, publish, quantise, shared_base, validate
from agents.gguf_factory.job import Job, StageResult
from protocol.job import Stage
from tests.agents.gguf_factory import adapters, exports


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with all stages from convert to publish done; tests read it and break copies (`exports.copy`)."""
    root = tmp_path_factory.mktemp("exported")
    job = exports.prepare(root)
    general = root / "general.txt"
    general.write_text(exports.GENERAL)

    def validated(job: Job) -> StageResult:
        return validate.run(job, exports.rules(), general)

    pipeline.run(
        job, lambda line: None,
        stages=((Stage.CONVERT, convert.run), (Stage.QUANTISE, quantise.run), (Stage.VALIDATE, validated),
                (Stage.PUBLISH, publish.run)),
    )  # fmt: skip
    return job


@pytest.fixture(scope="session")
def general(exported: Job) -> Path:
    return exported.home.parent / "general.txt"


@pytest.fixture(scope="session")
def adapted(exported: Job, tmp_path_factory: pytest.TempPathFactory, general: Path) -> Job:
    """A job of the profile adapter with all stages from convert to publish done; tests read it."""
    job = adapters.prepare(exported, tmp_path_factory.mktemp("adapted"))

    def validated(job: Job) -> StageResult:
        return validate.run(job, exports.rules("adapter"), general)

    pipeline.run(
        job, lambda line: None,
        stages=((Stage.CONVERT, adapter.run), (Stage.QUANTISE, shared_base.run), (Stage.VALIDATE, validated),
                (Stage.PUBLISH, publish.run)),
    )  # fmt: skip
    return job
