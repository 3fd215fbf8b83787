"""`meetara gc` shows, asks, and removes no more than was shown."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from meetara.screens import gc


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a model that no request would find, and a base that was not used for long."""
    store = tmp_path / "artefacts" / "0"
    store.mkdir(parents=True)
    (store / "m.gguf").write_bytes(b"GGUF" * 500)
    (store / "manifest.json").write_text(json.dumps({"job": "j1"}))
    base = tmp_path / "models" / "b" / "model-f16.gguf"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"x" * 3000)
    os.utime(base, (time.time() - 30 * 86_400,) * 2)
    return tmp_path


async def collect(home: Path, capsys: pytest.CaptureFixture[str], *, models: bool = False, yes: bool = False, as_json: bool = False) -> str:
    console = Console(file=sys.stdout, width=200)
    assert await gc.gc({"home": home}, models=models, yes=yes, as_json=as_json, console=console) == 0
    return capsys.readouterr().out


def models_of(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("*.gguf"))


async def test_models_stay_until_they_are_asked_for_and_agreed_to(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = await collect(home, capsys)
    assert "3.00 kB" in shown and "models/b/model-f16.gguf" in shown and "Nothing was removed" in shown
    assert "artefacts" not in shown, "no finished model is even listed"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    questions: list[str] = []

    def answer(question: str) -> str:
        questions.append(question)
        return "no"

    monkeypatch.setattr("builtins.input", answer)
    await collect(home, capsys, models=True)
    assert "1 finished models among it" in questions[0] and models_of(home) == ["m.gguf", "model-f16.gguf"]
    freed = json.loads(await collect(home, capsys, models=True, yes=True, as_json=True))
    assert freed["removed"] and freed["freed_bytes"] > 5000 and models_of(home) == []
