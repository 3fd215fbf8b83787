from zlib import crc32

import pytest

from textmodel.features import Grams, count, grams, tokens


def test_words_keep_their_apostrophes_and_signs_are_tokens():
    assert tokens("I don’t KNOW... :( really?!") == ["i", "don't", "know", "...", ":(", "really", "?!"]


def test_long_runs_of_signs_are_one_token_of_three():
    assert tokens("no!!!!!!!!") == ["no", "!!!"]


def test_word_and_character_grams_have_the_lengths_asked_for():
    words, characters = grams("so sad", Grams(words=(1, 2), chars=(2, 3)))
    assert words == ["so", "sad", "so sad"]
    assert characters == [" s", "so", "o ", " so", "so ", " s", "sa", "ad", "d ", " sa", "sad", "ad "]


def test_no_characters_where_none_are_asked_for():
    assert grams("so sad", Grams(words=(1, 1), chars=(0, 0))) == (["so", "sad"], [])


def test_style_tells_capitals_and_drawn_out_letters_apart():
    plain, _ = grams("WHY soooo", Grams(words=(1, 1), chars=(0, 0)))
    styled, _ = grams("WHY soooo", Grams(words=(1, 1), chars=(0, 0), style=True))
    assert plain == ["why", "soooo"]
    assert styled[2:] == ["\twhy", "\tLOUD", "\tLONG"]


def test_grams_are_counted_by_their_hash():
    (words, often), _ = count("no no yes", Grams(words=(1, 1), chars=(0, 0)))
    assert dict(zip(words.tolist(), often.tolist(), strict=True)) == {crc32(b"wno"): 2.0, crc32(b"wyes"): 1.0}


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "😂", "日本語", "a" * 8000, "\x00", "'", "_"])
def test_any_text_can_be_counted(text):
    for hashes, often in count(text, Grams(style=True)):
        assert len(hashes) == len(often)
