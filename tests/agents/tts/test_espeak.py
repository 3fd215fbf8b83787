"""The real synthesiser: what it makes of settings and of odd texts, and what is left when it dies."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import psutil
import pytest

import configs
from agents.tts import core, synthesis
from configs import Settings, Voice
from protocol import Code, LabError
from protocol.voice import MAX_TEXT

ROOT = Path(__file__).resolve().parents[3]
SENTENCE = "Take a slow breath. Every day you learn a little more, and the work becomes easier than you thought it would be."
NEUTRAL = Voice(words_per_minute=175, style="plain", pitch=50, pitch_range=50, volume=100)


def say(text: str, voice: Voice = NEUTRAL) -> bytes:
    """Run the program as the agent does, without the agent."""
    settings = (voice.words_per_minute, voice.pitch, voice.pitch_range, voice.volume, 60)
    done = subprocess.run(
        [sys.executable, "-m", "agents.tts.espeak", *map(str, settings)], input=core.spoken(text).encode(),
        capture_output=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise synthesis.failure(done.returncode, done.stderr.decode())
    return done.stdout


def samples(audio: bytes) -> tuple[np.ndarray, int]:
    """Return the samples (float, -1 to 1) and the sample rate of a WAV."""
    with wave.open(io.BytesIO(audio)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth()) == (1, 2)
        data = wav.readframes(wav.getnframes())
        assert len(data) == wav.getnframes() * 2
        return np.frombuffer(data, "<i2") / 32768, wav.getframerate()


def seconds(text: str, voice: Voice = NEUTRAL) -> float:
    sound, rate = samples(say(text, voice))
    return len(sound) / rate


def loudness(sound: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt((sound**2).mean()))


def pitch(sound: np.ndarray, rate: int) -> float:
    """Return the median fundamental frequency in Hz of the voiced parts, by autocorrelation of 40 ms windows."""
    size, found = int(0.04 * rate), []
    for begin in range(0, len(sound) - size, size // 2):
        window = sound[begin : begin + size] - sound[begin : begin + size].mean()
        if loudness(window) < 0.025:
            continue
        correlation = np.correlate(window, window, "full")[size - 1 :]
        low, high = rate // 400, rate // 60
        lag = low + int(np.argmax(correlation[low:high]))
        if correlation[lag] > 0.5 * correlation[0]:
            found.append(rate / lag)
    return float(np.median(found))


def test_the_six_voices_differ_as_their_settings_say() -> None:
    voices = configs.load(Settings.read()).voices.voices
    assert {name: voice.words_per_minute for name, voice in voices.items()} == {
        "meditative": 150, "therapeutic": 160, "professional": 180, "educational": 170, "creative": 175, "technical": 165,
    }  # fmt: skip
    heard = {name: samples(say(SENTENCE, voice)) for name, voice in voices.items()}
    lengths = {name: len(sound) / rate for name, (sound, rate) in heard.items()}
    assert sorted(voices, key=lambda name: voices[name].words_per_minute) == sorted(lengths, key=lengths.get, reverse=True)  # type: ignore[arg-type]
    assert 0.9 < lengths["professional"] * 180 / (lengths["meditative"] * 150) < 1.1
    loud = {name: loudness(sound) for name, (sound, _) in heard.items()}
    assert min(loud, key=loud.get) == "meditative" and max(loud, key=loud.get) == "creative"  # type: ignore[arg-type]
    high = {name: pitch(*sound) for name, sound in heard.items()}
    assert min(high, key=high.get) == "meditative" and max(high, key=high.get) == "creative"  # type: ignore[arg-type]
    assert high["creative"] > 1.3 * high["meditative"]
    assert all(abs(sound).max() < 0.999 for sound, _ in heard.values()), "nothing is cut off"


def test_each_setting_moves_what_it_names() -> None:
    def heard(**setting: int) -> tuple[np.ndarray, int]:
        return samples(say(SENTENCE, NEUTRAL.model_copy(update=setting)))

    low, high = pitch(*heard(pitch=20)), pitch(*heard(pitch=80))
    assert low < 90 < 120 < high
    assert loudness(heard(volume=50)[0]) == pytest.approx(loudness(heard(volume=100)[0]) / 2, rel=0.1)
    slow, fast = len(heard(words_per_minute=100)[0]), len(heard(words_per_minute=200)[0])
    assert slow == pytest.approx(2 * fast, rel=0.15)
    flat, lively = heard(pitch_range=0), heard(pitch_range=99)
    assert pitch(*lively) > pitch(*flat)


def test_the_same_text_and_voice_is_the_same_bytes() -> None:
    assert say(SENTENCE) == say(SENTENCE)


def test_markup_is_read_out_and_not_obeyed() -> None:
    assert seconds('wait <break time="9s"/> now') < 5 < seconds('wait <break time="9s"/> now <mark name="x"/>, please')
    assert seconds("<speak>hello</speak>") > 2 * seconds("hello")
    assert seconds("[[h@l'oU]]") > 2 * seconds("hello")


def test_text_after_a_nul_byte_is_spoken() -> None:
    assert seconds("one\0two\0three four five") == pytest.approx(seconds("one two three four five"))


def test_emoji_accents_and_composed_characters_are_spoken() -> None:
    assert seconds("😀") > 0.5 and seconds("👩\u200d🚀") > 0.5
    assert say("e\u0301te\u0301") == say("été")


@pytest.mark.parametrize("text", ["…", " \n ", "\0\0", "\u200b", "((()))", "\U000e0067"])
def test_a_text_without_a_sound_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="nothing in it can be heard") as caught:
        say(text)
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, "text")


@pytest.mark.parametrize(("word", "count"), [("987654321", 40), ("%", 300), ("👩\u200d🚀", 100), ("κόσμε", 40)])
def test_a_long_row_of_numbers_symbols_or_foreign_words_is_spoken_to_its_end(word: str, count: int) -> None:
    row = " ".join(f"{word} {number % 7}" for number in range(count))
    one = (seconds(f"{word} 1 {word} 2 {word} 3 {word} 4") - seconds(f"{word} 1 {word} 2")) / 2
    assert seconds(row) > 0.95 * one * count


def test_the_longest_text_is_spoken_whole() -> None:
    text = (SENTENCE + " ") * 80
    assert seconds(text[:MAX_TEXT]) == pytest.approx(MAX_TEXT / len(SENTENCE + " ") * seconds(SENTENCE), rel=0.1)


def test_speech_that_is_too_long_is_refused() -> None:
    program = "import sys; from agents.tts import espeak; espeak.MAX_SECONDS = 1; sys.exit(espeak.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "80", "50", "50", "100", "60"], input=SENTENCE.encode(), capture_output=True,
        cwd=ROOT, check=False,
    )  # fmt: skip
    error = synthesis.failure(done.returncode, done.stderr.decode())
    assert done.stdout == b"" and error.code is Code.TOO_LARGE and "half an hour" in error.message


def utterance(text: str = SENTENCE) -> core.Utterance:
    return core.Utterance(text, "plain", NEUTRAL, None, False)


async def child() -> psutil.Process:
    """Wait for this process's synthesiser to appear."""
    while True:
        for process in psutil.Process().children():
            try:
                if "agents.tts.espeak" in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        await asyncio.sleep(0.002)


async def test_a_killed_synthesiser_is_an_error_with_its_signal(tmp_path: Path) -> None:
    work = asyncio.create_task(synthesis.synthesise(utterance(), tmp_path / "part"))
    (await child()).kill()
    with pytest.raises(LabError, match="killed by signal 9") as caught:
        await work
    assert caught.value.code is Code.INTERNAL and caught.value.advice and caught.value.retry.value == "later"


async def test_a_synthesiser_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "SECONDS", (0.5, 0.0))
    work = asyncio.create_task(synthesis.synthesise(utterance(), tmp_path / "part"))
    process = await child()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(LabError, match=r"longer than 0 s|longer than 1 s") as caught:
        await work
    assert caught.value.code is Code.INTERNAL and not process.is_running()


async def test_a_cancelled_synthesis_leaves_no_process(tmp_path: Path) -> None:
    work = asyncio.create_task(synthesis.synthesise(utterance(), tmp_path / "part"))
    process = await child()
    os.kill(process.pid, signal.SIGSTOP)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not process.is_running()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_a_full_disk_is_said() -> None:
    with pytest.raises(LabError, match="No space left") as caught:
        await synthesis.synthesise(utterance(), Path("/dev/full"))
    assert caught.value.code is Code.NO_SPACE


def test_a_missing_library_names_the_way_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "espeakng_loader.py").write_text("def get_library_path(): return '/nowhere/libespeak-ng.so'\n")
    done = subprocess.run(
        [sys.executable, "-m", "agents.tts.espeak", "175", "50", "50", "100", "60"], input=b"hello", cwd=ROOT,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    error = synthesis.failure(done.returncode, done.stderr.decode())
    assert error.code is Code.TOOLCHAIN and "/nowhere/" in error.message and "make setup" in error.advice
