"""The one rule of what is trained on and what is evaluated: the same question never lies on both sides."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agents.gguf_factory.dataset import Row
from protocol import Code, LabError

SHARE = 0.08  # of the questions; a perplexity over 8 % of 2,000 rows has a standard error of about 1 %
LEAST, MOST = 8, 200  # fewer rows measure noise, more only cost time in validation
TOO_FEW = 24  # rows in all; below, either side would be an anecdote
TELLING_WORDS = 5  # an answer shorter than this ("Yes.") may be right twice without being the same lesson

_SEPARATORS = re.compile(r"[\W_]+")
_ASCII_SEPARATORS = {code: " " for code in range(128) if not chr(code).isalnum()}


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows to measure by. `withheld` training rows were removed for standing in both."""

    train: list[Row]
    held_out: list[Row]
    withheld: int = 0
    unused: int = 0


def normalise(text: str) -> str:
    """Fold case, punctuation and white space, by which a repeated question may differ."""
    if text.isascii():  # as most text is; the pattern takes five times as long
        plain = " ".join(text.lower().translate(_ASCII_SEPARATORS).split())
    else:
        plain = _SEPARATORS.sub(" ", text.casefold()).strip()
    return plain or text.strip()


def fraction(question: str) -> float:
    """Return the question's fixed place in [0, 1), from sha256 of its normalised text."""
    return _place(normalise(question))


def _place(normalised: str) -> float:
    return int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:7], "big") / 2**56


def split(rows: Sequence[Row], place: str = "") -> Split:
    """Divide rows by the hash of their question; the same rows always divide alike, in any order.

    Raises:
        LabError: BAD_DATA, too few rows or too few different questions.
    """
    if len(rows) <= TOO_FEW:
        raise _few(place, len(rows), TOO_FEW + 1)
    questions = [normalise(row.question) for row in rows]
    groups = Counter(questions)
    order = sorted((_place(question), question) for question in groups)
    wanted = min(max(sum(groups[question] for place, question in order if place < SHARE), LEAST), MOST)
    held: set[str] = set()
    count = 0
    for _, question in order:
        if count >= wanted:
            break
        if count + groups[question] <= min(MOST, len(rows) // 2):
            held.add(question)
            count += groups[question]
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, question in zip(rows, questions, strict=True):
        sides[question in held].append(row)
    return _apart(*sides, place, unused=0)


def apart(train: Sequence[Row], held_out: Sequence[Row], place: str = "") -> Split:
    """Take a given evaluation set: at most MOST of its rows, and no training row that also stands in it.

    Raises:
        LabError: BAD_DATA, too few rows are left on one side.
    """
    chosen = sorted(held_out, key=lambda row: fraction(row.question))[:MOST]
    lines = {id(row) for row in chosen}
    kept = [row for row in held_out if id(row) in lines]
    if len(kept) < LEAST:
        raise LabError(
            Code.BAD_DATA, f"The evaluation set has {len(kept)} different rows; at least {LEAST} are needed.",
            advice="Add rows to it, or leave eval_dataset out to have a part of the data set held out.",
            field="eval_dataset",
        )  # fmt: skip
    return _apart(train, kept, place, unused=len(held_out) - len(kept), against=held_out)


def _apart(
    train: Sequence[Row], held_out: list[Row], place: str, *, unused: int, against: Sequence[Row] | None = None
) -> Split:
    measured = held_out if against is None else against
    questions = {normalise(turn["content"]) for row in measured for turn in row.messages if turn["role"] == "user"}
    answers = {text for row in measured for text in _answers(row)}
    kept = [
        row for row in train
        if normalise(row.question) not in questions and answers.isdisjoint(_answers(row))
    ]  # fmt: skip
    if len(kept) <= TOO_FEW - LEAST or len(held_out) < LEAST:
        raise _few(place, len(kept) + len(held_out), TOO_FEW + 1, different=True)
    return Split(kept, held_out, len(train) - len(kept), unused)


def _answers(row: Row) -> list[str]:
    texts = [normalise(turn["content"]) for turn in row.messages if turn["role"] == "assistant"]
    return [text for text in texts if text.count(" ") >= TELLING_WORDS - 1]


def _few(place: str, found: int, needed: int, *, different: bool = False) -> LabError:
    what = "rows with different questions and answers" if different else "rows"
    return LabError(
        Code.BAD_DATA,
        f"The data set {place} has {found} {what}; at least {needed} are needed to hold out {LEAST} of them.",
        advice="Add rows. Repeated questions and answers count once.",
        field="dataset", file=place, rows=found, needed=needed,
    )  # fmt: skip
