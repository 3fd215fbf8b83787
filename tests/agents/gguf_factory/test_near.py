"""Near duplicates: what MinHash finds is what counting finds."""

from __future__ import annotations

import random
import tracemalloc

from agents.gguf_factory.near import LIKE, WORDS, Twins


def found(texts: list[str]) -> list[tuple[int, int]]:
    twins = Twins()
    for text in texts:
        twins.add(text.split())
    return [(twin.row, twin.earlier) for twin in twins.found()]


def likeness(one: str, other: str) -> float:
    first, second = ({tuple(text.split()[at : at + WORDS]) for at in range(len(text.split()) - WORDS + 1)} for text in (one, other))
    return len(first & second) / len(first | second)


def sentence(seed: int, words: int = 40) -> str:
    chance = random.Random(seed)
    return " ".join(f"w{chance.randrange(500)}" for _ in range(words))


def test_a_changed_word_and_a_new_end_are_found_and_other_rows_are_not() -> None:
    texts = [sentence(n) for n in range(300)]
    changed = texts[7].split()
    changed[20] = "new"
    assert found([*texts, " ".join(changed), texts[9] + " and more", texts[3]]) == [(300, 7), (301, 9), (302, 3)]


def test_it_agrees_with_counting_on_rows_of_every_likeness() -> None:
    texts = [sentence(1000 + n) for n in range(40)]
    for n in range(40):
        words = texts[n].split()
        for at in range(n % 8):
            words[(at * 5 + n) % 40] = f"other{at}"
        texts.append(" ".join(words))
    pairs = {row for row, _ in found(texts)}
    for n in range(40):
        exact = likeness(texts[n], texts[40 + n])
        assert (40 + n in pairs) is (exact >= LIKE), exact


def test_short_rows_are_left_to_exact_comparison() -> None:
    assert found(["how do i sleep better", "how do i sleep worse"] * 2) == []
    assert Twins().found() == []


def test_memory_is_about_a_kilobyte_for_each_row() -> None:
    texts = [sentence(n, 60).split() for n in range(2000)]
    tracemalloc.start()
    try:
        twins = Twins()
        for text in texts:
            twins.add(text)
        twins.found()
        assert tracemalloc.get_traced_memory()[1] < 2000 * 2500
    finally:
        tracemalloc.stop()
