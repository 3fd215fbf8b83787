"""One cluster for all tests of this folder: built, up, healthy; afterwards nothing of it is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from configs.source import SHIPPED
from tests.compose.cluster import ROOT, Clock, Cluster
from tests.compose.engine import NoEngine, engine
from tests.conftest import free_port

WHEELS = ROOT / "docker" / "wheels"
ROWS = 60
"""Rows of the data set: enough to hold out from, few enough to be encoded in a second."""


def tell(sentence: str) -> None:
    print(f"compose-test: {sentence}", file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch, clock.phase("everything"):
        patch.chdir(ROOT)
        try:
            with engine(tell) as found:
                made = Cluster(
                    found, f"meetara-test-{os.getpid()}", free_port(), tmp_path_factory.mktemp("compose"), clock
                )
                write_files(made.folder)
                try:
                    with clock.phase("build the image"), wheels():
                        made.compose("build")
                    with clock.phase("up, until every service is healthy"):
                        made.compose("up", "--detach")
                        made.wait_until_healthy()
                    yield made
                finally:
                    with clock.phase("take down"):
                        made.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")
                        # without --no-prune the layers would go too, which make the next build one of seconds
                        found.docker("image", "rm", "--no-prune", made.image, check=False)
        except NoEngine as missing:
            pytest.skip(str(missing))


def write_files(folder: Path) -> None:
    """Write a small data set, and configs whose default tier trains the starter base for a minute.

    What so short a training cannot reach is only told; the gates that prove a true conversion fail the job as everywhere.
    """
    (folder / "data").mkdir()
    rows = (ROOT / "data" / "time_management.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    (folder / "data" / "small.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "configs").mkdir()
    content = yaml.safe_load((SHIPPED / "tiers.yaml").read_text(encoding="utf-8"))
    content["tiers"]["small"] = {
        "base": "models/starter", "budget_usd": None,
        "parameters": {
            "max_steps": 40, "batch_size": 2, "sequence_length": 128, "learning_rate": 1e-4, "warmup_steps": 2,
            "save_steps": 1, "control_share": 0,
        },
        "gates": {
            "quality_percent": {"level": "warn", "threshold": 101}, "stops_percent": {"level": "off"},
            "lesson_percent": {"level": "off"}, "forgetting_percent": {"level": "off"},
        },
    }  # fmt: skip
    (folder / "configs" / "tiers.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "configs" / "lab.yaml").write_text("default_tier: small\n", encoding="utf-8")
    for path in [folder / "data", folder / "configs", *folder.rglob("*.*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # the image's user is another one


@contextmanager
def wheels() -> Iterator[None]:
    """For the time of a build, lay out the wheels that this machine has already: compiling takes a quarter of an hour.

    They fit the image where this Python is the image's; elsewhere the build fetches and compiles as a user's does.
    """
    before = set(WHEELS.iterdir())
    try:
        if sys.platform == "linux" and sys.version_info[:2] == (3, 11):
            lay_out_wheels()
        yield
    finally:
        for path in set(WHEELS.iterdir()) - before:
            path.unlink()


def lay_out_wheels() -> None:
    pip = [sys.executable, "-m", "pip"]
    torch = metadata.version("torch")
    if torch.endswith("+cpu"):  # only an index that has it can give it again; the CUDA build would not be worth its size
        download = [*pip, "download", "--quiet", "--no-deps", "--dest", str(WHEELS), f"torch=={torch}"]
        subprocess.run(download, check=False, capture_output=True)
    cached = [*pip, "cache", "list", "llama_cpp_python", "--format", "abspath"]
    paths = subprocess.run(cached, check=False, capture_output=True, text=True).stdout.split()
    for path in map(Path, paths):
        if path.name.startswith(f"llama_cpp_python-{metadata.version('llama-cpp-python')}-"):
            shutil.copy(path, WHEELS)
