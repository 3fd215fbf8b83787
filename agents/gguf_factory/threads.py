"""How many threads torch may use for small forward passes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Environment under which OpenMP's threads sleep instead of spinning; read when the library loads."""


@contextmanager
def polite() -> Iterator[None]:
    """Use one thread, unless waiting threads sleep.

    Threads that spin for a neighbour take its core when the machine is busy: two gave 67 tokens/s where one gave 404
    and two sleeping ones 541 (12 M parameters, rows of 90 tokens, load 7 on 2 cores).
    """
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
