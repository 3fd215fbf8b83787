"""What the shell offers when a person presses Tab, as the installed scripts ask for it; and what must not happen."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from configs import domains, load, parameters, tiers
from meetara import complete
from meetara.cli import app

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys; sys.argv = ['meetara']; from meetara.cli import app; app()"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "my lab ü'1"
    (home / "agents").mkdir(parents=True)
    (home / "logs").mkdir()
    for name in ("router-1", "gguf_factory-1", "broker"):
        (home / "logs" / f"{name}.log").touch()
    connection = sqlite3.connect(home / "agents" / "conductor-1.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE jobs (job TEXT, submitted_at REAL)")
    connection.executemany("INSERT INTO jobs VALUES (?, ?)", [("sleep-1", 1), ("sleep-2", 2), ("music-1", 3)])
    connection.commit()
    connection.close()
    folder = home / "artefacts" / "aa"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"x")
    (folder / "manifest.json").write_text(json.dumps({"file": {"name": "m.gguf"}, "domain": "sleep", "job": "sleep-1"}))
    monkeypatch.setenv("MEETARA_HOME", str(home))
    return home


def context(**params: object) -> typer.Context:
    made = typer.Context(typer.main.get_command(app))
    made.params = params
    return made


def tab(shell: str, words: str) -> list[str]:
    """Return what a shell's script gets for a line whose last word is typed."""
    told = {"_MEETARA_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        told |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    else:
        told |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    assert done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_the_domains(home: Path, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "SECONDS", 10.0)
    assert "time_management" in " ".join(tab(shell, "meetara train --domain time_m"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_offered_its_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "_MEETARA_COMPLETE": f"source_{shell}"},
    )  # fmt: skip
    assert "_MEETARA_COMPLETE" in done.stdout and "meetara" in done.stdout


def test_jobs_are_those_of_the_home_the_newest_first_also_while_the_store_is_in_use(home: Path) -> None:
    assert complete.jobs(context(), "") == ["music-1", "sleep-2", "sleep-1"]
    writer = sqlite3.connect(home / "agents" / "conductor-1.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO jobs VALUES ('half', 4)")
    assert complete.jobs(context(), "sleep") == ["sleep-2", "sleep-1"]
    writer.close()


def test_the_home_of_the_line_comes_before_that_of_the_environment(home: Path, tmp_path: Path) -> None:
    assert complete.jobs(context(home=tmp_path / "other"), "") == []
    assert not (tmp_path / "other").exists(), "asking makes nothing"


def test_names_are_those_of_the_configs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = load()
    assert set(complete.domains(context(), "")) == set(configs.domains)
    assert set(complete.tiers(context(), "")) == set(configs.tiers)
    assert (complete.DOMAINS, complete.TIERS, complete.PARAMETERS) == (domains.FILE, tiers.FILE, parameters.FILE)
    assert complete.parameters(context(), "lora_") == ["lora_r=", "lora_alpha=", "lora_dropout=", "lora_targets="]
    monkeypatch.setenv("MEETARA_CONFIGS", str(tmp_path))
    (tmp_path / "tiers.yaml").write_bytes(b"\xef\xbb\xbftiers:\r\n  mine: {}\r\n")
    assert complete.tiers(context(), "") == ["mine"]


def test_models_and_files_are_offered_as_they_are_typed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schöne Modelle").mkdir()
    for name in ("a.gguf", "notes.txt", "rows.jsonl", "rows.csv.gz", ".hidden.jsonl"):
        (tmp_path / name).touch()
    offered = complete.models(context(), "")
    assert offered[:2] == ["sleep", "sleep-1"] and {"a.gguf", "schöne Modelle/"} <= set(offered) and "notes.txt" not in offered
    assert complete.data_sets(context(), "rows") == ["rows.csv.gz", "rows.jsonl"]
    assert complete.data_sets(context(), f"{tmp_path}/rows.j") == [f"{tmp_path}/rows.jsonl"]
    assert complete.agents(context(), "") == ["broker", "gguf_factory-1", "router-1"]


def test_what_is_damaged_or_slow_offers_nothing_and_says_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "agents" / "conductor-1.db").write_bytes(b"no database" * 999)
    assert complete.jobs(context(), "") == []

    @complete._quick
    def for_ever(ctx: typer.Context, incomplete: str):
        yield "first"
        while True:
            pass

    monkeypatch.setattr(complete, "SECONDS", 0.05)
    assert for_ever(context(), "") == ["first"]
    assert capsys.readouterr() == ("", "")


def test_help_does_not_load_what_it_does_not_need() -> None:
    code = (
        "import sys; sys.argv = ['meetara', '--help']; import meetara.cli, atexit\n"
        "atexit.register(lambda: print('LOADED', sorted(m for m in ('aiomqtt', 'torch', 'configs', 'bus', 'psutil') if m in sys.modules)))\n"
        "meetara.cli.app()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "LOADED []" in done.stdout, done.stdout[-200:]
    assert "--install-completion" in done.stdout
