"""A supervised process: restarted when it crashes, given up when it refuses, killed when it does not end."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from meetara import child as child_module
from meetara.child import Child
from protocol import Code, LabError

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(child_module, "BACKOFF", (0.01, 0.04))
    told: list[str] = []

    def build(program: str) -> Child:
        child = Child("agent-1", [sys.executable, "-c", program], os.environ, tmp_path / "agent-1.log", told.append)
        child.told = told
        return child

    return build


async def until_logged(child: Child, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in child.last_words():
            await asyncio.sleep(0.01)


async def test_a_crashed_process_is_started_again_with_growing_pauses(make):
    child = make("import os; os._exit(7)")
    with pytest.raises(LabError, match="does not stay up"):
        await child.keep(restarts=4)
    assert child.restarts == 4
    pauses = [sentence.split("again in ")[1].split(" s")[0] for sentence in child.told]
    assert pauses == ["0.01", "0.02", "0.04", "0.04"]
    assert "exit code 7" in child.told[0]


async def test_a_process_that_refuses_its_configuration_is_not_started_again(make):
    child = make("import sys; print('budget_settings.json: daily: not a number', file=sys.stderr); sys.exit(2)")
    with pytest.raises(LabError, match=r"budget_settings\.json: daily") as caught:
        await child.keep()
    assert caught.value.code is Code.CONFIGURATION
    assert child.restarts == 0


async def test_last_words_are_those_of_the_last_start(make, tmp_path):
    (tmp_path / "agent-1.log").write_text("an old complaint\n")
    child = make("import sys; print('new'); sys.exit(2)")
    with pytest.raises(LabError) as caught:
        await child.keep()
    assert "new" in str(caught.value) and "old complaint" not in str(caught.value)


async def test_stop_ends_a_process_and_does_not_start_it_again(make):
    child = make("import time; print('up', flush=True); time.sleep(60)")
    keeping = asyncio.create_task(child.keep())
    await until_logged(child, "up")
    await child.stop(grace=20)
    async with asyncio.timeout(5):
        await keeping
    assert child.process.returncode == -15 and child.restarts == 0


async def test_a_process_that_does_not_end_is_killed_after_its_grace(make):
    child = make(STUBBORN)
    keeping = asyncio.create_task(child.keep())
    await until_logged(child, "up")
    await child.stop(grace=0.1)
    await keeping
    assert child.process.returncode == -9
    assert "killed" in child.told[-1]
