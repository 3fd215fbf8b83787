"""`meetara logs`: one stream out of many files, in order of time, filtered and followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meetara.cli import app
from meetara.logbook import Line, Wanted, more, read
from meetara.screens import logs


def line(second: float, agent: str, event: str, **facts: object) -> str:
    return json.dumps({"timestamp": f"2026-01-01T12:00:{second:06.3f}Z", "agent": agent, "event": event, "level": "info", **facts}) + "\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    (tmp_path / "jobs" / "sleep-1").mkdir(parents=True)
    (tmp_path / "logs" / "router-1.log").write_text(line(1, "router-1", "online") + line(3, "router-1", "routed", job="sleep-1", trace="ab"))
    (tmp_path / "logs" / "conductor-1.log.1").write_text(line(0, "conductor-1", "set aside"))
    (tmp_path / "logs" / "conductor-1.log").write_text(
        line(2, "conductor-1", "online") + "Traceback: a last word\n" + line(5, "conductor-1", "job ended", job="sleep-1", trace="cd")
    )
    (tmp_path / "logs" / "tts-1.log").write_text(
        "\x1b[2m2026-01-01T12:00:02.500Z\x1b[0m [info] speaks job=sleep-1 trace=ab agent=tts-1\n"
    )
    (tmp_path / "jobs" / "sleep-1" / "log.txt").write_text(
        line(4, "gguf_factory-1", "job begins", job="sleep-1", trace="ab") + "a library warns\n"
    )
    return tmp_path


def told(lines: list[Line]) -> list[str]:
    return [entry.facts["event"] if entry.facts else entry.text for entry in lines]


def test_lines_come_in_order_of_time_and_those_without_a_time_stay_behind_their_neighbour(home: Path) -> None:
    lines, _ = read(home, Wanted())
    order = [word for word in told(lines) if "speaks" not in word]
    assert order == [
        "set aside", "online", "online", "Traceback: a last word", "routed", "job begins", "a library warns", "job ended",
    ]  # fmt: skip
    assert lines[4].agent == "tts-1", "a console line is put by its time"


def test_filters_by_agent_role_job_and_trace(home: Path) -> None:
    assert told(read(home, Wanted(agent="conductor-1"))[0]) == told(read(home, Wanted(agent="conductor"))[0])
    about = [word for word in told(read(home, Wanted(job="sleep-1"))[0]) if "speaks" not in word]
    assert about == ["routed", "job begins", "a library warns", "job ended"]
    assert len(read(home, Wanted(trace="ab"))[0]) == 3
    assert told(read(home, Wanted(agent="router", trace="ab"))[0]) == ["routed"]


def test_following_gives_whole_new_lines_also_of_new_files_and_of_logs_begun_anew(home: Path) -> None:
    _, readers = read(home, Wanted())
    assert more(home, readers, Wanted()) == []
    router = home / "logs" / "router-1.log"
    with router.open("a") as file:
        file.write(line(6, "router-1", "more") + '{"half": ')
    (home / "jobs" / "two").mkdir()
    (home / "jobs" / "two" / "log.txt").write_text(line(7, "gguf_factory-1", "job begins"))
    assert told(more(home, readers, Wanted())) == ["more", "job begins"]
    router.rename(home / "logs" / "router-1.log.1")
    router.write_text(line(8, "router-1", "anew"))
    assert told(more(home, readers, Wanted())) == ["anew"]


def test_the_command_shows_the_last_lines_for_people_and_programs(home: Path) -> None:
    shown = CliRunner().invoke(app, ["logs", "--home", str(home), "-n", "2"]).stdout
    assert "job ended job=sleep-1" in shown and "routed" not in shown
    lines = CliRunner().invoke(app, ["logs", "router", "--home", str(home), "--json"]).stdout.splitlines()
    assert [json.loads(entry)["event"] for entry in lines] == ["online", "routed"]
    missing = CliRunner().invoke(app, ["logs", "--home", str(home / "nowhere")])
    assert missing.exit_code == 2 and "--home" in missing.stderr


def test_an_exception_is_shown_with_its_last_places_and_its_cause() -> None:
    error = {"type": "KeyError", "frames": [f"/a/b{n}.py:{n} f{n}" for n in range(9)], "cause": {"type": "OSError", "text": "gone", "frames": []}}
    facts = {"timestamp": "2026-01-01T12:00:00Z", "event": "handler crashed", "level": "error", "exception": error}
    shown = logs.picture(Line(read_time(), "router-1", "", facts)).plain
    assert "handler crashed" in shown and "KeyError" in shown and "b8.py:8 f8" in shown and "b1.py" not in shown
    assert "OSError gone" in shown


def read_time():
    from datetime import UTC, datetime

    return datetime(2026, 1, 1, tzinfo=UTC)
