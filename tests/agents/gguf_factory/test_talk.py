"""A conversation with a file: what is read, what is left out, how an answer ends."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.gguf_factory import adapter, convert, llama, quantise, shared_base, talk
from agents.gguf_factory.generation import generate
from agents.gguf_factory.job import Job
from agents.gguf_factory.llama import Model
from agents.gguf_factory.talk import Question, Turn
from protocol import Code, LabError
from tests.agents.gguf_factory import adapters
from tests.agents.gguf_factory.exports import ROWS


@pytest.fixture
def model(exported: Job) -> Iterator[Model]:
    with llama.load(exported.path("convert", convert.FILE), n_ctx=256) as loaded:
        yield loaded


def say(model: Model, messages: list[dict[str, str]], stop: list[bool] | None = None, **how: object) -> tuple[str, dict]:
    out = io.StringIO()
    question = Question.model_validate({"messages": messages, **how})
    assert model.chat_template is not None
    talk.answer(model, model.chat_template, question, out, [] if stop is None else stop)
    *pieces, last = [json.loads(line) for line in out.getvalue().splitlines()]
    return "".join(piece["text"] for piece in pieces), last["end"]


def test_an_answer_streams_the_tokens_that_generate_draws_and_ends_itself(model: Model) -> None:
    text, end = say(model, ROWS[7][:1], seed=7, max_tokens=40)
    assert text == ROWS[7][1]["content"]
    assert (end["finish_reason"], end["dropped_turns"]) == ("stop", 0)
    ids = model.tokenize(talk.render(str(model.chat_template), model, ROWS[7][:1], prompt=True))
    assert end["tokens"] == len(generate(model, ids, seed=7, max_tokens=40).ids)


def test_a_limit_and_an_interruption_are_told_apart(model: Model) -> None:
    assert say(model, ROWS[7][:1], seed=7, max_tokens=2)[1]["finish_reason"] == "length"

    class Pressed(list):  # SIGINT sets the flag after the answer has begun
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked > 2

    text, end = say(model, ROWS[7][:1], Pressed(), seed=7, max_tokens=40)
    assert end["finish_reason"] == "interrupted" and end["tokens"] == 2 and ROWS[7][1]["content"].startswith(text)


def test_old_turns_are_left_out_but_never_the_system_turn_or_the_question(model: Model) -> None:
    system = Turn(role="system", content="Be short.")
    turns = [system]
    for number in range(30):
        turns += [Turn(role="user", content=f"question {number}"), Turn(role="assistant", content=f"answer {number}")]
    turns.append(Turn(role="user", content="the last question"))
    ids, dropped = talk.fit(model, str(model.chat_template), turns, 120)
    text = model.text(ids)
    assert len(ids) <= 120 and dropped and dropped % 2 == 0
    assert "Be short." in text and "the last question" in text and "question 0" not in text
    assert f"question {dropped // 2}" in text, "no more is left out than must be"


def test_a_question_that_is_too_long_says_how_long_it_is(model: Model) -> None:
    with pytest.raises(LabError, match=r"tokens, more than the 50 that fit") as caught:
        talk.fit(model, str(model.chat_template), [Turn(role="user", content="word " * 200)], 50)
    assert caught.value.code is Code.INVALID_PARAMS


def test_wrong_lines_are_answered_and_the_next_one_is_served(exported: Job) -> None:
    good = json.dumps({"messages": ROWS[7][:1], "seed": 7, "max_tokens": 40})
    questions = io.StringIO('{"messages": []}\nnonsense\n' + good + "\n")
    out = io.StringIO()
    assert talk.serve(exported.path("quantise", quantise.file_name(exported)), questions, out) == 0
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert found[0]["ready"]["context"] > 0
    assert [line["error"]["code"] for line in found[1:3]] == [Code.INVALID_PARAMS] * 2
    assert "end" in found[-1]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for name, content, code in (("a.gguf", b"no model", Code.TOOLCHAIN), ("missing.gguf", None, Code.NOT_FOUND)):
        out = io.StringIO()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert talk.serve(tmp_path / name, io.StringIO(), out) == 1
        assert json.loads(out.getvalue())["error"]["code"] == code


def lines(file: Path, *asked: object, **where: Path) -> list[dict]:
    out = io.StringIO()
    talk.serve(file, io.StringIO("".join(json.dumps(item) + "\n" for item in asked)), out, **where)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def said(found: list[dict]) -> list[str]:
    """Return the answers among lines, one text each."""
    answers = [""]
    for line in found:
        answers[-1] += line.get("text", "")
        answers += [""] if "end" in line else []
    return answers[:-1]


def test_an_adapter_finds_its_base_in_the_home_and_others_are_loaded_into_the_living_process(
    adapted: Job, exported: Job, tmp_path: Path
) -> None:
    file = adapted.path("convert", adapter.file_name(adapted))
    other = adapters.negated(file, adapted.path("train", "adapter"), tmp_path / "other")
    ask = {"messages": ROWS[0][:1], "temperature": 0, "max_tokens": 30}
    model = exported.path("quantise", quantise.file_name(exported))
    found = lines(
        file, ask, {"adapter": str(other)}, ask, {"adapter": str(model)}, ask, {"adapter": None}, ask, {"adapter": str(file)},
        ask, home=adapted.home,
    )  # fmt: skip
    ready = found[0]["ready"]
    assert ready["file"] == str(shared_base.of_job(adapted)[0]) and ready["adapter"]["file"] == str(file)
    loaded = [line["adapter"] for line in found if "adapter" in line]
    assert [item["file"] for item in loaded] == [str(other), None, str(file)]
    assert all(item["load_ms"] > 0 for item in [ready["adapter"], *loaded])
    [error] = [line["error"] for line in found if "error" in line]
    assert error["code"] == Code.BAD_DATA and str(model) in error["message"]
    first, negated, after_error, alone, again = said(found)
    assert first == again and negated == after_error, "what cannot be loaded leaves the adapter that is in use"
    assert len({first, negated, alone}) == 3
    base = lines(shared_base.of_job(adapted)[0], ask)
    assert base[0]["ready"]["adapter"] is None and said(base) == [alone]


def test_an_adapter_without_its_base_names_the_base(adapted: Job, tmp_path: Path) -> None:
    file = adapted.path("convert", adapter.file_name(adapted))
    for where in ({}, {"home": tmp_path}):
        [line] = lines(file, **where)
        assert line["error"]["code"] == Code.NOT_FOUND and "its base model is not" in line["error"]["message"]
        assert "--base" in line["error"]["message"]
    base = shared_base.of_job(adapted)[0]
    assert "ready" in lines(file, base=base)[0]
