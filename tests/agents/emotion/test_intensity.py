import pytest

from agents.emotion.intensity import EXCLAMATION, emphasis, intensity


def test_words_alone_give_nothing_half_or_all():
    assert intensity(0.0, 0.0, "x") == pytest.approx(0, abs=1e-5)
    assert intensity(1.0, 0.0, "x") == pytest.approx(0.5)
    assert intensity(1.0, 1.0, "x") == pytest.approx(1, abs=1e-5)


def test_a_strong_feeling_is_no_likelier_than_a_feeling():
    assert intensity(0.2, 0.9, "x") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [("I am angry", "I am very angry"), ("I am angry", "I am angry!"), ("I am angry!", "I am angry!!!"),
     ("I am angry", "I am ANGRY"), ("I am a bit angry", "I am angry"), ("kind of sad", "sad"), ("somewhat sad", "sad")],
)  # fmt: skip
def test_the_way_of_writing_raises_or_softens(weaker, stronger):
    assert intensity(0.8, 0.4, weaker) < intensity(0.8, 0.4, stronger)


def test_writing_makes_no_feeling_where_the_words_have_none():
    assert intensity(0.02, 0.0, "SO very really TRUE!!!!") < 0.2


def test_what_is_repeated_without_end_counts_so_often_and_no_more():
    assert emphasis("!" * 500) == pytest.approx(4 * EXCLAMATION)
    assert emphasis("very " * 500) == emphasis("very very very")


@pytest.mark.parametrize("text", ["WHY ARE YOU LIKE THIS", "the US and the UK", "OK"])
def test_capitals_count_only_where_they_stand_out(text):
    assert emphasis(text) == 0
