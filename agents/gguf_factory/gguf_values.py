"""Write further key-value pairs into a GGUF. Tensors are copied byte for byte.

The layout is llama.cpp's docs/gguf.md, as in `gguf_header`.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from agents.gguf_factory.gguf_header import ALIGNMENT, STRING, read_header
from protocol import Code, LabError

UINT32, FLOAT32 = 4, 6
VALUES_AT = 24  # bytes of magic, version and both counts
COPIED_AT_ONCE = 1 << 20  # bytes


def add_values(path: Path, values: Mapping[str, str | int | float]) -> None:
    """Add pairs to a file, which is replaced as a whole; text, whole numbers below 2^32 and 32-bit floats.

    Raises:
        LabError: NOT_FOUND or TOOLCHAIN, as `read_header`; INTERNAL, a key is there already.
    """
    header = read_header(path)
    if doubled := sorted(values.keys() & header.values.keys()):
        raise LabError(Code.INTERNAL, f"{path} has a value of {doubled[0]} already.", file=str(path))
    temporary = path.with_name(f".{path.name}.values.{os.getpid()}")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            start = source.read(VALUES_AT)
            magic, version, tensors, pairs = struct.unpack("<4sIQQ", start)
            target.write(struct.pack("<4sIQQ", magic, version, tensors, pairs + len(values)))
            target.write(source.read(header.values_end - VALUES_AT))
            for key, value in values.items():
                target.write(_string(key) + _value(value))
            target.write(source.read(header.tensors_end - header.values_end))
            alignment = int(header.values.get("general.alignment", ALIGNMENT))
            target.write(bytes(-target.tell() % alignment))
            source.seek(header.data_start)
            shutil.copyfileobj(source, target, COPIED_AT_ONCE)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    return struct.pack("<If", FLOAT32, value)
