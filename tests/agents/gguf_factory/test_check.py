"""`data check`: one report of what is in a file, what is wrong with it, and what a job would take."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import check, plan
from configs import Settings
from protocol import Code, LabError
from protocol.datacheck import DataReport, Finding
from protocol.job import PlanRequest, Route, TrainRequest
from tests.agents.gguf_factory.bases import QA, QA_EVAL, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETARA_HOME", str(tmp_path_factory.getbasetemp() / "check-home"))  # one probe of the machine for all


def report(path: Path, base: Path, eval_data: Path | None = None, **options: Any) -> DataReport:
    return check.check(
        str(path), None if eval_data is None else str(eval_data), settings=Settings.read(), tier="starter", base=str(base), **options
    )


def written(path: Path, rows: list[dict[str, Any]], *raw: str) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "".join(line + "\n" for line in raw), encoding="utf-8")
    return path


def rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is the number {n} of them?", "answer": f"Number {n} is {n * n} things that you have to count."} for n in range(count)]


def finding(found: DataReport, name: str) -> Finding:
    return next(finding for finding in found.findings if finding.name == name)


def test_a_good_file_is_good_and_the_prediction_is_the_plans(base: Path) -> None:
    found = report(QA, base)
    assert found.verdict == "good" and not found.problems and not found.unknown
    assert found.tokens is not None and found.data.rows == 318 == sum(one.rows for one in found.tokens.row.bins)
    assert found.turns is not None and found.turns.several == 24 and found.turns.system == 25
    route = Route(domain="check", category="c", tier="starter", base=str(base), voice="", empathy="", quality_floor=0, safety_critical=False)
    planned = plan.plan(PlanRequest(job="j", request=TrainRequest(text="t", dataset=str(QA)), route=route), Settings.read().home)
    assert found.prediction is not None and found.division is not None
    assert (found.prediction.steps, found.prediction.tokens, found.prediction.file_bytes) == (planned.steps, planned.tokens, planned.file_bytes)
    assert (found.prediction.seconds_p50, found.prediction.seconds_p90) == (planned.seconds_p50, planned.seconds_p90)
    assert found.prediction.usd_p50 == found.prediction.usd_p90 == 0
    assert (found.division.train, found.division.held_out) == (planned.rows, planned.held_out_rows)
    assert found.tokens.total >= planned.tokens and found.tokens.sequence_length == planned.parameters["sequence_length"]


def test_a_price_of_this_machine_makes_money_of_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETARA_LOCAL_USD_PER_HOUR", "3.6")
    found = report(QA, base).prediction
    assert found is not None and found.usd_p50 == pytest.approx(found.seconds_p50 / 1000)


def test_bad_rows_are_grouped_by_reason_and_make_it_unusable(tmp_path: Path, base: Path) -> None:
    path = written(tmp_path / "rows.jsonl", rows(40), "{cut", '{"question": "q"}', "", '{"question": "q"}', '{"text": "x"}')
    found = report(path, base)
    assert found.verdict == "unusable" and found.data.rows == 40 and found.data.bad_rows == 4
    assert [(bad.rows, bad.lines) for bad in found.data.bad] == [(2, [42, 44]), (1, [41]), (1, [45])]
    assert found.problems[0].data["bad_rows"] == 4
    assert found.tokens is not None and found.division is not None, "the rest is reported all the same"


def test_duplicates_are_counted_exact_and_near(tmp_path: Path, base: Path) -> None:
    words = " ".join(f"thing{n}" for n in range(40))
    path = written(tmp_path / "rows.jsonl", [
        *rows(30), {"question": "What is all of it, please?", "answer": words}, {"question": "What is all of it, please?", "answer": f"{words}  "},
        {"question": "What is all of it, please?", "answer": words + " and more"},
    ])  # fmt: skip
    found = report(path, base)
    assert found.data.duplicates == 1 and found.near_duplicates == 1
    assert [example.line for example in finding(found, "near_duplicates").examples] == [33]
    assert "as line 31" in finding(found, "near_duplicates").examples[0].text


def test_leaks_between_training_and_evaluation_are_told_by_line(tmp_path: Path, base: Path) -> None:
    run = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = written(tmp_path / "train.jsonl", [*rows(40), {"question": "How does one count?", "answer": f"Say {run}."}])
    held = [{"question": f"How is it with {n} of those?", "answer": f"It is {n} in all of the cases that are known."} for n in range(20)]
    held += [{"question": "What is counting?", "answer": f"It is {run}!"}, rows(4)[3]]
    found = report(train, base, written(tmp_path / "eval.jsonl", held))
    assert found.division is not None and found.division.given and found.division.withheld == 1
    assert found.division.overlap == pytest.approx(1 / 22)
    assert [(leak.eval_line, leak.train_line) for leak in found.division.leaks] == [(21, 41)]
    assert finding(found, "withheld").level == finding(found, "overlap").level == "warning" and found.verdict == "warnings"


def test_the_projects_own_halves_do_not_leak(base: Path) -> None:
    found = report(QA, base, QA_EVAL)
    assert found.verdict == "good" and found.division is not None and found.division.overlap == 0


def test_cut_answers_are_counted(tmp_path: Path, base: Path) -> None:
    long = [{"question": f"Tell me {n}?", "answer": "word " * 100} for n in range(4)]
    found = report(written(tmp_path / "rows.jsonl", [*rows(40), *long]), base, parameters={"sequence_length": 48})
    assert found.tokens is not None and (found.tokens.cut_rows, found.tokens.truncated, found.tokens.skipped) == (4, 4, 0)
    assert "4 answers lose their end" in finding(found, "cut").detail and finding(found, "cut").level == "warning"


def test_a_base_that_is_not_here_leaves_tokens_and_time_null_with_the_reason(tmp_path: Path) -> None:
    found = report(QA, tmp_path / "none")
    assert found.verdict == "good" and found.tokens is None and found.prediction is None and found.division is not None
    assert found.unknown[0].code == Code.NOT_FOUND and "none" in found.unknown[0].message


def test_too_few_rows_and_chat_markers_of_the_base_are_problems(tmp_path: Path, base: Path) -> None:
    few = report(written(tmp_path / "few.jsonl", rows(5)), base)
    assert few.verdict == "unusable" and "at least 25" in few.problems[0].message
    marked = report(written(tmp_path / "marked.jsonl", [*rows(40), {"question": "Is it so, then?", "answer": "Yes, it is.<|end|>"}]), base)
    assert marked.verdict == "unusable" and "chat markers" in marked.problems[0].message and marked.problems[0].data["line"] == 41
    assert finding(marked, "chat_markers").rows == 1


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, base: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(QA.read_bytes())[:-20])
    with pytest.raises(LabError, match="in the middle of its compressed data"):
        report(tmp_path / "rows.jsonl.gz", base)
