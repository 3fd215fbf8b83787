"""Record the picture of `meetara watch` in the guide: a real lab, real jobs, and what the board shows while one trains.

    python scripts/record_watch.py docs/watch.svg

Takes some minutes. Every number in the picture was measured in this run.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import Settings  # noqa: E402
from meetara.board import Board  # noqa: E402
from meetara.lab import Lab  # noqa: E402
from meetara.screens.board import Picture  # noqa: E402
from meetara.supervise import supervised  # noqa: E402
from protocol import LabError, State  # noqa: E402
from protocol.job import Stage  # noqa: E402

COLUMNS, ROWS = 124, 26
DATA, HELD_OUT = ROOT / "data" / "time_management.jsonl", ROOT / "data" / "time_management_eval.jsonl"
SHORT = {"max_steps": 6, "batch_size": 2, "sequence_length": 256}
LONG = {"max_steps": 48, "batch_size": 2, "sequence_length": 256}
SHARE = 0.7
"""Of the long job's training, when the picture is taken."""


async def record(target: Path) -> None:
    """Run a lab, train, and write the picture."""
    os.environ |= {"MEETARA_LOCAL_USD_PER_HOUR": "0.05", "MEETARA_SLOTS": "1"}
    with tempfile.TemporaryDirectory(prefix="meetara-watch-", ignore_cleanup_errors=True) as folder:
        settings = Settings.read(home=Path(folder), lab="lab", broker="")
        async with supervised(settings, port=0, tell=print) as up, Lab(home=folder, port=up.address.port, lab="lab") as lab:
            board = Board()
            listening = asyncio.create_task(listen(lab, board))
            try:
                await run(lab, board)
                save(board, f"lab at {lab.address}", target)
            finally:
                listening.cancel()


async def listen(lab: Lab, board: Board) -> None:
    async with aclosing(lab.news()) as news:
        async for item in news:
            board.take(item, datetime.now(UTC))


async def run(lab: Lab, board: Board) -> None:
    """Train one short job to its end, then wait until a long one has come far while others wait."""

    async def train(id: str, parameters: dict[str, int], priority: int = 1) -> None:
        await lab.train(
            domain="time_management", dataset=DATA, eval_dataset=HELD_OUT, id=id, parameters=dict(parameters), priority=priority
        )

    await train("week-plan-1", SHORT)
    with suppress(LabError):
        print((await (await lab.job("week-plan-1")).result()).state)
    with suppress(LabError):
        await lab.train(domain="time_management", dataset=DATA, id="wrong-tier", tier="golden")
    await train("week-plan-2", LONG)
    await train("week-plan-3", SHORT)
    await train("deadlines-1", SHORT, priority=2)
    while True:
        await asyncio.sleep(0.2)
        job = board.jobs.get("week-plan-2")
        now = board.of_stage(job) if job else None
        assert job is None or job.state not in (State.FAILED, State.DONE, State.REFUSED), job
        if now is not None and now.stage is Stage.TRAIN and now.step and now.steps and now.step >= SHARE * now.steps:
            return


def save(board: Board, place: str, target: Path) -> None:
    """Write the board as an SVG that needs nothing from the network."""
    console = Console(
        file=StringIO(), width=COLUMNS, height=ROWS, force_terminal=True, color_system="truecolor", record=True
    )
    console.print(Picture(board, place, datetime.now(UTC)))
    form = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
    console.save_svg(str(target), title="meetara watch", code_format=form)


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
