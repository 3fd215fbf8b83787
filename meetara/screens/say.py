"""`meetara say`: which domain and feeling a text has, in which voice it is spoken, and the sound itself."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meetara import show
from meetara.door import OK, emit
from meetara.lab import Lab
from meetara.player import play
from protocol import Code, LabError
from protocol.voice import EmotionReading, Speech, TextRoute

FALLBACK = Path("meetara-say.wav")
ASK_SECONDS = 5.0
"""For the router and the emotion agent, which answer within milliseconds: a text can be spoken without them."""
SAY_SECONDS = (20.0, 0.02)
"""For the synthesis: at least, and per character; a restart of the agent in between takes two seconds."""
AWAY = frozenset({Code.EXPIRED, Code.BUSY, Code.INTERNAL, Code.UNKNOWN_METHOD})
"""Errors of an agent that cannot serve; all others are about what was asked."""

ResultT = TypeVar("ResultT")


@dataclass
class Saying:
    """What was asked for, and what was found out about it. `notes` are sentences about what is missing."""

    text: str
    domain: str | None
    profile: str | None
    emotion: str | None
    route: TextRoute | None = None
    reading: EmotionReading | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def found_domain(self) -> str | None:
        """The domain that was named, or that the router is sure of."""
        return self.domain or (self.route.primary_domain if self.route else None)

    async def ask(
        self, agent: str, online: set[str], call: Callable[[], Awaitable[ResultT]], without: str
    ) -> ResultT | None:
        """Ask an agent that may be away; then a note says what is done without it."""
        if agent not in online:
            self.notes.append(f"no {agent} agent is online: {without}.")
            return None
        try:
            return await call()
        except LabError as error:
            if error.code not in AWAY:
                raise
            self.notes.append(f"the {agent} agent gives no answer ({error.message.rstrip('.')}): {without}.")
            return None

    async def speak(self, lab: Lab) -> tuple[bytes, Speech]:
        """Find out what was not given, and have the text spoken.

        Raises:
            LabError: UNREACHABLE without a tts agent; what is wrong with the text, the domain, the profile, the emotion.
        """
        online = await lab.online("router", "emotion", "tts")
        if "tts" not in online:
            raise LabError(
                Code.UNREACHABLE, "no tts agent is online, so nothing can be spoken.",
                advice="See `meetara agents`; `meetara up` starts one.",
            )  # fmt: skip
        if self.domain is None:
            self.route = await self.ask(
                "router", online, lambda: lab.route(self.text, timeout=ASK_SECONDS), "the voice follows no domain"
            )
        if self.emotion is None:
            domain = self.found_domain
            self.reading = await self.ask(
                "emotion", online, lambda: lab.emotion(self.text, domain=domain, timeout=ASK_SECONDS),
                "the text is spoken as a neutral one",
            )  # fmt: skip
        return await lab.say(
            self.text, domain=self.found_domain, profile=self.profile,
            emotion=self._felt(self.reading) if self.reading else self.emotion,
            intensity=self.reading.emotion_intensity if self.reading else None,
            timeout=SAY_SECONDS[0] + SAY_SECONDS[1] * len(self.text),
        )  # fmt: skip

    def table(self, speech: Speech) -> Table:
        """Return what a person is shown."""
        grid = Table.grid(padding=(0, 2))
        made = "was there already" if speech.generation_time_ms is None else f"made in {speech.generation_time_ms:.0f} ms"
        rows = [
            ("domain", self._domain()), ("emotion", self._emotion()), ("profile", self._profile(speech)),
            ("speech", f"{show.duration(speech.seconds)}, {show.size(speech.bytes)}, {made}"),
        ]  # fmt: skip
        for name, value in rows:
            grid.add_row(Text(name, style="bold"), Text(value))
        return grid

    def _domain(self) -> str:
        if self.domain is not None:
            return f"{self.domain} (given)"
        if self.route is None:
            return "not known"
        if self.route.primary_domain is None:
            nearest = ", ".join(f"{match.domain} {match.confidence:.2f}" for match in self.route.nearest)
            question = f" {self.route.question}" if self.route.question else ""
            return f"not clear (nearest: {nearest}).{question}"
        return f"{self.route.primary_domain} (confidence {self.route.domain_confidence:.2f})"

    def _emotion(self) -> str:
        if self.emotion is not None:
            return f"{self.emotion} (given)"
        if self.reading is None:
            return "not known"
        return f"{self._felt(self.reading)} (intensity {self.reading.emotion_intensity:.2f})"

    @staticmethod
    def _felt(reading: EmotionReading) -> str:
        return reading.nuance or reading.primary_emotion  # confusion has a voice of its own, surprise has none

    def _profile(self, speech: Speech) -> str:
        if self.profile is not None:
            why = "given"
        elif speech.overridden:
            usual = f" instead of {self.route.voice}, the domain's" if self.route and self.route.voice else ""
            why = f"the emotion asks for it{usual}"
        else:
            why = "the domain's voice" if self.found_domain else "the lab's default"
        return f"{speech.profile} ({why})"


async def say(where: dict[str, Any], saying: Saying, *, out: Path | None, as_json: bool, console: Console) -> int:
    """Say a text, and play the audio or write it to a file."""
    if saying.text == "-":
        saying.text = standard_input()
    if out is not None:
        check_folder(out)
    async with Lab(**where, name="say") as lab:
        audio, speech = await saying.speak(lab)
    if not as_json:
        console.print(saying.table(speech))
        for note in saying.notes:
            console.print(note, markup=False)
    player = await played(audio, speech.seconds) if out is None else None
    file = out or (None if player else FALLBACK)
    if file is not None:
        write(file, audio)
    if as_json:
        emit({
            "domain": saying.found_domain, "route": saying.route, "emotion": saying.reading, "speech": speech,
            "player": player, "file": str(file.absolute()) if file else None, "notes": saying.notes,
        })  # fmt: skip
    elif player is not None:
        console.print(f"played with {player}", markup=False)
    else:
        why = "" if out else "no player and sound device here: "
        console.print(f"{why}written to {file}", markup=False)
    return OK


def standard_input() -> str:
    """Return the text that comes on stdin.

    Raises:
        LabError: BAD_DATA, it is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise LabError(
            Code.BAD_DATA, f"the text on stdin is not UTF-8: {error.reason} at byte {error.start}.",
            advice="Convert it, for example with iconv.",
        ) from error  # fmt: skip


async def played(audio: bytes, seconds: float) -> str | None:
    """Play audio; returns the player's name, or None where nothing can play it."""
    with tempfile.NamedTemporaryFile(prefix="meetara-say-", suffix=".wav") as file:
        file.write(audio)
        file.flush()
        return await play(Path(file.name), seconds)


def check_folder(file: Path) -> None:
    """Refuse a file in a folder that is not there, before anything is asked.

    Raises:
        LabError: CONFIGURATION.
    """
    if not file.absolute().parent.is_dir():
        raise unwritable(file, "its folder does not exist")


def write(file: Path, audio: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        LabError: CONFIGURATION, it cannot be written.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(audio)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritable(file, error.strerror or str(error)) from error


def unwritable(file: Path, why: str) -> LabError:
    """Return the error for a file that cannot be written."""
    return LabError(
        Code.CONFIGURATION, f"{file} cannot be written: {why}.", advice="Name another file with --out.", file=str(file)
    )
