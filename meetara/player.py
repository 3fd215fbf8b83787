"""Plays a sound file with whatever player this machine has."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

PLAYERS = (
    ("paplay",), ("aplay", "-q"), ("afplay",), ("play", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)  # fmt: skip
"""PulseAudio and PipeWire, ALSA, macOS, SoX, FFmpeg: each ends with an error where there is no device."""
GRACE = 10.0
"""Seconds that a player may take beyond the length of the sound; one that waits for a busy device is given up."""


async def play(file: Path, seconds: float) -> str | None:
    """Play a file to its end.

    Returns:
        The player's name; None: there is none, or none of them can play here.
    """
    for player, *options in PLAYERS:
        program = shutil.which(player)
        if program is not None and await _ran([program, *options, str(file)], seconds + GRACE):
            return player
    return None


async def _ran(command: list[str], limit: float) -> bool:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(limit):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                process.kill()
            await process.wait()
