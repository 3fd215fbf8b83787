"""`meetara models`: what is finished on this machine, and the card of each."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Column, Table

from configs import Settings
from meetara import models, show
from meetara.door import OK, emit
from meetara.fetch import fetch
from meetara.job import check
from meetara.lab import Lab
from protocol import Code, LabError

HEAD = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
"""What only hubs read of a card."""
ANCHOR = re.compile(r'<a id="[^"]*"></a>')


def list_models(flags: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """List the finished models of a home."""
    home = Settings.read(**flags).home
    found = models.stored(home)
    lines = [
        {
            "domain": model.domain, "job": model.job, "file": str(model.path), "bytes": model.path.stat().st_size,
            "profile": model.facts.get("profile", "edge"), "base_file_sha256": model.facts.get("base", {}).get("file", {}).get("sha256"),
            "quality_percent": model.facts.get("gates", {}).get("quality_percent", {}).get("value"),
            "published": datetime.fromtimestamp(model.published, UTC).isoformat(timespec="seconds"),
        }
        for model in found
    ]  # fmt: skip
    if as_json:
        emit({"models": lines})
    elif lines:
        grid = Table("domain", Column("job", no_wrap=True), "profile", "size", "quality", "finished", Column("file", overflow="fold"))
        for line, model in zip(lines, found, strict=True):
            when = datetime.fromtimestamp(model.published).astimezone().strftime("%Y-%m-%d %H:%M")
            quality = show.number(line["quality_percent"], ".1f", "%")
            grid.add_row(model.domain, model.job, line["profile"], show.size(line["bytes"]), quality, when, str(model.path))
        console.print(grid)
    else:
        console.print(f"No finished models in {home}. Make one with `meetara train`.", markup=False)
    return OK


async def fetch_model(where: dict[str, Any], job: str, *, as_json: bool) -> int:
    """Bring a finished job's files from the artefact store into the home and tell where they lie.

    Raises:
        LabError: the job is not done, or its files cannot be had.
    """
    async with Lab(**where, name="fetch") as lab:
        final = check(await (await lab.job(job)).snapshot())
        home = lab.home
    paths = await asyncio.to_thread(fetch, final.artefacts, home)
    if as_json:
        emit({"job": job, "files": [str(path) for path in paths]})
    else:
        print("\n".join(map(str, paths)))
    return OK


def show_model(flags: dict[str, Any], name: str, *, as_json: bool, console: Console) -> int:
    """Show the card of a model as it lies beside the file; on a screen it is drawn.

    Raises:
        LabError: NOT_FOUND, there is no such model, or its card was removed.
    """
    model = models.named(name, Settings.read(**flags).home)
    if as_json:
        emit({"file": str(model.path), "card": str(model.card) if model.card.is_file() else None, "manifest": model.facts})
        return OK
    try:
        text = model.card.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise LabError(
            Code.NOT_FOUND, f"the card {model.card} is gone.",
            advice=f"`meetara models show {name} --json` gives its facts; training again writes it anew.", file=str(model.card),
        ) from error  # fmt: skip
    if console.is_terminal:
        console.print(Markdown(ANCHOR.sub("", HEAD.sub("", text))))
    else:
        print(text, end="")
    return OK
