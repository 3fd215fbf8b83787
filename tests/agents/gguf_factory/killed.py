"""A process that trains and kills itself with SIGKILL at a chosen point; forked, so that torch is imported once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from agents.gguf_factory.loop import Loop, Settings
from agents.gguf_factory.rows import Schedule
from tests.agents.gguf_factory.tiny import network, rows

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])
STEPS = 9


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, looks: int, touches: int) -> None:
    """Train in `folder` and write adapter/ there and history.json.

    Args:
        looks: die at so many micro-batches (0: never).
        touches: die before so many operations on files of the checkpoints (0: never).
    """
    torch.set_num_threads(1)
    seen = {"looks": 0, "touches": 0}

    def look() -> bool:
        seen["looks"] += 1
        if seen["looks"] == looks:
            die()
        return False

    def touched(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and "checkpoint" in str(arguments[0]):
            seen["touches"] += 1
            if seen["touches"] == touches:
                die()

    sys.addaudithook(touched)
    data = rows()
    schedule = Schedule.plan(
        data.tokens, batch=6, max_steps=STEPS, max_epochs=None, max_tokens=None, warmup_steps=2, decay="cosine", seed=5
    )
    settings = Settings(1e-2, 0.01, 3, save_steps=3, seed=11, save_seconds=0.0)
    run = Loop(network(), data, rows(3, 9), schedule, settings, folder / "checkpoints", stop=look)
    history = run.run({0, 4, STEPS})
    run.network.save(folder / "adapter", "tiny")
    (folder / "history.json").write_text(json.dumps({"losses": history.losses, "held_out": history.held_out}))


def start(folder: Path, *, looks: int = 0, touches: int = 0) -> ForkServerProcess:
    process = SERVER.Process(target=train, args=(folder, looks, touches))
    process.start()
    return process
