"""`meetara demo`: a lab, one job on the project's own data, its result, and the lab taken down again."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

from rich.console import Console

from configs import Settings
from meetara.door import INTERRUPTED, tell
from meetara.lab import Lab
from meetara.screens import live, result
from meetara.screens.train import show_end
from meetara.supervise import ROLES, supervised
from protocol import Code, LabError

DATA = Path(__file__).parents[2] / "data"
"""The project's own data, beside the packages."""
DOMAIN = "time_management"


async def demo(home: Path | None, *, as_json: bool, console: Console) -> int:
    """Train the demonstration; the artefact stays in the home, whose place is told at the end."""
    rows, held_out = DATA / f"{DOMAIN}.jsonl", DATA / f"{DOMAIN}_eval.jsonl"
    for path in (rows, held_out):
        if not path.is_file():
            raise LabError(
                Code.NOT_FOUND, f"the demonstration's data set {path} is missing.",
                advice="Run it in a clone of the project.", file=str(path),
            )  # fmt: skip
    place = home or Path(tempfile.mkdtemp(prefix="meetara-demo-"))
    settings = Settings.read(home=place, lab="demo", broker="")
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)  # Ctrl-C does this by itself
    try:
        if not as_json:
            console.print(f"home {settings.home}\nstarting a broker and {len(ROLES)} agents …", markup=False)
        async with supervised(settings, port=0, tell=tell) as up:
            if not as_json:
                console.print(f"broker {up.address}\nready", markup=False)
            async with Lab(host=up.address.host, port=up.address.port, lab="demo", home=place, name="demo") as lab:
                job = await lab.train(domain=DOMAIN, dataset=rows, eval_dataset=held_out, tier="starter")
                final = await live.follow(job, None if as_json else console)
    except asyncio.CancelledError:
        tell(f"\nInterrupted; the lab is down. What was finished is in {settings.home}.")
        return INTERRUPTED
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
    code = show_end(final, as_json=as_json, console=console)
    model = result.file_path(final)
    if model and not as_json:
        console.print(f"The model is in {model}", markup=False, soft_wrap=True)
    return code
