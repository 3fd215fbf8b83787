from __future__ import annotations

from pathlib import Path

import pytest

from agents.gguf_factory import convert, quantise
from agents.gguf_factory.job import Job
from tests.agents.gguf_factory import exports


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with the stages up to quantise done; tests read it and break copies (`exports.copy`)."""
    job = exports.prepare(tmp_path_factory.mktemp("exported"))
    convert.run(job)
    quantise.run(job)
    return job
