"""What a person sees of a running job."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

from rich.console import Console

from meetara import show
from meetara.screens import live, result
from protocol import JobSnapshot, Progress, State
from protocol.job import Artefact, Gate, Stage

AT = datetime(2026, 1, 1, tzinfo=UTC)


def snapshot(state: State, stage: Stage | None = None, **fields) -> JobSnapshot:
    known = {
        "attempt": 1, "domain": "sleep", "tier": "starter", "profile": "edge", "cost_usd": None,
        "quality_percent": None, "artefacts": [], "gates": {},
    }  # fmt: skip
    return JobSnapshot(job="one", state=state, stage=stage, at=AT, **{**known, **fields})


def progress(stage: Stage, **fields) -> Progress:
    return Progress(job="one", stage=stage, at=AT, **{"attempt": 1, **fields})


def text(renderable) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


def test_finished_stages_are_checked_and_the_running_one_shows_its_numbers():
    view = live.View("one")
    view.take(snapshot(State.TRAINING, Stage.TRAIN))
    view.take(progress(Stage.TRAIN, step=10, steps=40, loss=2.5, tokens_per_s=812.4, eta_s=90.0, cost_usd=0.0))
    assert [mark for _, mark in view.marks()][:4] == ["done", "done", "runs", "waits"]
    assert view.share == 0.25
    shown = text(view)
    for part in ("step 10/40", "loss 2.500", "812 tokens/s", "1 min 30 s left", "cost $0.00", "✓ data"):
        assert part in shown


def test_progress_of_an_earlier_attempt_or_stage_is_not_shown():
    view = live.View("one")
    view.take(progress(Stage.TRAIN, step=30, steps=40))
    view.take(snapshot(State.TRAINING, Stage.TRAIN, attempt=2))
    assert view.facts() == []
    view.take(progress(Stage.TRAIN, step=30, steps=40))
    assert view.facts() == [], "a straggler of attempt 1"
    view.take(progress(Stage.TRAIN, step=5, steps=40, attempt=2))
    view.take(snapshot(State.EXPORTING, Stage.MERGE, attempt=2))
    assert view.facts() == [] and view.share is None


def test_a_failed_stage_is_marked():
    view = live.View("one")
    view.take(snapshot(State.FAILED, Stage.CONVERT))
    assert dict(view.marks())[Stage.CONVERT] == "failed"
    assert dict(view.marks())[Stage.QUANTISE] == "waits"


def test_plain_lines_tell_changes_and_tenths_only():
    console = Console(file=StringIO(), width=200)
    view, lines = live.View("one"), live.Lines(console)
    view.take(snapshot(State.TRAINING, Stage.TRAIN))
    for step in range(1, 101):
        view.take(progress(Stage.TRAIN, step=step, steps=100, loss=1.0))
        lines.show(view)
    written = console.file.getvalue().splitlines()
    assert len(written) == 11, "one for the stage, ten for its tenths"
    assert "step 100/100" in written[-1]


def test_what_was_not_measured_is_said_so():
    rows = dict(result.rows(snapshot(State.DONE)))
    assert rows["bits per weight"] == rows["quality"] == rows["load"] == rows["cost"] == show.MISSING
    gate = Gate(value=None, threshold=50.0, ok=None)
    assert result.verdict(gate) == show.MISSING


def test_the_result_shows_file_numbers_gates_and_answers():
    final = snapshot(
        State.DONE, quality_percent=112.34, cost_usd=0.0,
        artefacts=[Artefact(kind="gguf", uri="file:///home/a/model.gguf", sha256="ab", bytes=8123456)],
        gates={
            "quality_percent": Gate(value=112.34, threshold=101.0, ok=True),
            "load_ms": Gate(value=61.0, threshold=50.0, ok=False, level="warn"),
            "private_mb": Gate(value=9.6, threshold=12.0, ok=True),
        },
        results={
            "bits_per_weight": 5.01, "generation_tokens_per_s": 402.0,
            "tokens_per_s": 1510.0, "seconds": 150.0, "seconds_total": 200.0,
            "answers": [{"question": "How do I plan?", "base": "I [am] a cat.", "tuned": "List your tasks."}],
        },
    )  # fmt: skip
    shown = text(result.screen(final))
    for part in (
        "/home/a/model.gguf", "8,123,456", "5.01", "112.3 %", "61.0 ms", "9.6 MB", "402 tokens/s", "1,510 tokens/s",
        "3 min 20 s", "$0.00", "passed", "warning", "How do I plan?", "I [am] a cat.", "List your tasks.",
    ):  # fmt: skip
        assert part in shown, part


def test_an_artefact_that_is_gone_is_noticed_where_the_store_is_on_this_machine(tmp_path):
    file = tmp_path / "home" / "artefacts" / "ab" / "a model.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    remote = Artefact(kind="card", uri="file:///nowhere/artefacts/ab/README.md", sha256="ab", bytes=1)
    final = snapshot(State.DONE, artefacts=[Artefact(kind="gguf", uri=file.as_uri(), sha256="ab", bytes=4), remote])
    assert result.missing(final) == []
    file.unlink()
    assert result.missing(final) == [file.as_uri()]


def test_sizes_times_and_money_keep_their_meaning():
    assert [show.size(8_123_456), show.size(999), show.size(None)] == ["8.12 MB", "999 B", show.MISSING]
    assert [show.duration(59.94), show.duration(200), show.duration(7500)] == ["59.9 s", "3 min 20 s", "2 h 5 min"]
    assert [show.dollars(0), show.dollars(0.000123), show.micros(1_500_000)] == ["$0.00", "$0.000123", "$1.50"]


def test_a_result_from_the_cache_names_its_maker() -> None:
    told = dict(result.rows(snapshot(State.DONE, cached_from="sleep-1")))
    assert "the job sleep-1" in told["made by"] and "nothing was trained" in told["made by"]
    assert "made by" not in dict(result.rows(snapshot(State.DONE)))
