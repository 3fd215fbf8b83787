"""Training in processes of their own, which are killed or get too little memory; forked, so that torch is imported once."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from agents.gguf_factory import checkpoint_store
from agents.gguf_factory import train as train_stage
from agents.gguf_factory.loop import Loop, Settings
from agents.gguf_factory.rows import Rows, Schedule
from protocol import LabError
from tests.agents.gguf_factory.tiny import make_job, network, rows

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


def train_within(folder: Path, limit: int, spare: int, data: Rows, flat: bool) -> None:
    """Train three steps on all rows at once and write result.json: micro_batch, notes, losses, held_out, or the error.

    Args:
        limit: RLIMIT_AS or RLIMIT_DATA.
        spare: bytes that it leaves to the training; 0: no limit.
        flat: by the flat arithmetic; false: by peft's and autograd's.
    """
    torch.set_num_threads(1)
    count = len(data)
    schedule = Schedule.plan(
        data.tokens, batch=count, max_steps=3, max_epochs=None, max_tokens=None, warmup_steps=1, decay="cosine", seed=5
    )
    run = Loop(network(dropout=0.0), data, rows(3, 9), schedule, Settings(1e-2, 0.01, count, 5, 11), folder)
    if not flat:
        run.network.flat = None
    run.network.loss(rows(1).take([0])).backward()  # what a library takes once, it has taken now
    run.begin(count)
    if spare:
        used = psutil.Process().memory_info()
        soft = (used.vms if limit == resource.RLIMIT_AS else used.data) + spare
        resource.setrlimit(limit, (soft, resource.RLIM_INFINITY))
    try:
        history = run.run({0, 3})
        found = {name: getattr(history, name) for name in ("micro_batch", "notes", "losses", "held_out", "tokens")}
    except LabError as error:
        found = {"error": error.body().model_dump(mode="json")}
    (folder / "result.json").write_text(json.dumps(found))


def train_job(folder: Path, store: str, looks: int) -> None:
    """Train tiny.make_job in `folder`, its checkpoints in a store, and die at so many micro-batches (0: never)."""
    torch.set_num_threads(1)
    os.environ |= {"MEETARA_STORE": store, "MEETARA_THREADS": "1"}
    checkpoint_store.spacing = lambda seconds, mtbf_s: 0.0
    job = make_job(folder, checkpoints="store", save_steps=2)
    seen = 0

    def look() -> bool:
        nonlocal seen
        seen += 1
        if seen == looks:
            die()
        return False

    job.stop = look
    results = train_stage.run(job).results
    (folder / "result.json").write_text(json.dumps(results))


def run(target: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a process of its own and return its exit status."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
