"""Rows of every public form become the same messages, and what cannot be trained says why and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.gguf_factory.formats import RowError, known, messages

ASK = {"role": "user", "content": "What is tea?"}
SAY = {"role": "assistant", "content": "A drink."}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [{"role": "developer", "content": "Be brief."}, ASK, SAY]}, [SYSTEM, ASK, SAY]),
        ({"messages": [{"role": "system", "content": " "}, ASK, SAY]}, [ASK, SAY]),
        ({"messages": [{"from": "human", "value": "What is tea?"}, {"from": "gpt", "value": "A drink."}]}, [ASK, SAY]),
        ({"messages": json.dumps([ASK, SAY])}, [ASK, SAY]),
        ({"messages": [ASK, {**SAY, "tool_calls": None, "function_call": None, "weight": 1}]}, [ASK, SAY]),
        ({"conversations": [ASK, SAY], "system": "Be brief."}, [SYSTEM, ASK, SAY]),
        ({"conversations": [{"from": "HUMAN", "value": "What is tea?"}, {"from": "GPT", "value": "A drink."}]}, [ASK, SAY]),
        ({"conversation": [{"speaker": "user", "text": "What is tea?"}, {"speaker": "bot", "text": "A drink."}]}, [ASK, SAY]),
        ({"instruction": "What is tea?", "context": "", "response": "A drink."}, [ASK, SAY]),
        ({"instruction": "What is tea?", "input": None, "output": "A drink.", "history": [["Hi", "Hello."]]}, [*EARLIER, ASK, SAY]),
        ({"instruction": "What is tea?", "output": "A drink.", "system": "Be brief."}, [SYSTEM, ASK, SAY]),
        ({"prompt": [SYSTEM, ASK], "completion": [SAY]}, [SYSTEM, ASK, SAY]),
        ({"system_prompt": "Be brief.", "question": "What is tea?", "response": "A drink."}, [SYSTEM, ASK, SAY]),
        ({"messages": [*EARLIER, ASK, SAY, ASK]}, [*EARLIER, ASK, SAY]),
    ],
)  # fmt: skip
def test_variants_of_public_data_sets_are_understood(row: dict[str, Any], wanted: list[dict[str, str]]) -> None:
    assert messages(row)[1] == wanted


@pytest.mark.parametrize(
    ("row", "said", "advice"),
    [
        ({"text": "Tea is a drink."}, "only running text", "question"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference pair", "chosen answer"),
        ({"input": "q", "output": "a"}, "no instruction", "question and answer"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "tokenised already", "text"),
        ({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "messages[1] belongs to a call of a tool", "tools"),
        ({"messages": [ASK, SAY, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[2] belongs", "tools"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "call of a tool", "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}, SAY]},
         "messages[0].content[1] is a part of type image_url", "pictures"),
        ({"messages": [ASK, {**SAY, "weight": 0}]}, "messages[1].weight is 0", "weight"),
        ({"messages": "[{'role': 'user'}]"}, "text that is not JSON", "JSON"),
        ({"messages": [SAY, ASK, SAY]}, "turn 1 is by assistant", ""),
        ({"messages": [ASK, SAY, SYSTEM]}, "system turn that is not the first", ""),
        ({"instruction": "q", "output": "a", "history": [["only one"]]}, "history[0] is not a pair", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_says_why_and_what_to_do(row: dict[str, Any], said: str, advice: str) -> None:
    with pytest.raises(RowError) as caught:
        messages(row)
    assert said in caught.value.reason and advice in caught.value.advice


def test_forms_are_known_by_their_fields_in_any_order_and_company() -> None:
    form = known(["id", "answer", "question"])
    assert form is not None and form.name == "question and answer"
    assert known(["question"]) is None
