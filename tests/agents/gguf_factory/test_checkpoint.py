from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents.gguf_factory import checkpoint


def save(folder: Path, value: int) -> Path:
    return checkpoint.save(folder, {"a": torch.full((3,), value)}, {"step": value, "losses": [0.1, 1 / 3]})


def test_what_was_saved_is_loaded_bit_by_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 5), "rng": torch.get_rng_state()}
    checkpoint.save(tmp_path, tensors, {"losses": [0.1, 1 / 3]})
    found = checkpoint.load(tmp_path)
    assert found.checkpoint is not None and found.damaged == []
    assert all(torch.equal(found.checkpoint.tensors[name], tensor) for name, tensor in tensors.items())
    assert found.checkpoint.meta == {"losses": [0.1, 1 / 3]}


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for value in range(1, 5):
        save(tmp_path, value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000003", "checkpoint-000004"]


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.META])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-5])
    else:
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    found = checkpoint.load(tmp_path)
    assert found.checkpoint is not None and found.checkpoint.meta["step"] == 1
    assert len(found.damaged) == 1 and "checkpoint-000002" in found.damaged[0]


def test_nothing_sound_is_no_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path, 1) / checkpoint.TENSORS).unlink()
    found = checkpoint.load(tmp_path)
    assert found.checkpoint is None and len(found.damaged) == 1
    assert checkpoint.load(tmp_path / "nowhere") == checkpoint.Found()


def test_what_a_kill_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".checkpoint-000002").mkdir()
    assert checkpoint.load(tmp_path).checkpoint is not None
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "checkpoint-000002"]
