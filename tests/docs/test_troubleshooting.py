"""The troubleshooting page holds the real texts: each is provoked and compared, and none is missing or left over."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.gguf_factory.bases import make_base
from tests.conftest import PlainBroker
from tests.docs.provocations import PROVOCATIONS, Ground

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
SECTION = re.compile(r"^### (?P<name>[^\n]+)\n\n```text\n(?P<text>.*?)\n```\n\n(?P<why>[^#\n][^\n]*)", re.MULTILINE | re.DOTALL)
TOLD = {match["name"]: match["text"] for match in SECTION.finditer(PAGE.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainBroker]:
    broker = PlainBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


def form(text: str) -> re.Pattern[str]:
    """Return the pattern of a text in which `<NAME>` stands for what is different in each case."""
    parts = re.split(r"<[A-Z]+>", text)
    return re.compile(".+?".join(re.escape(part) for part in parts), re.DOTALL)


def test_every_error_that_can_be_provoked_has_a_section_and_the_other_way_round() -> None:
    assert TOLD.keys() == PROVOCATIONS.keys()
    assert len(TOLD) >= 50
    assert PAGE.read_text(encoding="utf-8").count("### ") == len(TOLD), "a section lacks its text or its explanation"


@pytest.mark.parametrize("name", PROVOCATIONS)
def test_the_page_has_the_real_text(
    name: str, base: Path, listening: PlainBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PROVOCATIONS[name](Ground(folder=tmp_path, base=base, broker=listening, patch=monkeypatch))
    assert form(TOLD[name]).fullmatch(real), f"write in docs/troubleshooting.md:\n{real}"
