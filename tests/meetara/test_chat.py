"""`meetara chat`: which file is meant, what a conversation holds, and the process behind it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from agents.gguf_factory import convert
from agents.gguf_factory.doctor import STARTER, write_tiny
from meetara import models
from meetara.screens import chat
from meetara.screens.chat import Conversation
from meetara.talk import talking
from protocol import Code, LabError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in a folder with a space and an umlaut in its name."""
    root = tmp_path_factory.mktemp("chat")
    write_tiny(root / "base", STARTER)
    made = convert.convert_base(root / "base", root / "home")
    placed = root / "schöne Modelle" / "my model.gguf"
    placed.parent.mkdir()
    made.rename(placed)
    return placed


def publish(home: Path, digest: str, domain: str, job: str, at: float) -> Path:
    folder = home / "artefacts" / digest
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"x")
    paper = folder / "manifest.json"
    paper.write_text(json.dumps({"file": {"name": "m.gguf"}, "domain": domain, "job": job}))
    os.utime(paper, (at, at))
    return folder / "m.gguf"


def test_a_name_is_a_file_else_the_newest_model_of_a_domain_else_a_job(tmp_path: Path) -> None:
    old = publish(tmp_path, "aa", "sleep", "sleep-1", 100)
    new = publish(tmp_path, "bb", "sleep", "sleep-2", 200)
    publish(tmp_path, "cc", "music", "music-1", 300)
    (tmp_path / "artefacts" / "dd").mkdir()
    (tmp_path / "artefacts" / "dd" / "manifest.json").write_text("{cut")
    assert models.find("sleep", tmp_path) == new
    assert models.find("sleep-1", tmp_path) == old
    assert models.find(str(old), tmp_path) == old
    new.unlink()
    assert models.find("sleep", tmp_path) == old, "a deleted file is no model"


@pytest.mark.parametrize(
    ("name", "told"), [("cooking", "Models there: sleep."), ("gone.gguf", "there is no file"), ("a/b", "there is no file")]
)
def test_an_unknown_name_says_what_there_is(tmp_path: Path, name: str, told: str) -> None:
    publish(tmp_path, "aa", "sleep", "sleep-1", 100)
    with pytest.raises(LabError, match=told) as caught:
        models.find(name, tmp_path)
    assert caught.value.code is Code.NOT_FOUND


async def test_answers_stream_in_pieces_and_the_conversation_remembers_them(file: Path) -> None:
    conversation = Conversation(system="Be kind.", seed=3, max_tokens=12)
    async with talking(file) as talk:
        *said, end = [piece async for piece in conversation.ask(talk, "Why?")]
        assert end["finish_reason"] in ("length", "stop") and end["tokens"] == 12
        assert conversation.turns == [
            {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "".join(map(str, said))},
        ]  # fmt: skip
        assert [turn["role"] for turn in conversation.messages("And?")] == ["system", "user", "assistant", "user"]
        again = [piece async for piece in Conversation(system="Be kind.", seed=3, max_tokens=12).ask(talk, "Why?")]
        assert again[:-1] == said, "the same seed draws the same answer"


async def test_an_answer_can_be_interrupted_and_the_next_question_is_answered(file: Path) -> None:
    async with talking(file) as talk:
        pieces = talk.answer([{"role": "user", "content": "Go on."}], max_tokens=10_000)
        await anext(pieces)
        talk.interrupt()
        last = [piece async for piece in pieces][-1]
        assert isinstance(last, dict) and last["finish_reason"] in ("interrupted", "length")
        assert isinstance([p async for p in talk.answer([{"role": "user", "content": "x"}], max_tokens=2)][-1], dict)


async def test_a_file_that_is_no_adapter_is_refused_and_the_conversation_goes_on(file: Path) -> None:
    async with talking(file) as talk:
        assert talk.ready["adapter"] is None
        with pytest.raises(LabError, match="got: model") as caught:
            await talk.switch(file)
        assert caught.value.code is Code.BAD_DATA
        assert (await talk.switch(None))["load_ms"] > 0 and talk.ready["adapter"] is None
        assert isinstance([p async for p in talk.answer([{"role": "user", "content": "x"}], max_tokens=2)][-1], dict)


async def test_a_model_process_that_dies_is_an_error_not_a_silence(file: Path) -> None:
    async with talking(file) as talk:
        talk._process.kill()
        with pytest.raises(LabError, match="killed by signal 9"):
            async with asyncio.timeout(30):
                [piece async for piece in talk.answer([{"role": "user", "content": "x"}])]


async def test_one_question_is_one_json_document(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(seed=1, max_tokens=5)
    assert await chat.chat({}, str(file), conversation, ask="Why?", as_json=True, console=Console()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == "Why?" and told["tokens"] == 5 and told["answer"]
