from collections.abc import Sequence

import pytest

import configs
from agents.router import words
from configs import Settings
from protocol.voice import TextRoute


@pytest.fixture(scope="module")
def domains() -> configs.Domains:
    return configs.load(Settings.read()).domains


AS_IT_IS = (1.0, 1.0, 0.0)
"""Leaves a share as it is."""


def saying(**by_word: str) -> words.Reader:
    """Return a reader that is sure of the domain whose word stands first in a text, and of nothing otherwise."""

    def shares(text: str) -> Sequence[tuple[str, float]]:
        found = next((by_word[word] for word in text.lower().replace(",", "").replace(".", "").split() if word in by_word), words.OTHER)
        return [(name, 0.9 if name == found else 0.02) for name in ("music", "sleep", "fitness", "nutrition", words.OTHER)]

    return words.Reader(shares, (AS_IT_IS,) * 3)


def read(text: str, domains: configs.Domains) -> TextRoute:
    sure = saying(chords="music", asleep="sleep", pushups="fitness", vitamins="nutrition")
    return words.read(text, sure, domains, lambda: 0.5)


def test_a_sure_text_has_one_domain_with_what_configs_say_of_it(domains):
    found = read("which chords fit together", domains)
    assert (found.primary_domain, found.routing_strategy, found.multi_domains) == ("music", "single_domain", [])
    assert (found.domain_category, found.voice, found.empathy_level) == ("creative", "creative", "moderate")
    assert (found.domain_confidence, found.question, found.processing_time_ms) == (pytest.approx(0.9), None, 0.5)
    assert len(found.nearest) == 3 and found.nearest[0].domain == "music"


def test_an_unsure_text_has_none_and_a_question_with_three_names(domains):
    found = read("what is the capital of Peru", domains)
    assert (found.primary_domain, found.voice, found.routing_strategy) == (None, None, "clarification_needed")
    assert [match.domain for match in found.nearest] == ["music", "sleep", "fitness"]
    assert found.question == "What is it about: music, sleep or fitness?"


@pytest.mark.parametrize(
    ("text", "strategy", "domains_found"),
    [
        ("How do I fall asleep and how many pushups a day", "multi_domain_parallel", ["sleep", "fitness"]),
        ("Help me fall asleep. Then teach me three chords", "multi_domain_sequential", ["sleep", "music"]),
        ("fall asleep faster; a hundred pushups daily; easy guitar chords; which vitamins help",
         "multi_domain_parallel", ["sleep", "fitness", "music"]),
        ("fall asleep faster and stay asleep longer", "single_domain", ["sleep"]),
        ("asleep and pushups", "single_domain", ["sleep"]),
    ],
)  # fmt: skip
def test_parts_of_a_text_that_are_sure_of_themselves_make_it_several(domains, text, strategy, domains_found):
    found = read(text, domains)
    assert (found.routing_strategy, [found.primary_domain, *found.multi_domains]) == (strategy, domains_found)


def test_domains_that_the_lab_has_not_are_never_named(domains):
    found = words.read("x", words.Reader(lambda text: [("cooking", 0.99), ("music", 0.005)], [AS_IT_IS]), domains, lambda: 0)
    assert found.primary_domain is None and [match.domain for match in found.nearest] == ["music"]
    assert found.question == "What is it about: music?"


def test_a_lab_of_own_domains_only_is_told_so(domains):
    found = words.read("x", words.Reader(lambda text: [("cooking", 0.99)], [AS_IT_IS]), domains, lambda: 0)
    assert (found.primary_domain, found.nearest) == (None, [])
    assert "no domain" in str(found.question)


def test_a_rank_of_its_own_never_makes_the_second_surer_than_the_first(domains):
    reader = words.Reader(lambda text: [("music", 0.3), ("sleep", 0.29)], [(1.0, 1.0, 0.0), (1.0, 1.0, 2.0)])
    first, second = words.matches("x", reader, domains)
    assert (first.domain, first.confidence) == ("music", pytest.approx(0.3)) and second.confidence == first.confidence


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_any_share_has_a_confidence(share):
    assert words.confidence(share, AS_IT_IS) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "domain"),
    [("I want to kill myself, which chords fit", "mental_health"), ("my father is having a stroke", "emergency_care"),
     ("My husband hits me", "mental_health")],
)  # fmt: skip
def test_words_of_danger_lead_to_healthcare_with_a_notice(domains, text, domain):
    found = read(text, domains)
    assert (found.primary_domain, found.domain_category, found.urgency) == (domain, "healthcare", "critical")
    assert found.notice is not None and "911" in found.notice and found.question is None


def test_an_ordinary_text_has_no_notice(domains):
    found = read("which chords fit together", domains)
    assert (found.urgency, found.notice) == ("normal", None)
