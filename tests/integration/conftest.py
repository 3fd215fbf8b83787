"""One base, one configs folder, and one shared lab for the tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.lab import Ground, RunningLab, running

DISK_LIMIT = 200_000_000
"""What a job of the shared lab may take: twice what the tiny base needs."""


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.make(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="session")
def lab(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab with one slot; when it goes down, nothing of it may be left."""
    home: Path = tmp_path_factory.mktemp("shared") / "home"
    with running(home, ground.configs, MEETARA_DISK_LIMIT_BYTES=str(DISK_LIMIT)) as started:
        yield started
