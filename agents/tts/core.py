"""What is said and how: pure functions from a request and the configuration to an utterance."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass

from configs import Configs, Voice
from protocol import Code, LabError
from protocol.voice import SpeechRequest

CLAUSE_LIMIT = 800
"""Estimated phonemes without a pause. espeak-ng drops what a clause has above about 1,000: of twenty numbers of nine
digits in a row it said sixteen. Prose stays far below it."""

PHONEMES = {"Lu": 4, "Nd": 6, "Nl": 8, "No": 8, "S": 20, "P": 8}
"""Phonemes of a character by its Unicode category, the longest of each: "double u", a digit's share of "nine hundred
ninety-nine million", "woman astronaut", "asterisk". All others count as one."""
SPELT_OUT = 14
"""Phonemes of a letter that is named instead of read: "Chinese letter", "lambda", "letter one e b f"."""
LATIN_END = "\u024f"
"""The last letter that the English voice reads."""

PAUSES = frozenset(".,;:!?…")
"""Characters that make a pause where a space follows: "3.14" and "1,000" have none."""
ZERO_WIDTH_JOINER = "\u200d"
"""Invisible, but it makes one emoji of two; all other format characters only split words."""


@dataclass(frozen=True)
class Utterance:
    """A text ready to be spoken, and the settings of its voice."""

    text: str
    profile: str
    voice: Voice
    emotion: str | None
    overridden: bool

    def key(self, system: str) -> str:
        """Sha256 of everything that the audio depends on."""
        voice = self.voice
        settings = [system, self.text, voice.words_per_minute, voice.pitch, voice.pitch_range, voice.volume]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def utter(request: SpeechRequest, configs: Configs) -> Utterance:
    """Choose the voice: the named profile, else a strong emotion's, else the domain's, else the default.

    Raises:
        LabError: UNKNOWN_DOMAIN with the nearest names; INVALID_PARAMS for an unknown profile or emotion, with the known
            ones, and for an intensity of nothing.
    """
    voices = configs.voices
    usual = voices.default if request.domain is None else configs.domains.find(request.domain).voice
    felt = None
    if request.emotion is not None:
        felt = voices.of_emotion(request.emotion, 1.0 if request.intensity is None else request.intensity)
    elif request.intensity is not None:
        raise LabError(
            Code.INVALID_PARAMS, "intensity: there is no emotion that it could belong to.",
            advice="Name the emotion, or leave the intensity out.", field="intensity",
        )  # fmt: skip
    profile = request.profile or felt or usual
    return Utterance(
        text=spoken(request.text), profile=profile, voice=voices.find(profile), emotion=request.emotion,
        overridden=request.profile is None and felt is not None and felt != usual,
    )  # fmt: skip


def spoken(text: str) -> str:
    """Return a text as the synthesiser takes it: composed characters, no control characters, no clause too long for it.

    Nothing is markup: brackets, ampersands and backslashes are ordinary characters.
    """
    plain = []
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)
        if category == "Cc" and character != "\n":
            plain.append(" ")  # a NUL would end the text, an escape sequence is no word
        elif category != "Cf" or character == ZERO_WIDTH_JOINER:
            plain.append(character)
    return _with_pauses("".join(plain).strip())


def phonemes(character: str) -> int:
    """Estimate how many phonemes a character becomes, rather too many."""
    category = unicodedata.category(character)
    if character > LATIN_END and category[0] == "L":
        return SPELT_OUT
    return PHONEMES.get(category, PHONEMES.get(category[0], 1))


def _with_pauses(text: str) -> str:
    """Put a comma where a clause would become too long, at a space if there was one since the last pause."""
    pieces: list[str] = []
    begin = space = length = since_space = 0
    for at, character in enumerate(text):
        if character.isspace():
            if character == "\n" or text[at - 1 : at] in PAUSES:
                length = 0
            space, since_space = at, 0
        cost = phonemes(character)
        if length + cost > CLAUSE_LIMIT:
            cut = space if space > begin else at
            pieces.append(text[begin:cut] + ", ")
            begin = space = cut
            length = since_space if cut < at else 0
        length += cost
        since_space += cost
    return "".join([*pieces, text[begin:]])
