"""The data stage on the project's own rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from agents.gguf_factory import chat, data
from agents.gguf_factory.dataset import Row
from protocol import Code, LabError
from tests.agents.gguf_factory.bases import QA, make_base
from tests.agents.gguf_factory.runs import make_job


def test_the_stage_writes_what_it_counts(tmp_path: Path) -> None:
    job = make_job(tmp_path / "home", make_base(tmp_path / "base"))
    job.path("data").mkdir()
    result = data.run(job)
    assert [file.name for file in result.files] == [
        "train.jsonl", "held_out.jsonl", "packed.safetensors", "control.safetensors", "held_out.safetensors",
    ]  # fmt: skip
    numbers = result.results
    assert numbers["tokens"] == job.run.plan.tokens, "the plan's light count is exact"
    assert numbers["rows"] == len(job.path("data", "train.jsonl").read_text().splitlines()) == job.run.plan.rows
    assert numbers["fill"] > 0.9 and 0 <= numbers["overlap"] <= 1
    packed, control = (load_file(str(job.path("data", f"{name}.safetensors"))) for name in ("packed", "control"))
    assert packed["input_ids"].shape == (numbers["packed_rows"], job.parameters["sequence_length"])
    assert (packed["labels"] != -100).sum() == numbers["supervised_tokens"] == numbers["control_supervised_tokens"]
    assert control["input_ids"].tolist() != packed["input_ids"].tolist()
    tokenizer = chat.load(job.base)
    first = packed["input_ids"][0].tolist()
    assert tokenizer.decode(first).startswith("<s><|user|>")


def test_no_row_keeps_its_answer_in_the_control() -> None:
    rows = [Row(n, [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]) for n in range(50)]
    mixed = data.shuffled(rows, 1)
    assert [row.question for row in mixed] == [row.question for row in rows]
    assert sorted(row.answer for row in mixed) == sorted(row.answer for row in rows)
    assert all(old.answer != new.answer for old, new in zip(rows, mixed, strict=True))
    assert mixed == data.shuffled(rows, 1) != data.shuffled(rows, 2)


def test_overlap_counts_held_out_rows_with_a_long_run_of_training_words() -> None:
    words = [f"w{n}" for n in range(30)]

    def row(answer: str) -> Row:
        return Row(1, [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])

    train = [row(" ".join(words))]
    held_out = [row("x " + ", ".join(words[5:18]).upper()), row(" ".join(words[5:17])), row("short")]
    assert data.overlap(train, held_out) == pytest.approx(1 / 3)


TEXTS = st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join), min_size=1, max_size=6)


@given(TEXTS, TEXTS)
def test_overlap_is_what_comparing_all_runs_gives(train: list[str], held_out: list[str]) -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}

    def row(text: str) -> Row:
        return Row(1, [{"role": "user", "content": "e f"}, {"role": "assistant", "content": text}])

    known = set().union(*map(runs, train))
    expected = {number for number, text in enumerate(held_out) if runs(text) & known}
    assert data.overlapping(map(row, train), list(map(row, held_out)), 3).keys() == expected


def test_a_data_set_changed_after_planning_is_refused(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(QA.read_text())
    job = make_job(tmp_path / "home", make_base(tmp_path / "base"), dataset=str(rows))
    rows.write_text(rows.read_text() + json.dumps({"question": "new", "answer": "new"}) + "\n")
    with pytest.raises(LabError) as caught:
        data.run(job)
    assert caught.value.code == Code.BAD_DATA and "changed" in caught.value.message
    assert caught.value.data["field"] == "dataset"


def test_questions_longer_than_the_length_are_refused_with_the_cure(tmp_path: Path) -> None:
    rows = [{"question": f"{n} " + "very " * 60, "answer": "a"} for n in range(40)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LabError) as caught:
        make_job(
            tmp_path / "home", make_base(tmp_path / "base"), dataset=str(tmp_path / "r.jsonl"),
            parameters={"sequence_length": 32},
        )  # fmt: skip
    assert caught.value.data["field"] == "parameters.sequence_length"
