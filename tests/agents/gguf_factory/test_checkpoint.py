from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents.gguf_factory import checkpoint
from agents.gguf_factory.hashes import file_sha256


def save(folder: Path, value: int, pinned: bool = False) -> Path:
    return checkpoint.save(folder, {"a": torch.full((3,), value)}, {"step": value, "losses": [0.1, 1 / 3]}, pinned=pinned)


def numbers(folder: Path) -> list[int]:
    return [name.number for name in checkpoint.names(folder)]


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
    assert numbers(tmp_path) == [3, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_newest_pinned_one_is_kept_and_found_too(tmp_path: Path) -> None:
    for value in range(1, 7):
        save(tmp_path, value, pinned=value in (1, 3))
    assert numbers(tmp_path) == [3, 5, 6]
    newest, pinned = checkpoint.load(tmp_path).checkpoint, checkpoint.load(tmp_path, pinned=True).checkpoint
    assert newest is not None and newest.meta["step"] == 6
    assert pinned is not None and pinned.meta["step"] == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    path.write_bytes({"flip": flipped, "cut": content[:-5], "empty": b""}[damage])
    found = checkpoint.load(tmp_path)
    assert found.checkpoint is not None and found.checkpoint.meta["step"] == 1
    assert found.damaged == ["checkpoint-000002 is damaged (its hash differs)"]


def test_a_file_with_the_hash_of_its_name_that_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    stray = tmp_path / "stray"
    stray.write_text("not a tensor")
    stray.rename(tmp_path / str(checkpoint.Name(3, False, file_sha256(stray))))
    found = checkpoint.load(tmp_path)
    assert found.checkpoint is None and "checkpoint-000003 is damaged" in found.damaged[0]
    assert checkpoint.load(tmp_path / "nowhere") == checkpoint.Found()


def test_what_a_kill_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / checkpoint.TEMPORARY).write_bytes(b"half")
    assert checkpoint.load(tmp_path).checkpoint is not None
    save(tmp_path, 3)
    assert numbers(tmp_path) == [1, 2] and len(list(tmp_path.iterdir())) == 2
