"""`meetara worker` at a terminal and in a pipe: what a person reads, and what is refused before anything starts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bus import workers
from meetara.cli import app
from meetara.screens.worker import View

DEVICE = {"cores": 4, "memory_bytes": 16e9, "disk_free_bytes": 50e9, "gpu": "", "gpu_memory_bytes": 0}
STARTED = {"kind": "worker", "worker": "worker-r1", "provider": "vast", "lab": "lab", "broker": "mqtts://b:8883", "device": DEVICE}
LEASE = {"kind": "lease", "job": "sleep-1", "attempt": 2, "domain": "sleep", "base": "b"}


def told(*lines: dict[str, Any]) -> list[str]:
    view = View()
    return [sentence for line in lines if (sentence := view.take(line)) is not None]


def step(number: int) -> dict[str, Any]:
    return {"kind": "progress", "job": "sleep-1", "stage": "train", "step": number, "steps": 100, "loss": 2.5, "eta_s": 60}


def test_a_pipe_gets_a_line_per_event_and_one_per_tenth_of_a_stage() -> None:
    begun = {"kind": "stage_started", "job": "sleep-1", "stage": "train"}
    lines = told(
        STARTED, {"kind": "online", "jobs": []}, LEASE, begun, *(step(number) for number in range(1, 31)),
        {"kind": "offline", "reason": "gone"}, {"kind": "online", "jobs": ["sleep-1"]}, {"kind": "over", "reason": "ended."},
    )  # fmt: skip
    assert lines == [
        "worker-r1  no GPU, 4 cores, 16.00 GB memory, 50.00 GB free, vast, lab lab at mqtts://b:8883",
        "online; waits for jobs", "sleep-1  leased: sleep on b, attempt 2", "sleep-1  train  stage started",
        *(f"sleep-1  train  step {number}/100  loss 2.500  1 min 0 s left" for number in (10, 20, 30)),
        "offline: gone", "online again", "over: ended.",
    ]  # fmt: skip


def test_what_failed_is_said_and_leaves_the_picture() -> None:
    view = View()
    for line in (STARTED, LEASE, step(50)):
        view.take(line)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(view)
    assert "sleep-1" in console.export_text() and "no GPU" in view.machine
    assert view.take({"kind": "failed", "job": "sleep-1", "error": {"message": "No good."}}) == (
        "sleep-1  train  failed  step 50/100  loss 2.500  1 min 0 s left  No good."
    )
    assert view.jobs == {}


@pytest.mark.parametrize("token", [None, "hello"])
def test_a_wrong_token_starts_nothing_but_turns_the_machine_off(
    token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(workers.VARIABLE, raising=False)
    monkeypatch.setenv("MEETARA_SHUTDOWN", f"touch '{tmp_path / 'off'}'")
    given = ["worker", "--broker", "mqtts://b", "--home", str(tmp_path / "home"), "--json", *(["--token", token] if token else [])]
    outcome = CliRunner().invoke(app, given)
    assert outcome.exit_code == 2 and json.loads(outcome.stdout)["error"]["data"]["field"] == "token"
    assert (tmp_path / "off").exists() and not (tmp_path / "home").exists()


def test_a_machine_that_cannot_be_turned_off_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETARA_SHUTDOWN", "false")
    outcome = CliRunner().invoke(app, ["worker", "--broker", "mqtts://b", "--token", "x", "--home", str(tmp_path)])
    assert outcome.exit_code == 2 and "may go on costing money" in outcome.stderr
