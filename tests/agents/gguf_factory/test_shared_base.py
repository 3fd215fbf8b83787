"""The base that adapters share: made once, also by two jobs at a time, and made again where it is damaged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agents.gguf_factory import adapter, convert, llama, shared_base
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.hashes import file_sha256
from agents.gguf_factory.job import Job, Stopped
from protocol import Code, LabError


@pytest.fixture
def home(adapted: Job, tmp_path: Path) -> Path:
    """A home of one's own with the base's F16 file, linked."""
    source = convert.convert_base(adapted.base, adapted.home)
    folder = tmp_path / "home" / "models" / source.parent.name
    folder.mkdir(parents=True)
    (folder / source.name).hardlink_to(source)
    return tmp_path / "home"


def test_it_is_quantised_with_general_text_and_says_which_base_it_is(adapted: Job) -> None:
    path, base, made = shared_base.of_job(adapted)
    header = read_header(path)
    assert not made and header.values[llama.BASE_SHA256] == base.content == adapter.content(adapted.base)
    assert base.imatrix_tokens > 1000 and base.quantisation == "Q4_K_M" and base.bits_per_weight < 8
    assert base.sha256 == file_sha256(path)
    assert adapted.read_manifest("quantise")["results"]["base_made"] is True
    left = {item.name for item in path.parent.iterdir()}
    assert left == {".lock", convert.FILE, path.name, path.with_suffix(".json").name}


def test_two_jobs_at_a_time_make_it_once_and_a_damaged_one_is_made_again(adapted: Job, home: Path) -> None:
    start = threading.Barrier(2)

    def want(_: int) -> tuple[Path, bool]:
        start.wait(timeout=30)
        path, _, made = shared_base.ensure(adapted.base, home, "F16")
        return path, made

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(want, range(2)))
    path = found[0][0]
    assert sorted(made for _, made in found) == [False, True] and found[0][0] == found[1][0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert shared_base.read(path) is None
    assert shared_base.ensure(adapted.base, home, "F16")[2]
    assert shared_base.read(path)


def test_whoever_waits_for_it_can_be_stopped(adapted: Job, home: Path) -> None:
    folder = home / "models" / convert.identity(adapted.base)
    with shared_base._locked(folder, lambda: False, lambda **_: None):
        notes: list[str] = []
        with pytest.raises(Stopped):
            shared_base.ensure(
                adapted.base, home, "F16", stop=lambda: bool(notes), progress=lambda **facts: notes.append(facts["note"])
            )
    assert "waiting" in notes[0]


def test_an_unknown_quantisation_and_a_missing_text_are_told(adapted: Job, home: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="Q9") as caught:
        shared_base.ensure(adapted.base, home, "Q9")
    assert caught.value.code is Code.INVALID_PARAMS
    with pytest.raises(LabError, match="cannot be read"):
        shared_base.ensure(adapted.base, home, "Q8_0", general=tmp_path / "none.txt")


def test_an_adapter_finds_its_base_by_content_and_prefers_its_own_quantisation(adapted: Job) -> None:
    path, base, _ = shared_base.of_job(adapted)
    assert shared_base.find(adapted.home, base.content, "Q4_K_M") == path
    assert shared_base.find(adapted.home, base.content, "Q8_0") == path, "another quantisation is better than none"
    assert shared_base.find(adapted.home, "0" * 64, "Q4_K_M") is None
    assert shared_base.find(adapted.home / "nowhere", base.content) is None
