"""A conversation with a model file: the factory's `talk` process, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from protocol import Code, ErrorBody, LabError

LINE_LIMIT = 1024 * 1024
"""Bytes of one line from the process; a piece of text has a few."""
LEAVE_SECONDS = 5.0
"""What the process gets to end when nothing more is asked; it only has to free its memory."""


class Talk:
    """A loaded model that answers. Use `talking`."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self._process = process
        self.ready = ready

    async def answer(
        self, messages: Sequence[dict[str, str]], *, max_tokens: int = 512, temperature: float = 0.7, seed: int = 0
    ) -> AsyncIterator[str | dict[str, Any]]:
        """Yield the pieces of an answer as they are drawn, and last a dict with finish_reason, tokens and speed.

        Raises:
            LabError: the conversation does not fit or is refused; INTERNAL when the process died.
        """
        question = {"messages": list(messages), "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        while True:
            line = await _line(self._process)
            if "text" in line:
                yield line["text"]
            else:
                yield line["end"]
                return

    async def switch(self, adapter: Path | None) -> dict[str, Any]:
        """Answer with another adapter of the same base from now on, or with the base alone.

        Returns:
            file, bytes, and load_ms: milliseconds that it took.

        Raises:
            LabError: it does not fit the base, and all is as before; INTERNAL when the process died.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"adapter": None if adapter is None else str(adapter)}).encode() + b"\n")
        loaded: dict[str, Any] = (await _line(self._process))["adapter"]
        self.ready["adapter"] = loaded if adapter is not None else None
        return loaded

    def interrupt(self) -> None:
        """End the answer that is being drawn; its last piece is the dict that says so."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)


async def _line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    raw = await process.stdout.readline()
    if not raw:
        code = await process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        raise LabError(Code.INTERNAL, f"the model's process {how}.", advice="Run `meetara doctor`, or free memory.")
    line: dict[str, Any] = json.loads(raw)
    if "error" in line:
        raise LabError.from_body(ErrorBody.model_validate(line["error"]))
    return line


@asynccontextmanager
async def talking(file: Path, *, base: Path | None = None, home: Path | None = None) -> AsyncIterator[Talk]:
    """Load a model in a process of its own and end that process on leaving.

    Args:
        file: a model, or an adapter.
        base: the model that an adapter belongs to; None: what `home` has of it.
        home: MEETARA_HOME.

    Raises:
        LabError: the file is missing, damaged, or no chat model; an adapter's base is not there or another.
    """
    named = [*(("--base", str(base)) if base else ()), *(("--home", str(home)) if home else ())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agents.gguf_factory.talk", str(file), *named,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is for the screen, which then says what it means
        limit=LINE_LIMIT,
    )  # fmt: skip
    try:
        yield Talk(process, (await _line(process))["ready"])
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                process.send_signal(signal.SIGINT) if process.returncode is None else None
                await process.wait()
        except (TimeoutError, ProcessLookupError):
            if process.returncode is None:
                process.kill()
                await process.wait()
