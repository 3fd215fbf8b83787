"""A command of the factory as a process of its own that speaks JSON lines; works without a lab."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol import Code, ErrorBody, LabError

LINE_LIMIT = 4 * 1024 * 1024
"""Bytes of one line; a report holds a dozen gates and a few answers."""
LEAVE_SECONDS = 5.0
"""What the process gets to remove its temporary files after Ctrl-C."""
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other sleep instead of spinning."""
WORDS = 2_000
"""Characters kept of what libraries print: the last of them tell why a process died."""


async def work(
    module: str, arguments: Sequence[str], *, home: Path | None = None, told: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Run `python -m agents.gguf_factory.<module>` and return its report.

    Args:
        module: its name.
        arguments: of the command line.
        home: MEETARA_HOME; None: as it is.
        told: takes each progress.

    Raises:
        LabError: what the process told; INTERNAL when it died without a word.
    """
    environment = {**QUIET, **os.environ, **({"MEETARA_HOME": str(home)} if home else {})}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"agents.gguf_factory.{module}", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which then asks that one to end
        limit=LINE_LIMIT, env=environment,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    words = asyncio.create_task(_tail(process.stderr))
    try:
        async for raw in process.stdout:
            line: dict[str, Any] = json.loads(raw)
            if "progress" in line:
                told(line["progress"])
            elif "error" in line:
                raise LabError.from_body(ErrorBody.model_validate(line["error"]))
            else:
                report: dict[str, Any] = line["report"]
                return report
        code = await process.wait()
        last = (await words).strip().splitlines()[-1:]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        raise LabError(
            Code.INTERNAL, f"the process of {module} {how}: {' '.join(last) or 'it said nothing'}.",
            advice="Run `meetara doctor`, or free memory.",
        )  # fmt: skip
    finally:
        await _end(process)
        words.cancel()


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = ""
    while part := await stream.read(4096):
        kept = (kept + part.decode("utf-8", "replace"))[-WORDS:]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(LEAVE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
