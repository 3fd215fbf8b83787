import pytest

import configs
from agents.emotion import core
from agents.emotion.context import BY_CATEGORY, HOLDS, SETTINGS, context_of
from configs import Settings
from protocol import Code, LabError
from protocol.voice import EmotionQuery, EmotionReading

THRESHOLDS = {name: 0.3 for name in (*core.EMOTIONS, "felt", "strong", "confusion")}


@pytest.fixture(scope="module")
def domains() -> configs.Domains:
    return configs.load(Settings.read()).domains


def read(text: str = "x", context: str = "personal", **probabilities: float) -> EmotionReading:
    names = dict.fromkeys(THRESHOLDS, 0.05) | probabilities
    return core.reading(text, context, names, THRESHOLDS, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("domain", "context"),
    [("sleep", "healthcare"), ("parenting", "personal"), ("sales", "business"), ("exam_preparation", "education"),
     ("music", "personal"), ("programming", "business"), ("legal", "business"), (None, "personal")],
)  # fmt: skip
def test_the_domains_category_gives_the_context(domains, domain, context):
    assert core.context(EmotionQuery(text="x", domain=domain), domains) == context


def test_every_shipped_category_has_a_context(domains):
    assert {domain.category for domain in domains.values()} == BY_CATEGORY.keys()
    assert context_of("gardening") == "personal"


def test_a_named_context_comes_before_the_domains(domains):
    assert core.context(EmotionQuery(text="x", domain="sleep", context="business"), domains) == "business"


@pytest.mark.parametrize("context", [None, "business"])
def test_an_unknown_domain_is_refused_with_the_nearest_names(domains, context):
    with pytest.raises(LabError) as caught:
        core.context(EmotionQuery(text="x", domain="slep", context=context), domains)
    assert (caught.value.code, caught.value.data["nearest"][0]) == (Code.UNKNOWN_DOMAIN, "sleep")


def test_the_likeliest_label_is_primary_and_the_other_present_ones_follow_by_probability():
    found = read(anger=0.6, disgust=0.35, sadness=0.4, joy=0.2, neutral=0.32)
    assert (found.primary_emotion, found.emotion_confidence) == ("anger", 0.6)
    assert [(one.emotion, one.confidence) for one in found.secondary_emotions] == [("sadness", 0.4), ("disgust", 0.35)]


@pytest.mark.parametrize(
    ("probabilities", "category"),
    [({"joy": 0.8}, "positive"), ({"fear": 0.8}, "negative"), ({"neutral": 0.8}, "neutral"), ({"surprise": 0.8}, "neutral"),
     ({"joy": 0.5, "sadness": 0.4}, "complex"), ({"surprise": 0.6, "anger": 0.4}, "negative"),
     ({"joy": 0.6, "sadness": 0.29}, "positive"), ({"neutral": 0.2}, "neutral")],
)  # fmt: skip
def test_the_category_is_complex_when_feelings_of_both_kinds_are_present(probabilities, category):
    assert read(**probabilities).emotional_category == category


def test_confusion_is_told_apart_within_surprise_only():
    assert read(surprise=0.6, confusion=0.4).nuance == "confusion"
    assert read(surprise=0.6, confusion=0.2).nuance is None
    assert read(anger=0.6, confusion=0.4).nuance is None


@pytest.mark.parametrize(
    ("context", "feeling", "empathy", "threshold"),
    [("healthcare", "fear", "high", 0.7), ("healthcare", "sadness", "high", 0.7), ("healthcare", "anger", "high", 0.7),
     ("business", "anger", "moderate", 0.6), ("education", "anger", "high", 0.6), ("education", "fear", "high", 0.6),
     ("personal", "sadness", "very_high", 0.8), ("personal", "anger", "very_high", 0.8), ("personal", "fear", "very_high", 0.8)],
)  # fmt: skip
def test_a_critical_feeling_asks_for_intervention_from_the_contexts_threshold_on(context, feeling, empathy, threshold):
    def at(strength: float) -> EmotionReading:
        return read(context=context, felt=strength, strong=strength, **{feeling: 0.9})

    below, above = at(threshold - 0.02).professional_analysis, at(threshold + 0.02).professional_analysis
    assert (below.intervention_required, below.risk_assessment) == (False, "moderate")
    assert (above.intervention_required, above.risk_assessment) == (True, "high")
    assert below.empathy_level == above.empathy_level == empathy
    assert set(below.professional_recommendations) < set(above.professional_recommendations)


@pytest.mark.parametrize(("context", "feeling"), [("business", "sadness"), ("education", "sadness"), ("personal", "joy")])
def test_what_is_not_critical_in_a_context_is_a_low_risk_however_strong(context, feeling):
    found = read(context=context, felt=0.99, strong=0.99, **{feeling: 0.9}).professional_analysis
    assert (found.intervention_required, found.risk_assessment, found.professional_recommendations) == (False, "low", [])


def test_confusion_is_critical_in_education_and_other_surprise_is_not():
    strong = {"felt": 0.9, "strong": 0.9, "surprise": 0.8}
    assert read(context="education", **strong, confusion=0.5).professional_analysis.intervention_required
    assert not read(context="education", **strong, confusion=0.1).professional_analysis.intervention_required


def test_every_critical_feeling_is_held_by_something_that_the_model_tells():
    for setting in SETTINGS.values():
        for name in setting.critical:
            assert HOLDS.get(name, name) in {*core.EMOTIONS, "confusion"}


def test_words_of_danger_ask_for_intervention_whatever_the_feeling_and_the_context():
    found = read("I want to kill myself", context="business", neutral=0.9).professional_analysis
    assert (found.intervention_required, found.risk_assessment) == (True, "high")
    assert "988" in found.professional_recommendations[0]
