"""Chat rendering: only answers are learned, with the token that ends them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import base, chat
from agents.gguf_factory.light import LightTokenizer
from protocol import Code, LabError
from tests.agents.gguf_factory.bases import QA, STARTER, make_base

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello  there"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why? 日本 🙂\n\tx"},
    {"role": "assistant", "content": "Because."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat.load(STARTER)


def test_ids_are_those_of_the_whole_text_and_answers_are_marked_to_their_end(tokenizer: Any) -> None:
    ids, supervised = chat.encode(tokenizer, TALK)
    assert ids == tokenizer.encode(chat.render(tokenizer, TALK), add_special_tokens=False)
    learned = [token for token, mark in zip(ids, supervised, strict=True) if mark]
    assert tokenizer.decode(learned) == "Hi.<|end|>Because.<|end|>"
    assert len(ids) == len(supervised)


def test_a_cut_answer_learns_no_false_end(tokenizer: Any) -> None:
    ids, supervised = chat.encode(tokenizer, TALK)
    (sample,) = chat.samples(tokenizer, TALK, len(ids) - 2)
    assert sample.truncated and sample.ids == ids[:-2] and sample.supervised == supervised[:-2]
    assert sample.ids[-1] != tokenizer.eos_token_id
    assert chat.samples(tokenizer, TALK, 5) == []


def test_the_light_tokenizer_agrees_on_all_rows_of_the_projects_data(tokenizer: Any, tmp_path: Path) -> None:
    light = LightTokenizer(base.read(make_base(tmp_path / "base")))
    talks = [json.loads(line)["messages"] for line in QA.read_text().splitlines()] + [TALK]
    assert [chat.encode(light, talk) for talk in talks] == [chat.encode(tokenizer, talk) for talk in talks]
    assert light.size == 8192


class Rewriting:
    """A template that shows thinking in the last answer only, as Qwen3's does; one token per character."""

    eos_token_id: int | None = ord("$")

    def apply_chat_template(self, messages: Any, /, *, tokenize: bool = False, add_generation_prompt: bool = False) -> str:
        last = len(messages) - 1
        text = "".join(
            f"{'U' if turn['role'] == 'user' else 'A'}:{'<t>' if turn['role'] == 'assistant' and i == last else ''}"
            f"{turn['content']}$\n"
            for i, turn in enumerate(messages)
        )
        return text + ("A:" if add_generation_prompt else "")

    def encode(self, text: str, /, *, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) for letter in text]


def test_a_template_that_rewrites_history_gives_one_sample_per_answer() -> None:
    found = chat.samples(Rewriting(), TALK[1:], 1000)
    learned = ["".join(chr(i) for i, m in zip(s.ids, s.supervised, strict=True) if m) for s in found]
    assert learned == ["<t>Hi.$", "<t>Because.$"]
    assert "".join(map(chr, found[1].ids)).startswith("U:Hello  there$\nA:Hi.$\nU:")
    with pytest.raises(LabError) as caught:
        chat.encode(Rewriting(), TALK[1:])
    assert caught.value.code == Code.BAD_DATA and caught.value.data["field"] == "base"


def test_a_template_without_eos_is_refused() -> None:
    endless = Rewriting()
    endless.eos_token_id = 1
    with pytest.raises(LabError, match="eos_token"):
        chat.samples(endless, TALK[1:3], 100)
