"""The example utterances cover every shipped domain, and none of those held out is known from training."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import configs
from configs import Settings

DATA = Path(__file__).resolve().parents[2] / "data"
RUN_WORDS = 5
"""An utterance that shares so many words in a row with a training one is no longer another person's wording."""


def read(name: str) -> list[tuple[str | None, str]]:
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"domain", "text"} and row["text"].strip() for row in rows)
    return [(row["domain"], row["text"]) for row in rows]


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold())) or (text,)


def runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {found[start : start + RUN_WORDS] for start in range(len(found) - RUN_WORDS + 1)}


TRAINING, HELD_OUT = "utterances.jsonl", "utterances_eval.jsonl"


@pytest.mark.parametrize(("name", "fewest"), [(TRAINING, 10), (HELD_OUT, 5)])
def test_every_shipped_domain_has_enough_utterances_and_no_other_is_named(name, fewest):
    counts = Counter(domain for domain, _ in read(name) if domain is not None)
    assert set(counts) == set(configs.load(Settings.read()).domains)
    assert {domain: count for domain, count in counts.items() if count < fewest} == {}


def test_only_held_out_utterances_may_belong_to_no_domain():
    assert all(domain is not None for domain, _ in read(TRAINING))
    assert sum(domain is None for domain, _ in read(HELD_OUT)) >= 100


def test_no_utterance_stands_twice_even_with_other_case_marks_or_order():
    counts = Counter(tuple(sorted(words(text))) for name in (TRAINING, HELD_OUT) for _, text in read(name))
    assert [" ".join(key) for key, count in counts.items() if count > 1] == []


def test_no_held_out_utterance_shares_five_words_in_a_row_with_its_domains_training():
    known: dict[str | None, set[tuple[str, ...]]] = {}
    for domain, text in read(TRAINING):
        known.setdefault(domain, set()).update(runs(text))
    assert [text for domain, text in read(HELD_OUT) if runs(text) & known.get(domain, set())] == []


def test_every_domain_has_one_line_on_what_belongs_to_it():
    lines = re.findall(r"^- (\w+): \S", (DATA / "domains.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(lines) == sorted(configs.load(Settings.read()).domains)
