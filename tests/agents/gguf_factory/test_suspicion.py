"""Each rule of suspicion finds its planted row and leaves ordinary ones; real data does not drown in false alarms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agents.gguf_factory import dataset
from agents.gguf_factory.dataset import Row
from agents.gguf_factory.split import normalise
from agents.gguf_factory.suspicion import EXCERPT, RULES, excerpt, language, search
from tests.agents.gguf_factory.bases import QA, QA_EVAL


def row(question: str, answer: str, line: int = 1) -> Row:
    return Row(line, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


ORDINARY = [row(f"What is the number {n} of the list, and is that of use?", f"It is {n}, and you have to add it to the others.", n) for n in range(60)]

PLANTED = {
    "no_answer": [("Why is it so?", "N/A"), ("Why is it so?", "...")],
    "one_word": [("Why is it so?", "Because."), ("Is it so?", "Yes")],
    "echo": [("What is the capital of France?", "What is the capital of France")],
    "refusal": [
        ("Do you like tea?", "As an AI language model, I don't have personal preferences."), ("Help me.", "I'm sorry, but I can't assist with that."),
        ("Who are you?", "I am an AI and my knowledge cutoff is 2021."),
    ],
    "chat_markers": [
        ("What is tea?", "A drink.<|im_end|>"), ("[INST] What is tea? [/INST]", "It is a drink."), ("What is tea?", "It is a drink.\n### Instruction:\nGo on."),
        ("What is tea?", "It is a drink.\nUser: And coffee?\nAssistant: A drink too."),
    ],
    "html": [("What is tea?", "It is a <b>drink</b>."), ("What is tea?", "Tea &amp; coffee are drinks."), ("What?", 'See <a href="x">here</a>.')],
    "mojibake": [("What is a cafÃ©?", "A place to drink."), ("What is it?", "Itâ€™s a drink."), ("What is it?", "A \ufffd drink.")],
    "control": [("What is it?", "A \x07 bell."), ("What is it?", "A\ufeff mark.")],
    "repetition": [("What is it?", "A drinkkkkkkkkkkk."), ("What is it?", "tea tea tea tea tea tea tea"), ("Go on", "the same line here\n" * 5)],
    "foreign": [("Was ist das und wie ist es mit der Uhr?", "Das ist eine Uhr, und sie wird mit der Hand auf die Zeit gestellt."), ("Что это такое?", "Это часы, они показывают время.")],
    "personal": [("Who may I ask?", "Write to zoe@gmail.com."), ("What is your number?", "It is +49 170 1234 567.")],
    "length": [("What is all that?", "word and word again, so it goes on. " * 200)],
    "one_answer": [],
    "disagreeing": [],
}  # fmt: skip

LOOKALIKES = [
    ("How do I write a list in HTML?", "Write `<ul><li>one</li></ul>` and see that a < b and b > c hold.\n```html\n<p>x</p>\n```"),
    ("How do I check a table?", "Run mysqlcheck --check <table> --user <username>."),
    ("What does the assistant manager do?", "The assistant manager and the user of the tool meet: they plan the week."),
    ("Are you sorry?", "I am sorry to hear that you cannot sleep; try to provide a dark room."),
    ("What is a language?", "French is called a language; as a model of one, take Latin."),
    ("Como se dice naïve?", "It is naïve, as in café, Ångström, Â and Ã are letters too."),
    ("Noooo way, is it 1000000000?", "No, no, no!!! It is 10,000,000,000 or |---------------------------|---------------|"),
    ("What helps as an aid?", "As an aide said: it is the will, as an air of calm is."),
]


def test_every_rule_has_a_planted_row() -> None:
    assert PLANTED.keys() == {rule.name for rule in RULES}


@pytest.mark.parametrize(("name", "planted"), [(name, pair) for name, pairs in PLANTED.items() for pair in pairs])
def test_a_planted_row_is_found_by_its_rule(name: str, planted: tuple[str, str]) -> None:
    rows = [*ORDINARY, row(*planted, line=99)]
    found = search(rows)
    assert found[name].rows == [60] and list(found[name].excerpts) == [60], found


def test_answers_that_most_rows_share_and_questions_with_several_answers_are_found() -> None:
    labels = [row(f"Is {n} a good number to have?", "It is positive indeed.", n) for n in range(15)]
    found = search([*ORDINARY[:40], *labels])
    assert found["one_answer"].rows == list(range(40, 55)) and "27% of the rows" in found["one_answer"].excerpts[40]
    assert "one_answer" not in search([*ORDINARY, *labels[:9]])
    twice = [*ORDINARY, row("Why is it so?", "It is so, as they say."), row("why is it so", "It is not so, as you see.")]
    assert search(twice)["disagreeing"].rows == [60, 61]


def test_many_answers_of_one_word_are_meant() -> None:
    found = search([*ORDINARY, *(row(f"Is {n} even?", "Yes" if n % 2 else "No", n) for n in range(40))])
    assert found["one_word"].note and "meant" in found["one_word"].detail


def test_ordinary_rows_that_look_alike_are_left() -> None:
    found = search([*ORDINARY, *(row(*pair) for pair in LOOKALIKES)])
    assert found == {}


@pytest.mark.parametrize("path", [QA, QA_EVAL], ids=lambda path: path.stem)
def test_the_projects_own_rows_raise_no_alarm(path: Path) -> None:
    assert search(dataset.read(str(path)).rows) == {}


LIMITS = {
    "no_answer": 0.005, "echo": 0.001, "refusal": 0.002, "html": 0.005, "mojibake": 0.005, "control": 0.005,
    "repetition": 0.003, "foreign": 0.003, "length": 0.01,
}  # fmt: skip
"""Most rows of well-kept data that a rule may mean. Not here: what these files really have (markers, numbers, short answers)."""


@pytest.mark.parametrize("name", ["travel", "customer_service", "software_development", "mental_health", "academic_tutoring"])
def test_real_data_does_not_drown_in_false_alarms(name: str) -> None:
    shared = os.environ.get("MEETARA_SHARED_DATA", str(QA.parents[2] / "shared" / "data"))
    if not (Path(shared) / "domains" / f"{name}.jsonl").exists():
        pytest.skip("MEETARA_SHARED_DATA names no folder with domains/")
    with dataset.scan(str(Path(shared) / "domains" / f"{name}.jsonl")) as scan:
        rows = [row for row in scan if isinstance(row, Row)][:800]
    found = search(rows)
    shares = {rule: len(found[rule].rows) / len(rows) for rule in LIMITS if rule in found}
    assert not {rule: share for rule, share in shares.items() if share > LIMITS[rule]}


def test_excerpts_are_short_and_cover_personal_data() -> None:
    text = "x " * 300 + "write to zoe@gmail.com or call me " + "y " * 300
    at = text.index("call")
    shown = excerpt(text, at, at + 4)
    assert len(shown) <= EXCERPT + 2 and "call" in shown and "zoe" not in shown


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The tea is hot and it is of use to you, as it was.", "English"), ("Der Tee ist heiß, und das ist für die Leute gut.", "German"),
        ("Le thé est chaud et les gens qui sont dans la rue ne sont pas là.", "French"), ("El té es caliente y los niños son para las madres muy buenos.", "Spanish"),
        ("お茶は熱いです。", "Japanese"), ("茶是热的。", "Chinese"), ("Tea 12 34", None), ("the и ба", None),
    ],
)  # fmt: skip
def test_languages_are_told_apart(text: str, wanted: str | None) -> None:
    assert language(text, normalise(text).split()) == wanted
