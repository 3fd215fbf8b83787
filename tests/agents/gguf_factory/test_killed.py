"""SIGKILL in the midst of training, of a step, and of a save: the next process ends with the same bytes."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from agents.gguf_factory import checkpoint
from tests.agents.gguf_factory import forked

FILES = ("adapter/adapter_model.safetensors", "history.json")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("straight")
    assert forked.run(forked.train, folder, 0, 0) == 0
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_steps_and_file_operations_it_ends_with_the_same_bytes(
    tmp_path: Path, straight: dict[str, bytes], seed: int
) -> None:
    where = random.Random(seed)
    kills, inside = 0, 0
    while True:
        in_save = where.random() < 0.5
        looks, touches = (0, where.randint(3, 14)) if in_save else (where.randint(2, 6), 0)
        status = forked.run(forked.train, tmp_path, looks, touches)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        inside += (tmp_path / "checkpoints" / checkpoint.TEMPORARY).exists()
    assert kills >= 3 and inside >= 1
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == straight
