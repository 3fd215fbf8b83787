"""`meetara models` lists what is finished and shows its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from meetara.cli import app
from meetara.screens import models as screen


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One file that two jobs made, each with papers of its own."""
    store = tmp_path / "artefacts" / ("0" * 64)
    store.mkdir(parents=True)
    (store / "sleep-Q4_K_M.gguf").write_bytes(b"GGUF" * 500)
    for end, job, quality in (("", "j1", 120.5), ("-j2", "j2", None)):
        facts = {
            "domain": "sleep", "job": job, "file": {"name": "sleep-Q4_K_M.gguf"},
            "gates": {"quality_percent": {"value": quality}},
        }  # fmt: skip
        (store / f"manifest{end}.json").write_text(json.dumps(facts))
        (store / f"README{end}.md").write_text(f'---\nlicense: mit\n---\n\n# Card of {job}\n\n- <a id="x"></a>`x`: y\n')
    return tmp_path


def said(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_list_names_file_size_and_quality(home: Path) -> None:
    code, out = said("list", "--home", home, "--json")
    found = json.loads(out)["models"]
    assert code == 0 and {model["job"] for model in found} == {"j1", "j2"}
    assert {model["quality_percent"] for model in found} == {120.5, None} and found[0]["bytes"] == 2000
    shown = said("list", "--home", home)[1]
    assert "120.5 %" in shown and "not measured" in shown and "2.00 kB" in shown


def test_an_empty_home_says_how_to_fill_it(tmp_path: Path) -> None:
    assert "meetara train" in said("list", "--home", tmp_path)[1]


def test_the_card_of_a_job_a_domain_or_a_file_is_shown_as_it_is(home: Path) -> None:
    for name, job in (("j1", "j1"), ("j2", "j2")):
        code, out = said("show", name, "--home", home)
        assert (code, out) == (0, (home / "artefacts" / ("0" * 64) / ("README.md" if job == "j1" else "README-j2.md")).read_text())
    for name in ("sleep", str(next(home.rglob("*.gguf")))):
        assert "# Card of j" in said("show", name, "--home", home)[1]
    assert json.loads(said("show", "j2", "--home", home, "--json")[1])["manifest"]["job"] == "j2"


def test_on_a_screen_the_card_is_drawn_without_what_hubs_read(home: Path) -> None:
    console = Console(force_terminal=True, width=60, record=True)
    assert screen.show_model({"home": home}, "j1", as_json=False, console=console) == 0
    text = console.export_text()
    assert "Card of j1" in text and "license" not in text and "<a id" not in text


def test_an_unknown_name_and_a_lost_card_are_told(home: Path, tmp_path: Path) -> None:
    code, out = said("show", "slep", "--home", home, "--json")
    assert code == 2 and json.loads(out)["error"]["data"]["known"] == ["sleep"]
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    assert "lies in no artefact store" in said("show", other, "--home", home, "--json")[1]
    next(home.rglob("README-j2.md")).unlink()
    assert "--json` gives its facts" in said("show", "j2", "--home", home)[1]
