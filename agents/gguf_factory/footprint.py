"""Measure what loading a GGUF costs, in a fresh process: milliseconds, and private bytes.

    python -m agents.gguf_factory.footprint FILE [ADAPTER]    # prints JSON

With an adapter it measures what that costs a process which has the model already.

Private memory is what the process has that no other could share: its unique set size (smaps) without the mapping of the
model file itself, after one decode, less the same before the load. The file's pages belong to the page cache: twenty
processes with the same file hold them once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

from agents.gguf_factory import lifeline, llama

CONTEXT = 256  # tokens; a small chat, on which the 12 MB of the gate were measured
BATCH = 32  # tokens of one decode; logits and buffers grow with it
ROUNDS = 5  # the best of five: the first reads the disk, others meet noise
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")


def private_bytes(smaps: str, without: str) -> int:
    """Return the unique set size of a process from the text of its /proc/<pid>/smaps, leaving out one file's mappings."""
    total, counts = 0, False
    for line in smaps.splitlines():
        if found := MAPPING.match(line):
            counts = found[1] != without
        elif counts and line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


def measure(path: Path) -> dict[str, float | None]:
    """Load the file `ROUNDS` times and return load_ms (best) and private_mb (10^6 bytes; None off Linux)."""
    best = float("inf")
    smaps = Path("/proc/self/smaps")
    name = os.path.realpath(path)
    before = private_bytes(smaps.read_text(), name) if smaps.exists() else 0
    private = None
    for round_ in range(ROUNDS):
        start = time.perf_counter()
        with llama.load(path, n_ctx=CONTEXT, n_batch=BATCH, repack=False) as model:
            best = min(best, time.perf_counter() - start)
            if round_ == 0 and smaps.exists():
                model.logits([model.bos if model.bos >= 0 else 0] * 8)
                private = (private_bytes(smaps.read_text(), name) - before) / 1e6
    return {"load_ms": best * 1e3, "private_mb": private}


def measure_adapter(path: Path, adapter: Path) -> dict[str, float | None]:
    """Load an adapter `ROUNDS` times into a process that has its base and return load_ms: read and put to use, the best.

    Returns:
        load_ms, and first_decode_ms: the first token after it, in which llama.cpp plans its memory anew (the best).
    """
    best = first = float("inf")
    with llama.load(path, n_ctx=CONTEXT, n_batch=BATCH, repack=False) as model:
        token = [max(model.bos, 0)]
        model.logits(token)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            loaded = model.load_adapter(adapter)
            model.use(loaded)
            best = min(best, time.perf_counter() - start)
            start = time.perf_counter()
            model.logits(token)
            first = min(first, time.perf_counter() - start)
            model.drop(loaded)
    return {"load_ms": best * 1e3, "first_decode_ms": first * 1e3}


if __name__ == "__main__":
    lifeline.die_with_parent()
    print(json.dumps((measure_adapter if sys.argv[2:] else measure)(*map(Path, sys.argv[1:]))))
