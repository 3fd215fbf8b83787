"""`meetara machine`: tokens of machines that people lend."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bus.workers import Token
from configs import Settings
from meetara.cli import app
from meetara.supervise import supervised
from protocol import Code
from protocol.topics import OPERATOR


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


async def call(home: Path, *arguments: str, code: int = 0) -> Any:
    """Run the command beside the lab's loop, as another process would."""
    outcome = await asyncio.to_thread(CliRunner().invoke, app, ["machine", *arguments, "--home", str(home), "--json"])
    assert outcome.exit_code == code, outcome.output
    return json.loads(outcome.stdout)


async def test_a_token_is_made_once_listed_and_ended(tmp_path: Path) -> None:
    away = await call(tmp_path, "list", code=3)
    assert "no lab with a broker of its own runs" in away["error"]["message"] and "meetara up" in away["error"]["data"]["advice"]
    async with supervised(Settings.read(home=tmp_path), port=0, tell=lambda _: None, roles=("cost_monitor",)):
        assert await call(tmp_path, "list") == {"machines": []}
        made = await call(tmp_path, "add", "gamer-pc")
        token = Token.read(made["token"])
        assert (token.worker, token.provider, token.lab) == (made["worker"], "lent", "lab")
        assert made["broker"] == "mqtts://HOST:8883" and len(made["notes"]) == 2, "what is missing is told with the token"
        again = await call(tmp_path, "add", "gamer-pc", code=2)
        assert again["error"]["code"] == Code.CONFLICT and "machine remove gamer-pc" in again["error"]["data"]["advice"]
        assert (await call(tmp_path, "add", "Gamer PC", code=2))["error"]["data"]["field"] == "name"
        assert await call(tmp_path, "list") == {"machines": ["gamer-pc"]}
        assert (await call(tmp_path, "remove", "laptop", code=2))["error"]["data"]["advice"] == "There are: gamer-pc."
        assert await call(tmp_path, "remove", "gamer-pc") == {"removed": "gamer-pc"}
        assert await call(tmp_path, "list") == {"machines": []}
    assert OPERATOR not in made["token"]
