"""Read what a GGUF file says about itself: key-value pairs and the list of tensors. Does not read weights.

The layout is llama.cpp's docs/gguf.md, version 3. A reader of one's own costs 100 lines and keeps the converter's
gguf package, which must match the converter's version, out of this process.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from protocol import Code, LabError

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes between tensors unless general.alignment says otherwise (gguf.md)

# Weights and bytes of one block of each tensor type (ggml.h, ggml-common.h).
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """One tensor: `shape` fastest dimension first, as in the file; `offset` in bytes from the data's start."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """A file's key-value pairs and tensors. The others are bytes: where the pairs end, the list of tensors ends, data begins."""

    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    values_end: int
    tensors_end: int
    data_start: int

    @property
    def weights(self) -> int:
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over their weights: the real average, norms and fallbacks included."""
        return 8 * self.tensor_bytes / self.weights


def read_header(path: Path) -> Header:
    """Read a file's header and check that the file holds all its tensors.

    Raises:
        LabError: NOT_FOUND, or TOOLCHAIN when the file is not a GGUF, is truncated or has an unknown tensor type.
    """
    try:
        with path.open("rb") as file:
            header = _read(file)
    except FileNotFoundError as error:
        raise LabError(Code.NOT_FOUND, f"no model file {path}.", file=str(path)) from error
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}."
        raise LabError(Code.NOT_FOUND, why, advice="Check the file's permissions and its disk.", file=str(path)) from error
    except (struct.error, UnicodeDecodeError, MemoryError, OverflowError, ValueError, KeyError) as error:
        raise _broken(path, f"its header cannot be read ({error})") from error
    size = path.stat().st_size
    for tensor in header.tensors:
        end = header.data_start + tensor.offset + tensor.bytes
        if end > size:
            raise _broken(path, f"tensor {tensor.name} ends at byte {end}, the file at byte {size}")
    return header


def _broken(path: Path, why: str) -> LabError:
    return LabError(
        Code.TOOLCHAIN,
        f"{path} is not a whole GGUF file: {why}.",
        advice="Remove it and run the job again; if it happens again, check the disk's free space.",
        file=str(path),
    )


def _read(file: BinaryIO) -> Header:
    if file.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensor_count, pair_count = struct.unpack("<IQQ", _take(file, 20))
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    values: dict[str, Any] = {}
    for _ in range(pair_count):
        key = _string(file)
        values[key] = _value(file, struct.unpack("<I", _take(file, 4))[0])
    values_end, tensors = file.tell(), []
    for _ in range(tensor_count):
        name = _string(file)
        (dimensions,) = struct.unpack("<I", _take(file, 4))
        shape = struct.unpack(f"<{dimensions}Q", _take(file, 8 * dimensions))
        number, offset = struct.unpack("<IQ", _take(file, 12))
        if number not in TYPES:
            raise ValueError(f"tensor {name} has the unknown type {number}")
        kind, block, block_bytes = TYPES[number]
        weights = math.prod(shape)
        tensors.append(Tensor(name, shape, kind, offset, weights, weights // block * block_bytes))
    alignment, end = int(values.get("general.alignment", ALIGNMENT)), file.tell()
    return Header(values, tuple(tensors), values_end, end, -(-end // alignment) * alignment)


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it ends within the header")
    return data


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _take(file, 8))
    return _take(file, length).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in SCALARS:
        form = "<" + SCALARS[kind]
        return struct.unpack(form, _take(file, struct.calcsize(form)))[0]
    if kind == STRING:
        return _string(file)
    if kind == ARRAY:
        element, count = struct.unpack("<IQ", _take(file, 12))
        if element in SCALARS:
            form = f"<{count}{SCALARS[element]}"
            return list(struct.unpack(form, _take(file, struct.calcsize(form))))
        return [_value(file, element) for _ in range(count)]
    raise ValueError(f"value type {kind}")
