"""Text on stdin, a WAV on stdout: espeak-ng, in a process of its own.

    echo 'Good morning.' | python -m agents.tts.espeak 175 50 50 100 60 >morning.wav

The numbers are words per minute, pitch, pitch range, volume, and the seconds that it may take. espeak-ng is under the
GPL 3: nothing imports this module, the agent starts it as a program. A fresh process for each text also makes the same
bytes of the same text; within one process espeak-ng's state moves on.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import sys
import wave

import espeakng_loader

from agents.tts.status import Status

VOICE = b"en-us"
"""The only English voice of the wheel that loads ("en-gb" does not)."""
MAX_SECONDS = 1800
"""Half an hour of speech is 79 MB; 8,000 characters of prose are nine minutes."""

# speak_lib.h of espeak-ng 1.52
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
POS_CHARACTER = 1
CHARS_UTF8 = 1  # without espeakSSML (0x10): angle brackets are text
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def engine() -> tuple[ctypes.CDLL, int]:
    """Load espeak-ng; returns the library and its sample rate in Hz.

    Raises:
        OSError: it cannot be loaded, or has no such voice.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    data = espeakng_loader.get_data_path()
    rate = int(library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), INITIALIZE_DONT_EXIT))
    if rate <= 0 or library.espeak_SetVoiceByName(VOICE) != 0:
        raise OSError(f"espeak-ng finds no voice {VOICE.decode()} in {data}")
    return library, rate


def main(arguments: list[str]) -> int:
    words_per_minute, pitch, pitch_range, volume, seconds = map(int, arguments)
    signal.alarm(seconds)  # the agent ends a slow process; this ends one whose agent is gone
    text = sys.stdin.buffer.read()
    try:
        library, rate = engine()
    except (OSError, RuntimeError) as error:  # RuntimeError: the wheel's data folder is missing
        print(error, file=sys.stderr)
        return Status.NO_ENGINE
    for parameter, value in ((RATE, words_per_minute), (PITCH, pitch), (RANGE, pitch_range), (VOLUME, volume)):
        library.espeak_SetParameter(parameter, value, 0)
    samples = bytearray()

    @CALLBACK
    def take(data: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if data and count > 0:
            samples.extend(ctypes.string_at(data, count * 2))
        return int(len(samples) > MAX_SECONDS * rate * 2)  # 1 ends the synthesis

    library.espeak_SetSynthCallback(take)
    library.espeak_Synth(text, len(text) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    if len(samples) > MAX_SECONDS * rate * 2:
        return Status.TOO_LONG
    if not any(samples):
        return Status.SILENT
    file = io.BytesIO()
    with contextlib.closing(wave.open(file, "wb")) as wav:
        wav.setparams((1, 2, rate, 0, "NONE", ""))
        wav.writeframes(samples)
    try:
        sys.stdout.buffer.write(file.getbuffer())
        sys.stdout.buffer.flush()
    except OSError as error:  # no space, or nobody reads
        print(error.strerror, file=sys.stderr)
        os._exit(Status.NO_SPACE)  # at a usual exit Python would try to flush again, and say so
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
