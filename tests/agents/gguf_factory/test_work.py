"""The job's process: clean lines on stdout, exit codes, and an end with its parent."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from agents.gguf_factory import work
from protocol import Code
from tests.agents.gguf_factory.bases import ROOT, make_base
from tests.agents.gguf_factory.runs import make_job

PRELUDE = """
import os, sys, time
from agents.gguf_factory import pipeline, work
from agents.gguf_factory.job import StageResult, Stopped
from protocol import Code, LabError, Retry
from protocol.job import Stage
"""
EPILOGUE = """
pipeline.run.__defaults__ = (((Stage.DATA, stage),),)
sys.exit(work.main(sys.argv[1:]))
"""


def start(folder: Path, stage: str) -> subprocess.Popen[str]:
    """Run the job's process with one stage, given as source."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(stage) + EPILOGUE, str(folder)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_job(tmp_path / "home", make_base(tmp_path / "base")).folder


def test_what_libraries_print_never_reaches_stdout(folder: Path) -> None:
    process = start(folder, """
        def stage(job):
            print("a library's word"); os.write(1, b"and C's\\n"); os.system("echo and that of a child")
            job.progress(step=1, loss=2.5); job.progress(step=2)
            raise LabError(Code.BAD_DATA, "No good.", advice="Mend it.", line=3)
    """)  # fmt: skip
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1
    found = lines(out)
    assert [line["kind"] for line in found] == ["stage_started", "progress", "failed"]
    assert found[1] == {"kind": "progress", "stage": "data", "step": 1, "loss": 2.5}
    assert found[2]["error"]["data"] == {"retry": "never", "line": 3, "advice": "Mend it."}
    assert "a library's word" in error and "and C's" in error and "and that of a child" in error


def test_an_unforeseen_error_fails_with_its_type(folder: Path) -> None:
    process = start(folder, "def stage(job): return 1 / 0\n")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1 and '"type": "ZeroDivisionError"' in error
    failed = lines(out)[-1]
    assert failed["stage"] == "data" and "ZeroDivisionError" in failed["error"]["message"]


@pytest.mark.parametrize("raised", [
    "OSError(28, 'No space left on device')",
    "RuntimeError('I/O error: No space left on device (os error 28)')",  # safetensors' way
    "LabError(Code.TOOLCHAIN, 'the converter failed: OSError: [Errno 28] No space left on device')",
])  # fmt: skip
def test_a_full_disk_fails_as_such_in_whoevers_words_and_even_if_the_log_is_full_too(folder: Path, raised: str) -> None:
    process = start(folder, f"""
        def stage(job):
            os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
            raise {raised}
    """)  # fmt: skip
    out, _ = process.communicate(timeout=60)
    error = lines(out)[-1]["error"]
    assert error["code"] == Code.NO_SPACE and error["data"]["retry"] == "other-worker"
    assert "No space left" in error["message"] and "MB are free" in error["message"] and "Free some" in error["message"]


@pytest.mark.parametrize(("retry", "left"), [("NEVER", False), ("LATER", True)])
def test_stored_checkpoints_go_when_the_job_is_over_and_not_before(tmp_path: Path, retry: str, left: bool) -> None:
    job = make_job(tmp_path / "home", make_base(tmp_path / "base"), checkpoints="store")
    stored = tmp_path / "store" / "checkpoints" / "j1" / "checkpoints" / "x"
    stored.parent.mkdir(parents=True)
    stored.touch()
    process = start(job.folder, f"""
        def stage(job):
            os.environ["MEETARA_STORE"] = {(tmp_path / "store").as_uri()!r}
            raise LabError(Code.BAD_DATA, "No good.", retry=Retry.{retry})
    """)  # fmt: skip
    process.communicate(timeout=120)
    assert process.returncode == 1 and stored.exists() is left


def test_sigterm_lets_a_stage_save_and_ends_with_stopped(folder: Path) -> None:
    process = start(folder, """
        def stage(job):
            job.progress(note="ready")
            while not job.stop(): time.sleep(0.01)
            job.path("data", "saved").write_text("x")
            raise Stopped
    """)  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["kind"] == "stage_started"
    assert json.loads(process.stdout.readline())["note"] == "ready"
    assert os.getpgid(process.pid) == process.pid
    assert os.getpriority(os.PRIO_PROCESS, process.pid) >= os.getpriority(os.PRIO_PROCESS, 0) + 5
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and lines(out) == [{"kind": "stopped", "stage": "data"}]
    assert (folder / "data" / "saved").exists()


def test_the_process_dies_with_its_parent(folder: Path) -> None:
    stage = "def stage(job):\n    job.progress(note=str(os.getpid()))\n    time.sleep(600)\n"
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])",
         sys.executable, "-c", PRELUDE + stage + EPILOGUE, str(folder)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert parent.stdout is not None
    parent.stdout.readline()
    assert json.loads(parent.stdout.readline())["note"].isdigit()
    parent.kill()
    assert parent.stdout.read() == "", "the pipe closes when the last process that holds it has ended"
    parent.wait()


def test_a_missing_job_file_is_said(tmp_path: Path) -> None:
    out = io.StringIO()
    assert work.work(tmp_path, out) == 1
    assert "job.json" in lines(out.getvalue())[0]["error"]["message"]


def test_progress_is_thinned_but_notes_and_new_stages_are_not() -> None:
    out, now = io.StringIO(), [0.0]
    writer = work.Lines(out, clock=lambda: now[0])
    for step in range(11):
        now[0] = step / 10
        writer.progress(step=step)
    writer.progress(note="saved")
    writer.progress(note="saved", step=11)
    writer.write({"kind": "stage_started", "stage": "merge"})
    writer.progress(step=0)
    found = lines(out.getvalue())
    assert [line.get("step") for line in found[:3]] == [0, 5, 10]
    assert [line["kind"] for line in found[3:]] == ["progress", "stage_started", "progress"]
    assert found[-1]["stage"] == "merge"


def test_the_outcome_keeps_both_of_two_equal_names() -> None:
    from protocol.job import Stage

    one = {"artefacts": [], "gates": {}, "results": {"tokens": 1, "rows": 2}, "seconds": 1.0}
    two = {"artefacts": [{"kind": "gguf"}], "gates": {"size": {}}, "results": {"tokens": 3}, "seconds": 2.5}
    found = work._outcome({Stage.DATA: one, Stage.TRAIN: two})
    assert found["results"] == {
        "tokens": 1, "rows": 2, "data_seconds": 1.0, "train_tokens": 3, "train_seconds": 2.5, "seconds": 3.5,
    }  # fmt: skip
    assert found["artefacts"] == [{"kind": "gguf"}] and found["gates"] == {"size": {}}
