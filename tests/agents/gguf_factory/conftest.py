from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pytest

from agents.gguf_factory import adapter, convert, pipeline, publish, quantise, shared_base, validate
from agents.gguf_factory.job import Job, StageResult
from agents.gguf_factory.pipeline import StageRun
from configs import GateRule
from protocol.job import Stage
from tests.agents.gguf_factory import adapters, exports


def _export(job: Job, converted: StageRun, quantised: StageRun, rules: Mapping[str, GateRule], general: Path) -> None:
    """Do the stages from convert to publish."""

    def validated(job: Job) -> StageResult:
        return validate.run(job, rules, general)

    pipeline.run(
        job, lambda line: None,
        stages=((Stage.CONVERT, converted), (Stage.QUANTISE, quantised), (Stage.VALIDATE, validated),
                (Stage.PUBLISH, publish.run)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of a real S3 server on loopback; its address and keys are in the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        fsspec.filesystem("s3").mkdir("lab")
        yield "s3://lab"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with all stages from convert to publish done; tests read it and break copies (`exports.copy`)."""
    root = tmp_path_factory.mktemp("exported")
    job = exports.prepare(root)
    general = root / "general.txt"
    general.write_text(exports.GENERAL)
    _export(job, convert.run, quantise.run, exports.rules(), general)
    return job


@pytest.fixture(scope="session")
def general(exported: Job) -> Path:
    return exported.home.parent / "general.txt"


@pytest.fixture(scope="session")
def adapted(exported: Job, tmp_path_factory: pytest.TempPathFactory, general: Path) -> Job:
    """A job of the profile adapter with all stages from convert to publish done; tests read it."""
    job = adapters.prepare(exported, tmp_path_factory.mktemp("adapted"))
    _export(job, adapter.run, shared_base.run, exports.rules("adapter"), general)
    return job
