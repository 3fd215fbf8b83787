"""Sentences in words: which domain one belongs to, what feeling it carries, and how it sounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protocol.job import Strict

Emotion = Literal["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
"""Ekman's six and neutral: the labels of the text model."""

Context = Literal["healthcare", "business", "education", "personal"]

Strategy = Literal["clarification_needed", "single_domain", "multi_domain_parallel", "multi_domain_sequential"]

MAX_TEXT = 8000
"""Characters of one text: about four pages; longer ones are not one utterance."""

MAX_AUDIO_PART = 128 * 1024
"""Bytes of audio in one reply: 171 KiB in base64, below the 256 KiB of a message."""


class TextQuery(Strict):
    """Which domain does this belong to? Nothing is started."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)


class DomainMatch(Strict):
    domain: str
    confidence: float = Field(ge=0, le=1, description="calibrated: of all answers at 0.8, eight in ten are right")


class TextRoute(Strict):
    """The router's view of a text. `primary_domain` None: it is not sure enough, and `question` asks."""

    primary_domain: str | None
    domain_confidence: float
    domain_category: str | None
    nearest: list[DomainMatch] = Field(description="the three likeliest domains, best first")
    multi_domains: list[str] = Field(default_factory=list, description="further domains that the text touches")
    routing_strategy: Strategy
    empathy_level: str | None
    voice: str | None
    question: str | None = None
    urgency: Literal["normal", "critical"] = Field(
        default="normal", description="critical: the words speak of self-harm, a medical emergency or abuse"
    )
    notice: str | None = Field(default=None, description="where to find help at once; show it to the person")
    processing_time_ms: float


class EmotionQuery(Strict):
    """What feeling does this text carry? `context` None: the context of the domain's category, or personal."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)
    domain: str | None = None
    context: Context | None = None


class EmotionShare(Strict):
    emotion: Emotion
    confidence: float = Field(ge=0, le=1)


class Analysis(Strict):
    """What the context makes of the feeling."""

    intervention_required: bool
    empathy_level: str
    professional_recommendations: list[str]
    risk_assessment: Literal["low", "moderate", "high"]


class EmotionReading(Strict):
    primary_emotion: Emotion
    emotion_confidence: float = Field(ge=0, le=1, description="calibrated probability of the primary emotion")
    emotion_intensity: float = Field(ge=0, le=1, description="how strong; above 0.6 the voice follows the emotion")
    emotional_category: Literal["positive", "negative", "neutral", "complex"]
    secondary_emotions: list[EmotionShare]
    nuance: Literal["confusion"] | None = Field(
        default=None, description="a feeling within the primary one that has a voice of its own: confusion within surprise"
    )
    domain_context: Context
    professional_analysis: Analysis
    processing_time_ms: float


class SpeechRequest(Strict):
    """Say this. The voice is `profile`, else that of a strong emotion, else the domain's, else the lab's default."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)
    domain: str | None = None
    profile: str | None = Field(default=None, description="a voice of voices.yaml")
    emotion: str | None = Field(default=None, description="a label of the text model, or one that voices.yaml names")
    intensity: float | None = Field(
        default=None, ge=0, le=1, description="of the emotion; None: whoever names the emotion wants to hear it"
    )


class Speech(Strict):
    """Audio that was made: 16-bit mono WAV, fetched in parts with speech.read. Nothing in it is guessed."""

    sha256: str
    bytes: int
    uri: str = Field(description="the file on the agent's machine")
    agent: str = Field(description="whom to ask for the audio")
    sample_rate: int
    seconds: float
    profile: str
    emotion: str | None
    overridden: bool = Field(description="the emotion put its own voice in place of the domain's")
    system: str
    generation_time_ms: float | None = Field(description="None: the audio was there already")


class AudioQuery(Strict):
    """A part of a file that speech.synthesise made."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offset: int = Field(default=0, ge=0, description="bytes")


class AudioPart(Strict):
    """MAX_AUDIO_PART bytes from `offset` on, or what is left; the last part ends at `total`."""

    base64: str
    offset: int
    total: int


class Voice(Strict):
    """A profile and what it sets in the synthesiser."""

    profile: str
    words_per_minute: int
    style: str
    pitch: int
    pitch_range: int
    volume: int
    domains: list[str]


class VoiceList(Strict):
    system: str
    voices: list[Voice]
