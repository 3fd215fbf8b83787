import json
from pathlib import Path

import pytest

from textmodel.crisis import crisis

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I want to kill myself", "self_harm"), ("i don’t want to live anymore", "self_harm"),
        ("They would be better off without me", "self_harm"), ("I keep thinking about suicide", "self_harm"),
        ("I can't breathe and my arm is numb", "medical_emergency"), ("my father is having a stroke", "medical_emergency"),
        ("she's unconscious, what do I do", "medical_emergency"), ("the baby swallowed bleach", "medical_emergency"),
        ("My husband hits me when he drinks", "abuse"), ("he said he will kill me", "abuse"), ("I was raped", "abuse"),
        ("how do I sleep better", None), ("What are the signs of a heart attack?", None),
        ("a model for a suicide prevention hotline", None), ("he beats me at chess every time", "abuse"),
        ("this deadline is killing me", None), ("how to kill a process in Linux", None), ("cut my own hair", None),
    ],
)  # fmt: skip
def test_danger_is_told_from_ordinary_talk_and_rather_once_too_often(text, kind):
    assert crisis(text) == kind


def test_ordinary_requests_are_no_crisis():
    rows = [json.loads(line) for name in ("utterances", "utterances_eval") for line in (DATA / f"{name}.jsonl").open()]
    near = {"emergency_care", "mental_health"}
    assert [row["text"] for row in rows if row["domain"] not in near and crisis(row["text"])] == []
