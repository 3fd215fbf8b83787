"""What a machine has, as its card tells: cores, memory, disk, and the GPU that its driver names."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from agents.gguf_factory import machine
from protocol.machine import Device

ANSWER_S = 20.0
"""nvidia-smi answers in 0.1 s; with a driver that has to wake several GPUs it was seen to need seconds."""
MIB = 2**20


def device(home: Path) -> Device:
    """Return this machine's device; nothing of it is taken from what somebody ordered."""
    gpu, gpu_memory = graphics()
    return Device(
        cores=os.cpu_count() or 1, memory_bytes=machine.memory_bytes(), disk_free_bytes=machine.free_bytes(home), gpu=gpu,
        gpu_memory_bytes=gpu_memory,
    )  # fmt: skip


@cache
def graphics() -> tuple[str, int]:
    """Name and memory (bytes) of the first NVIDIA GPU; ("", 0) without one.

    As nvidia-smi says, which comes with every driver; else from the driver's files. Not by torch: the agent must not import
    300 MB for one name. Asked once: GPUs do not come and go under a process.
    """
    return first(_smi()) or _files()


def first(lines: Iterable[str]) -> tuple[str, int] | None:
    """Return the first GPU in `name, MiB` lines of nvidia-smi; None where it tells of none."""
    for line in lines:
        name, _, mib = line.rpartition(",")
        if name.strip() and mib.strip().isdecimal():
            return name.strip(), int(mib) * MIB
    return None


def _smi() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=ANSWER_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # it is there, but no driver
        return []
    return answer.stdout.splitlines()


def _files() -> tuple[str, int]:
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip(), _memory_of(information.parent.name)
    return "", 0


def _memory_of(bus: str) -> int:
    """Bytes of a GPU's memory: its largest PCI region; 0 where the system does not tell."""
    try:
        lines = Path(f"/sys/bus/pci/devices/{bus}/resource").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return max(_sizes(lines), default=0)


def _sizes(lines: Iterable[str]) -> list[int]:
    """Sizes of PCI regions given as `start end flags` in hexadecimal."""
    found = []
    for line in lines:
        start, end, *_ = (int(part, 16) for part in line.split())
        found.append(end - start + 1 if end else 0)
    return found
