"""What is trained on is never evaluated."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.gguf_factory.dataset import Row
from agents.gguf_factory.split import LEAST, MOST, apart, normalise, split
from protocol import Code, LabError


def row(question: str, answer: str, line: int = 1) -> Row:
    return Row(line, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def rows(count: int) -> list[Row]:
    return [row(f"Question {n}?", f"the long telling answer number {n}", n) for n in range(count)]


@given(st.lists(st.integers(0, 400), min_size=60, max_size=300), st.randoms(use_true_random=False))
def test_a_split_is_disjoint_complete_and_independent_of_order(numbers: list[int], order: random.Random) -> None:
    found = [row(f"Question {n}", f"a{index}", index) for index, n in enumerate(numbers)]
    try:
        first = split(found)
    except LabError:  # a few questions repeated many times
        assert len(set(numbers)) < 60
        return
    mixed = found.copy()
    order.shuffle(mixed)
    second = split(mixed)
    questions = [{normalise(r.question) for r in side} for side in (first.train, first.held_out)]
    assert questions[0].isdisjoint(questions[1])
    assert len(first.train) + len(first.held_out) + first.withheld == len(found)
    assert LEAST <= len(first.held_out) <= MOST
    assert {r.line for r in first.held_out} == {r.line for r in second.held_out}


def test_the_same_question_in_other_case_and_punctuation_stays_on_one_side() -> None:
    found = rows(100) + [row(f"question {n} !", f"another long and telling answer {n}") for n in range(100)]
    divided = split(found)
    held = {normalise(r.question) for r in divided.held_out}
    assert len(divided.held_out) == 2 * len(held)


def test_sizes_of_the_held_out_part() -> None:
    assert len(split(rows(25)).held_out) == LEAST
    assert len(split(rows(10_000)).held_out) == MOST
    assert 50 < len(split(rows(1000)).held_out) < 110


def test_a_shared_answer_is_withheld_from_training() -> None:
    found = rows(200)
    held = split(found).held_out[0]
    twin = row("A wholly different question", held.answer.upper())
    divided = split([*found, twin])
    assert divided.withheld == 1 and twin not in divided.train + divided.held_out


def test_few_rows_are_refused_with_both_numbers() -> None:
    for found in (rows(24), [row("same", f"answer {n}") for n in range(100)]):
        with pytest.raises(LabError) as caught:
            split(found, "/data/few.jsonl")
        assert caught.value.code == Code.BAD_DATA and caught.value.data["needed"] == 25
        assert "25" in caught.value.message and "/data/few.jsonl" in caught.value.message


def test_training_rows_of_the_evaluation_set_are_removed_and_counted() -> None:
    evaluation = [row(f"Held {n}", f"held out answer with words {n}") for n in range(10)]
    leaked = [row("HELD 3!", "x"), row("new", "Held out answer, with words 4.")]
    short = row("yes or no", "Yes.")
    divided = apart([*rows(50), *leaked, short], [*evaluation, row("short", "yes")])
    assert divided.withheld == 2 and short in divided.train and len(divided.held_out) == 11


def test_a_small_evaluation_set_is_refused_and_a_large_one_cut() -> None:
    with pytest.raises(LabError) as caught:
        apart(rows(50), [row("a", "b")])
    assert caught.value.data["field"] == "eval_dataset"
    divided = apart(rows(50), [row(f"other {n}", "x") for n in range(300)])
    assert (len(divided.held_out), divided.unused) == (MOST, 100)


@given(st.text() | st.text(st.characters(max_codepoint=127)))
def test_normalising_ascii_text_is_a_short_cut_to_the_same(text: str) -> None:
    slow = re.sub(r"[\W_]+", " ", text.casefold()).strip() or text.strip()
    assert normalise(text) == slow
