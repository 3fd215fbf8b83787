"""Audio files: whole or not there, handed out in parts, bounded in size and age."""

from __future__ import annotations

import hashlib
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.tts.recordings import Recording, Recordings
from protocol import Code, LabError

AT = datetime(2026, 1, 1, tzinfo=UTC)
HEADER = 44


def write(path: Path, frames: int, byte: int = 1) -> bytes:
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, 1000, 0, "NONE", ""))
        wav.writeframes(bytes([byte]) * 2 * frames)
    return path.read_bytes()


def kept(recordings: Recordings, now: datetime, frames: int = 500, byte: int = 1) -> Recording:
    part = recordings.part("one")
    write(part, frames, byte)
    return recordings.keep(part, now)


def test_a_kept_file_is_named_by_its_content_and_measured(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path / "speech", "tts-1")
    audio = write(recordings.part("one"), 500)
    recording = recordings.keep(recordings.part("one"), AT)
    assert recording == Recording(hashlib.sha256(audio).hexdigest(), HEADER + 1000, 1000, 0.5)
    assert [path.name for path in recordings.folder.iterdir()] == [f"{recording.sha256}.wav"]
    assert recordings.has(recording, AT)


@pytest.mark.parametrize("size", [0, 3, HEADER, 700])
def test_a_file_that_is_cut_off_is_not_kept(tmp_path: Path, size: int) -> None:
    recordings = Recordings(tmp_path / "speech", "tts-1")
    part = recordings.part("one")
    part.write_bytes(write(part, 500)[:size])
    with pytest.raises(LabError, match="no whole WAV file") as caught:
        recordings.keep(part, AT)
    assert caught.value.code is Code.INTERNAL and not list(recordings.folder.glob("*.wav"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path / "speech", "tts-1")
    with pytest.raises(LabError, match="No such file") as caught:
        recordings.keep(recordings.part("none"), AT)
    assert caught.value.code is Code.NO_SPACE and caught.value.data["file"] == str(tmp_path / "speech")


def test_parts_put_together_are_the_file(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path, "tts-1")
    sha256 = kept(recordings, AT).sha256
    data, total = b"", 1
    while len(data) < total:
        part, total = recordings.read(sha256, len(data), 300)
        data += part
    assert data == recordings.path(sha256).read_bytes() and total == HEADER + 1000
    assert recordings.read(sha256, total, 300) == (b"", total)
    with pytest.raises(LabError, match="behind the end") as caught:
        recordings.read(sha256, total + 1, 300)
    assert (caught.value.code, caught.value.data["total"]) == (Code.INVALID_PARAMS, total)


def test_an_unknown_file_is_not_found_with_advice(tmp_path: Path) -> None:
    with pytest.raises(LabError) as caught:
        Recordings(tmp_path, "tts-1").read("0" * 64, 0, 300)
    assert caught.value.code is Code.NOT_FOUND and "speech.synthesise" in caught.value.advice


def test_a_file_that_was_removed_or_changed_does_not_count(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path, "tts-1")
    recording = kept(recordings, AT)
    with recordings.path(recording.sha256).open("ab") as file:
        file.write(b"x")
    assert not recordings.has(recording, AT)
    recordings.path(recording.sha256).unlink()
    assert not recordings.has(recording, AT)


def test_the_oldest_go_first_when_the_limit_of_size_is_passed(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path, "tts-1", size_limit=3 * (HEADER + 1000))
    made = [kept(recordings, AT + timedelta(seconds=second), byte=second) for second in range(4)]
    assert recordings.has(made[0], AT + timedelta(seconds=9)), "asked for again: it is the youngest now"
    assert recordings.prune(AT + timedelta(seconds=9)) == [made[1].sha256]
    assert [recordings.path(one.sha256).exists() for one in made] == [True, False, True, True]


def test_a_file_that_nobody_asked_for_goes_after_the_limit_of_age(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path, "tts-1", age_limit=timedelta(days=7))
    old, young = kept(recordings, AT, byte=1), kept(recordings, AT + timedelta(days=5), byte=2)
    assert recordings.prune(AT + timedelta(days=6)) == []
    assert recordings.prune(AT + timedelta(days=8)) == [old.sha256]
    assert recordings.has(young, AT)


def test_the_youngest_stays_even_alone_above_the_limit(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path, "tts-1", size_limit=10)
    recording = kept(recordings, AT)
    assert recordings.prune(AT) == [] and recordings.has(recording, AT)


def test_unfinished_files_of_a_killed_process_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    for owner in ("tts-1", "tts-2"):
        Recordings(tmp_path, owner).part("half").write_bytes(b"RIFF")
    Recordings(tmp_path, "tts-1")
    assert [path.name for path in tmp_path.iterdir()] == [".tts-2-half.part"]
