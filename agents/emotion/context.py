"""What each context makes of a feeling: which ones are critical there, how much empathy is due, from when on to step in.

The table is that of the older TARA server, whose clients keep getting the same answers; its words for feelings that are not
labels of the model are led back to the label that holds them in GoEmotions' grouping (Demszky et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.voice import Context

HOLDS = {"anxiety": "fear", "loneliness": "sadness", "frustration": "anger", "stress": "anger"}
"""nervousness is in fear, annoyance in anger; loneliness has no label of its own, comments with it carry sadness."""


@dataclass(frozen=True)
class Setting:
    """One context. `threshold` is the intensity from which a critical feeling asks for intervention."""

    critical: tuple[str, ...]
    empathy: str
    threshold: float
    when_critical: tuple[str, ...]
    when_intervening: tuple[str, ...]

    def concerns(self, feeling: str) -> bool:
        """Whether a label of the model, or the nuance confusion, is critical here."""
        return feeling in {HOLDS.get(name, name) for name in self.critical}


SETTINGS: dict[Context, Setting] = {
    "healthcare": Setting(
        critical=("anxiety", "fear", "sadness", "anger"), empathy="high", threshold=0.7,
        when_critical=(
            "Acknowledge the feeling before giving information.",
            "Explain the next step in plain words.",
        ),
        when_intervening=(
            "Ask whether the person is safe and has somebody with them.",
            "Offer contact with a health professional.",
        ),
    ),
    "business": Setting(
        critical=("anger", "frustration", "stress"), empathy="moderate", threshold=0.6,
        when_critical=(
            "Name the problem as the person sees it.",
            "Say what will be done, and by when.",
        ),
        when_intervening=("Hand the matter to a person who can decide.",),
    ),
    "education": Setting(
        critical=("confusion", "frustration", "anxiety"), empathy="high", threshold=0.6,
        when_critical=(
            "Go back to the last step that was understood.",
            "Explain it another way, with an example.",
        ),
        when_intervening=("Pause the exercise and offer help from a teacher.",),
    ),
    "personal": Setting(
        critical=("sadness", "anger", "fear", "loneliness"), empathy="very_high", threshold=0.8,
        when_critical=(
            "Listen first; ask before advising.",
            "Say that the feeling is understandable.",
        ),
        when_intervening=(
            "Ask whether the person is safe and whom they could call.",
            "Suggest talking to a professional or somebody they trust.",
        ),
    ),
}  # fmt: skip

BY_CATEGORY: dict[str, Context] = {
    "healthcare": "healthcare", "daily_life": "personal", "business": "business", "education": "education",
    "creative": "personal", "technology": "business", "specialized": "business",
}  # fmt: skip
"""The context of a domain's category; of a category of one's own, and without a domain, it is personal."""


def context_of(category: str | None) -> Context:
    """Return the context in which a domain's category is read."""
    return BY_CATEGORY.get(category or "", "personal")
