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
    ids, supervised = chat.encode(tokenizer, TALK[:3])
    (sample,) = chat.samples(tokenizer, TALK[:3], len(ids) - 2)
    assert sample.truncated and sample.ids == ids[:-2] and sample.supervised == supervised[:-2]
    assert sample.ids[-1] != tokenizer.eos_token_id
    assert chat.samples(tokenizer, TALK, 5) == []


def learned(tokenizer: Any, sample: chat.Sample) -> str:
    return str(tokenizer.decode([token for token, mark in zip(sample.ids, sample.supervised, strict=True) if mark]))


def conversation(exchanges: int) -> list[dict[str, str]]:
    return [TALK[0]] + [
        turn for n in range(exchanges)
        for turn in ({"role": "user", "content": f"Ask {n}?"}, {"role": "assistant", "content": f"Say {n}."})
    ]  # fmt: skip


@pytest.mark.parametrize("length", [30, 40, 50, 64, 90, 128])
def test_a_long_conversation_is_cut_between_turns_and_each_answer_is_learned_once(tokenizer: Any, length: int) -> None:
    talk = conversation(9)
    found = chat.samples(tokenizer, talk, length)
    texts = [tokenizer.decode(sample.ids) for sample in found]
    assert "".join(learned(tokenizer, sample) for sample in found) == "".join(f"Say {n}.<|end|>" for n in range(9))
    assert all(len(sample.ids) <= length and sample.ids[-1] == tokenizer.eos_token_id for sample in found)
    assert all("Be brief." in text for text in texts), "each part begins with the system turn"
    assert sum(sample.answers for sample in found) == 9 and not any(sample.truncated for sample in found)
    assert [sample.continued for sample in found] == [False] + [True] * (len(found) - 1)


def test_a_part_has_the_exchange_before_as_context_where_that_fits(tokenizer: Any) -> None:
    first, second, *_ = chat.samples(tokenizer, conversation(9), 64)
    last = learned(tokenizer, first).split("<|end|>")[-2]
    assert last in tokenizer.decode(second.ids) and last not in learned(tokenizer, second)
    whole, _ = chat.encode(tokenizer, conversation(9))
    assert first.ids == whole[: len(first.ids)]


def test_only_the_exchange_that_is_too_long_loses_its_end(tokenizer: Any) -> None:
    talk = [*conversation(2), {"role": "user", "content": "Long?"}, {"role": "assistant", "content": "word " * 99}, *conversation(1)[1:]]
    found = chat.samples(tokenizer, talk, 60)
    assert [sample.truncated for sample in found] == [False, True, False]
    assert [sample.answers for sample in found] == [2, 1, 1]
    assert learned(tokenizer, found[1]).startswith("word word") and found[1].ids[-1] != tokenizer.eos_token_id
    full = [*conversation(1), {"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "No room."}]
    assert sum(sample.answers for sample in chat.samples(tokenizer, full, 60)) == 1, "the other is not learned, and counted"


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


def test_a_template_that_rewrites_history_leaves_out_the_oldest_turns_first() -> None:
    talk = conversation(4)[1:]
    found = chat.samples(Rewriting(), talk, 45)
    texts = ["".join(map(chr, sample.ids)) for sample in found]
    assert [text.startswith("U:Ask ") and "<t>Say " in text and len(text) <= 45 for text in texts] == [True] * 4
    assert texts[3].startswith("U:Ask 2?$\nA:Say 2.$\nU:Ask 3?$") and not any(sample.truncated for sample in found)


def test_a_template_without_eos_is_refused() -> None:
    endless = Rewriting()
    endless.eos_token_id = 1
    with pytest.raises(LabError, match="eos_token"):
        chat.samples(endless, TALK[1:3], 100)
