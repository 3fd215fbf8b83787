"""From the model's probabilities to a reading: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from agents.emotion.context import SETTINGS, context_of
from agents.emotion.intensity import intensity
from configs import Domains
from protocol.voice import Analysis, Context, Emotion, EmotionQuery, EmotionReading, EmotionShare
from textmodel.crisis import NOTICES, Crisis, crisis

EMOTIONS: tuple[Emotion, ...] = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
POSITIVE = frozenset({"joy"})
NEGATIVE = frozenset({"anger", "disgust", "fear", "sadness"})
"""Surprise is of neither kind: GoEmotions calls its group ambiguous."""


def context(query: EmotionQuery, domains: Domains) -> Context:
    """Return the context in which a text is read: the one asked for, or that of the domain's category.

    Raises:
        LabError: UNKNOWN_DOMAIN with the nearest names, also where the context was named.
    """
    category = domains.find(query.domain).category if query.domain is not None else None
    return query.context or context_of(category)


def reading(
    text: str, context: Context, probabilities: Mapping[str, float], thresholds: Mapping[str, float], took_ms: float
) -> EmotionReading:
    """Return the reading of a text.

    Args:
        text: as written.
        context: whose table judges it.
        probabilities: of each of EMOTIONS, of `felt` and `strong` (see `intensity`), and of `confusion`; calibrated.
        thresholds: from when on a label counts as present; chosen for the best F1 of each.
        took_ms: how long the model took.
    """
    primary = max(EMOTIONS, key=lambda name: probabilities[name])
    present = {name for name in EMOTIONS if probabilities[name] >= thresholds[name]} | {primary}
    secondary = sorted(present - {primary, "neutral"}, key=lambda name: -probabilities[name])
    confused = primary == "surprise" and probabilities["confusion"] >= thresholds["confusion"]
    strength = intensity(probabilities["felt"], probabilities["strong"], text)
    return EmotionReading(
        primary_emotion=primary,
        emotion_confidence=probabilities[primary],
        emotion_intensity=strength,
        emotional_category=_category(present),
        secondary_emotions=[EmotionShare(emotion=name, confidence=probabilities[name]) for name in secondary],
        nuance="confusion" if confused else None,
        domain_context=context,
        professional_analysis=_analysis(
            context, {*present, *(["confusion"] if confused else [])}, strength, crisis(text)
        ),
        processing_time_ms=took_ms,
    )


def _category(present: set[Emotion]) -> Literal["positive", "negative", "neutral", "complex"]:
    match bool(present & POSITIVE), bool(present & NEGATIVE):
        case True, True:
            return "complex"
        case True, False:
            return "positive"
        case False, True:
            return "negative"
    return "neutral"


def _analysis(context: Context, present: set[str], strength: float, danger: Crisis | None) -> Analysis:
    setting = SETTINGS[context]
    critical = any(setting.concerns(name) for name in present)
    intervene = danger is not None or (critical and strength >= setting.threshold)
    return Analysis(
        intervention_required=intervene,
        empathy_level=setting.empathy,
        professional_recommendations=[
            *([NOTICES[danger]] if danger else ()), *(setting.when_critical if critical else ()),
            *(setting.when_intervening if intervene else ())
        ],
        risk_assessment="high" if intervene else "moderate" if critical else "low",
    )  # fmt: skip
