"""How the lab speaks: the voices, and which emotion asks for which: voices.yaml."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from configs.source import Source
from protocol import Code, LabError
from protocol.voice import Emotion

FILE = "voices.yaml"


class Voice(BaseModel):
    """A profile's settings in the synthesiser's own scales; their limits are espeak-ng's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    words_per_minute: int = Field(ge=80, le=450)
    style: str = Field(min_length=1)
    pitch: int = Field(ge=0, le=99)
    pitch_range: int = Field(ge=0, le=99)
    volume: int = Field(ge=1, le=200)


class Voices(BaseModel):
    """All profiles by name, and the emotions that decide instead of the domain above an intensity (0-1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    default: str
    voices: dict[str, Voice] = Field(min_length=1)
    emotion_above: float = Field(ge=0, le=1)
    emotions: dict[str, str]

    def find(self, profile: str) -> Voice:
        """Return the voice that a request names in its field `profile`.

        Raises:
            LabError: INVALID_PARAMS with the known profiles.
        """
        if profile in self.voices:
            return self.voices[profile]
        raise _unknown("profile", profile, list(self.voices))

    def of_emotion(self, emotion: str, intensity: float) -> str | None:
        """Return the profile that an emotion asks for; None: it asks for none, or is too weak.

        Raises:
            LabError: INVALID_PARAMS with the known emotions: the text model's labels and those of voices.yaml.
        """
        if emotion not in self.emotions and emotion not in get_args(Emotion):
            raise _unknown("emotion", emotion, sorted({*get_args(Emotion), *self.emotions}))
        return self.emotions.get(emotion) if intensity > self.emotion_above else None


def _unknown(field: str, value: str, known: list[str]) -> LabError:
    return LabError(
        Code.INVALID_PARAMS, f"{field}: {value!r} is no {field} of this lab.",
        advice=f"Known are {', '.join(known)}; more can be added in {FILE}.", field=field, known=known,
    )  # fmt: skip


def read(source: Source) -> Voices:
    """Read voices.yaml.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    voices = source.check(Voices)
    named = {"default": voices.default, **{f"emotions.{emotion}": name for emotion, name in voices.emotions.items()}}
    for key, name in named.items():
        if name not in voices.voices:
            raise source.wrong(key, f"{name!r} is none of the voices {', '.join(voices.voices)}")
    return voices
