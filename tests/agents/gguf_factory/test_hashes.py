"""Hashes of large files are remembered; whatever could deceive that is read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from agents.gguf_factory import hashes
from agents.gguf_factory.hashes import Hashes

LATER = 3_600_000_000_000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []
    real = hashes.file_sha256

    def note(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(hashes, "file_sha256", note)
    return names


def later(home: Path) -> Hashes:
    """Hashes of 4 bytes and more, an hour after everything was written."""
    return Hashes(home, 4, lambda: time.time_ns() + LATER)


def test_a_large_file_at_rest_is_read_once_also_by_the_next_process(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert [later(tmp_path).sha256(tmp_path / "w") for _ in range(3)] == [digest] * 3
    assert read == ["w"]


def test_a_small_file_is_read_each_time(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "s").write_bytes(b"abc")
    for _ in range(2):
        later(tmp_path).sha256(tmp_path / "s")
    assert read == ["s", "s"] and not (tmp_path / hashes.FILE).exists()


def test_another_content_with_the_old_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    facts = path.stat()
    later(tmp_path).sha256(path)
    with path.open("r+b") as file:
        file.write(b"WEIGHTS")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_mtime_ns == facts.st_mtime_ns and path.stat().st_ino == facts.st_ino
    assert later(tmp_path).sha256(path) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    fresh = Hashes(tmp_path, 4)
    fresh.sha256(tmp_path / "w")
    fresh.sha256(tmp_path / "w")
    assert read == ["w", "w"]


def test_a_memory_that_is_cut_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    later(tmp_path).sha256(tmp_path / "w")
    memory = tmp_path / hashes.FILE
    memory.write_text(memory.read_text()[:-5])
    assert later(tmp_path).sha256(tmp_path / "w") == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(hashes, "MOST", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 9)
        later(tmp_path).sha256(tmp_path / name)
    assert [Path(place).name for place in later(tmp_path)._read()] == ["b", "c"]
