"""One run of the synthesiser: text in, a WAV file out, and what it means when that fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from agents.tts.core import Utterance
from agents.tts.status import Status
from protocol import Code, LabError, Retry

SECONDS = (10.0, 0.01)
"""How long a synthesis may take: at least, and per character of the text. It takes 0.05 s and 0.0004 s per character
on a quiet core; a process that hangs must not hold up those that wait."""
INSTALL = "Install the lab's packages again (`make setup`)."
FREE = "Free memory and disk space on the agent's machine, then say it again."


def system() -> str:
    """Return the synthesiser's name and version.

    Raises:
        LabError: TOOLCHAIN, it is not installed.
    """
    try:
        return f"espeak-ng (espeakng-loader {version('espeakng-loader')})"
    except PackageNotFoundError as error:
        raise LabError(Code.TOOLCHAIN, "the package espeakng-loader is not installed.", advice=INSTALL) from error


async def synthesise(utterance: Utterance, file: Path) -> None:
    """Write an utterance's audio to a file, in a process of its own that is gone on return.

    Raises:
        LabError: INVALID_PARAMS, nothing can be heard; TOO_LARGE, longer than half an hour; TOOLCHAIN, espeak-ng does not
            load; NO_SPACE; INTERNAL, the process was killed, crashed or hung, with its last words.
    """
    voice = utterance.voice
    seconds = SECONDS[0] + SECONDS[1] * len(utterance.text)
    settings = (voice.words_per_minute, voice.pitch, voice.pitch_range, voice.volume, round(2 * seconds))
    try:
        with file.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agents.tts.espeak", *map(str, settings),
                stdin=asyncio.subprocess.PIPE, stdout=out, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
    except OSError as error:
        code = Code.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else Code.INTERNAL
        raise LabError(
            code, f"the speech synthesis cannot start: {error.strerror}.", advice=FREE, retry=Retry.LATER
        ) from error
    try:
        async with asyncio.timeout(seconds):
            _, words = await process.communicate(utterance.text.encode())
    except TimeoutError as error:
        raise LabError(
            Code.INTERNAL, f"the speech synthesis of {len(utterance.text)} characters took longer than {seconds:.0f} s.",
            advice="Try again when the machine is less busy, or send the text in parts.", retry=Retry.LATER,
        ) from error  # fmt: skip
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                process.kill()
            await process.wait()
    if process.returncode:
        raise failure(process.returncode, words.decode("utf-8", "replace"))


def failure(status: int, words: str) -> LabError:
    """Return the error behind the exit status of the synthesiser (negative: killed by that signal)."""
    last = (words.strip().splitlines() or [""])[-1]
    match status:
        case Status.SILENT:
            return LabError(
                Code.INVALID_PARAMS, "text: nothing in it can be heard.", advice="Give words, digits or symbols.",
                field="text",
            )  # fmt: skip
        case Status.TOO_LONG:
            return LabError(
                Code.TOO_LARGE, "text: its speech is longer than half an hour.", advice="Send it in parts.", field="text"
            )
        case Status.NO_ENGINE:
            return LabError(Code.TOOLCHAIN, f"espeak-ng does not load: {last}.", advice=INSTALL)
        case Status.NO_SPACE:
            return LabError(Code.NO_SPACE, f"the speech cannot be written: {last}.", advice=FREE, retry=Retry.LATER)
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}: {last}"
    return LabError(
        Code.INTERNAL, f"the speech synthesis {how}.", advice="Say it again; if it stays so, report the text.",
        retry=Retry.LATER,
    )  # fmt: skip
