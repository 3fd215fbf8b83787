"""Which voice speaks, and what the synthesiser is given: the rules, without a process."""

from __future__ import annotations

import dataclasses

import pytest

import configs
from agents.tts import core
from configs import Settings
from protocol import Code, LabError
from protocol.voice import SpeechRequest


@pytest.fixture(scope="module")
def lab() -> configs.Configs:
    return configs.load(Settings.read())


def utter(lab: configs.Configs, **fields: object) -> core.Utterance:
    return core.utter(SpeechRequest.model_validate({"text": "Good morning.", **fields}), lab)


@pytest.mark.parametrize(
    ("fields", "profile", "overridden"),
    [
        ({}, "professional", False),
        ({"domain": "sleep"}, "meditative", False),
        ({"domain": "time_management"}, "professional", False),
        ({"domain": "programming"}, "technical", False),
        ({"domain": "sleep", "profile": "creative"}, "creative", False),
        ({"domain": "sleep", "profile": "creative", "emotion": "fear", "intensity": 1}, "creative", False),
        ({"domain": "programming", "emotion": "anger", "intensity": 0.61}, "meditative", True),
        ({"domain": "programming", "emotion": "anger", "intensity": 0.6}, "technical", False),
        ({"domain": "programming", "emotion": "anger"}, "meditative", True),
        ({"domain": "sleep", "emotion": "stress", "intensity": 1}, "meditative", False),
        ({"emotion": "anxiety", "intensity": 0.7}, "therapeutic", True),
        ({"emotion": "sadness", "intensity": 0.7}, "therapeutic", True),
        ({"emotion": "fear", "intensity": 0.7}, "therapeutic", True),
        ({"emotion": "joy", "intensity": 0.7}, "creative", True),
        ({"emotion": "excitement", "intensity": 0.7}, "creative", True),
        ({"emotion": "confusion", "intensity": 0.7}, "educational", True),
        ({"domain": "sleep", "emotion": "disgust", "intensity": 1}, "meditative", False),
        ({"domain": "sleep", "emotion": "surprise", "intensity": 1}, "meditative", False),
        ({"emotion": "neutral", "intensity": 1}, "professional", False),
    ],
)
def test_the_voice_is_the_named_one_then_a_strong_emotions_then_the_domains(lab, fields, profile, overridden):
    utterance = utter(lab, **fields)
    assert (utterance.profile, utterance.overridden) == (profile, overridden)
    assert utterance.voice == lab.voices.voices[profile] and utterance.emotion == fields.get("emotion")


@pytest.mark.parametrize(
    ("fields", "code", "field", "known"),
    [
        ({"domain": "slep"}, Code.UNKNOWN_DOMAIN, "domain", "sleep"),
        ({"domain": "slep", "profile": "creative"}, Code.UNKNOWN_DOMAIN, "domain", "sleep"),
        ({"profile": "loud"}, Code.INVALID_PARAMS, "profile", "meditative, therapeutic, professional"),
        ({"emotion": "rage"}, Code.INVALID_PARAMS, "emotion", "anger, anxiety, confusion"),
        ({"emotion": "rage", "profile": "creative"}, Code.INVALID_PARAMS, "emotion", "surprise"),
        ({"intensity": 0.5}, Code.INVALID_PARAMS, "intensity", "Name the emotion"),
    ],
)
def test_what_is_unknown_is_refused_with_the_field_and_what_is_known(lab, fields, code, field, known):
    with pytest.raises(LabError) as caught:
        utter(lab, **fields)
    assert (caught.value.code, caught.value.data["field"]) == (code, field)
    assert known in str(caught.value)


def test_the_key_follows_everything_that_is_heard_and_nothing_else(lab):
    plain = utter(lab)
    key = plain.key("espeak 1")
    assert utter(lab, profile="professional", emotion="neutral").key("espeak 1") == key
    assert plain.key("espeak 2") != key
    assert dataclasses.replace(plain, text="Good evening.").key("espeak 1") != key
    for setting in ("words_per_minute", "pitch", "pitch_range", "volume"):
        voice = plain.voice.model_copy(update={setting: 81})
        assert dataclasses.replace(plain, voice=voice).key("espeak 1") != key, setting


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("before\0after", "before after"),
        ("\x1b[31mred\x07", "[31mred"),
        ("e\u0301te\u0301", "été"),
        ("hel\u200blo \ufeffwor\u00adld", "hello world"),
        ("👩\u200d🚀 and ❤\ufe0f", "👩\u200d🚀 and ❤\ufe0f"),
        ("a < b & <break/>", "a < b & <break/>"),
        ("one\ttwo\r\nthree", "one two \nthree"),
        (" \0 ", ""),
    ],
)
def test_characters_that_are_no_text_do_not_reach_the_synthesiser(text, wanted):
    assert core.spoken(text) == wanted


def longest_clause(text: str) -> int:
    """Return the highest estimate of phonemes between two pauses."""
    clauses = text.replace("\n", ", ").replace(". ", ", ").replace("! ", ", ").split(", ")
    return max(sum(core.phonemes(character) for character in clause) for clause in clauses)


@pytest.mark.parametrize("text", ["987654321 " * 800, "1,000,000 " * 800, "word " * 1600, "% & " * 2000])
def test_a_clause_that_would_overflow_gets_pauses_between_words(text):
    spoken = core.spoken(text)
    assert longest_clause(spoken) <= core.CLAUSE_LIMIT
    assert spoken.replace(", ", " ").split() == text.split()


@pytest.mark.parametrize("text", ["9" * 8000, "世" * 8000, "😀" * 8000, "a" * 8000])
def test_a_word_that_would_overflow_is_cut(text):
    spoken = core.spoken(text)
    assert longest_clause(spoken) <= core.CLAUSE_LIMIT
    assert spoken.replace(", ", "") == text


def test_prose_is_left_as_it_is():
    text = "Plan the week on Sunday evening. Write down three things, not thirty; then rest!\n\nIt works: try it. " * 70
    assert core.spoken(text) == text.strip()
