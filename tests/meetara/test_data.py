"""`meetara data check`: exit codes, what people read, and JSON of the typed report; through the real process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from meetara.cli import app
from meetara.screens.data import BLOCKS, _spread, check
from protocol import Code
from protocol.datacheck import Bin, DataReport, Spread

ROWS = [{"question": f"What is the number {n} of them?", "answer": f"Number {n} is {n * n} things that you have to count."} for n in range(40)]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETARA_HOME", str(tmp_path / "home"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def written(path: Path, *raw: str) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "".join(f"{line}\n" for line in raw), encoding="utf-8")
    return path


def test_warnings_are_shown_with_their_lines_and_fail_only_when_strict(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", '{"question": "Who helps me with it?", "answer": "Write to zoe@mail.net."}')
    told = call(path, "--strict")
    assert told.exit_code == 1, told.output
    for part in (str(path), "41 rows: question and answer", "1 (2.4%) personal data or keys", "line 41: e-mail address:", "Write to ▮▮▮.", "$0.00", "(P90)"):
        assert part in told.stdout, part
    assert "zoe" not in told.stdout
    found = call(path, "--json")
    assert found.exit_code == 0 and found.stdout.count("\n") == 1
    assert DataReport.model_validate_json(found.stdout).verdict == "warnings"


def test_bad_rows_are_shown_by_reason_and_exit_with_2(tmp_path: Path) -> None:
    told = call(written(tmp_path / "rows.jsonl", "{cut", '{"text": "x"}', '{"text": "y"}'), "--base", tmp_path / "none")
    assert told.exit_code == 2
    for part in ("3 of 43 rows", "line 41: is not JSON", "line 42, 43: has only running text", "(2 rows)", "→ Make questions", "not known", "cannot be trained on"):
        assert part in told.stdout, part


def test_a_file_that_is_not_there_and_wrong_options_exit_with_2(tmp_path: Path) -> None:
    error = json.loads(call(tmp_path / "none.jsonl", "--json").stdout)["error"]
    assert error["code"] == Code.BAD_DATA and "does not exist" in error["message"]
    told = call(written(tmp_path / "rows.jsonl"), "--param", "lora_r=none")
    assert told.exit_code == 2 and "lora_r" in told.stderr


class Terminal(Console):
    """A terminal that notes when the check has told of its progress."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), force_terminal=True)
        self.told = asyncio.Event()

    def status(self, *_: Any, **__: Any) -> Any:
        return contextlib.nullcontext(SimpleNamespace(update=lambda _: self.told.set()))


async def test_an_interrupted_check_leaves_no_process(tmp_path: Path) -> None:
    terminal = Terminal()
    rows = written(tmp_path / "rows.jsonl", *[json.dumps({**row, "n": n}) for n in range(40) for row in ROWS])
    task = asyncio.create_task(check({}, str(rows), {}, strict=False, as_json=False, console=terminal))
    await asyncio.wait_for(terminal.told.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    here = psutil.Process().children(recursive=True)
    assert not [process for process in here if str(rows) in " ".join(process.cmdline())]


def test_a_histogram_shows_where_rows_are_and_where_none_is() -> None:
    spread = Spread(least=1, median=2, p95=9, most=9, bins=[Bin(low=1, high=3, rows=80), Bin(low=4, high=6, rows=0), Bin(low=7, high=9, rows=1)])
    lines = _spread(spread, "170 in all").plain.splitlines()
    assert lines[0] == "per row 1 to 9, median 2, 95 % at most 9; 170 in all"
    assert lines[1] == f"1 {BLOCKS[8]}{BLOCKS[0]}{BLOCKS[1]} 9"
