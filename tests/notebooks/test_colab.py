"""The notebook is run by a kernel as a person would run it, against a real broker over TLS."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from bus import workers
from tests.conftest import PROJECT
from tests.doors import heard, opened

NOTEBOOK = PROJECT / "notebooks" / "colab_gpu_training_template.ipynb"


async def test_the_one_cell_lends_this_machine_and_ends_with_the_rental(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)
    async with opened(tmp_path / "lab") as ground:
        token = ground.token("colab-1")
        await workers.admit(ground.control, token, [])
        for name, value in {
            "MEETARA_INSTALL": "", "MEETARA_BROKER": ground.url, "MEETARA_TOKEN": str(token), "MEETARA_HOME": str(tmp_path / "home"),
            "IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(PROJECT),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"], "one cell, and what it is"
        running = asyncio.create_task(NotebookClient(notebook, timeout=120, kernel_name="python3").async_execute())
        async with ground.watching(token.worker) as session:
            card = (await heard(session))["card"]
        await workers.dismiss(ground.control, token.worker)
        await asyncio.wait_for(running, 60)
    printed = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert card.rental == "colab-1" and f"{card.device.cores} cores" in printed
    assert "online; waits for jobs" in printed and "the rental has ended" in printed
    assert str(token) not in nbformat.writes(notebook), "what is saved does not hold the token"


def test_the_notebook_is_saved_without_outputs_and_names_no_secret() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    assert workers.FORM not in NOTEBOOK.read_text(encoding="utf-8")
