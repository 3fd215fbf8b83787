"""Whether the numbers in a GGUF's tensors can be what they should be: finite, of the right shape, close to their twin's.

Weights are read through ggml's own functions, a slab at a time, so that memory stays small for any file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_cpp._ggml import libggml

from agents.gguf_factory.gguf_header import TYPES, Header, Tensor, read_header

SLAB = 1 << 22  # weights read at a time: 16 MB as floats
CHUNK = 256  # weights compared together: a k-quant's block, the least that one damaged scale spoils
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
WORKERS = 2

ERROR_LIMIT = 0.75
"""Most relative RMS error of a chunk against F16. Q2_K, the coarsest type, stays below 0.5 on the starter base;
a block whose scale is zero has 1, permuted rows have about 1.4."""
QUIET = 0.1  # chunks much smaller than their tensor (unused tokens) are compared by this share of its RMS

GROWTH_LIMIT = 8.0
"""Most growth of a tensor's largest weight from the base: training moves weights by percents, one flipped exponent bit
of a scale by 2 to 2^16."""

Floats = npt.NDArray[np.float32]


class _Traits(ctypes.Structure):
    """ggml.h's struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )  # fmt: skip


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


@cache
def _to_float(number: int) -> Callable[[int, int, int], None] | None:
    """Return ggml's function from a type's bytes to floats; None where they are floats already."""
    traits = libggml.ggml_get_type_traits
    traits.restype, traits.argtypes = ctypes.POINTER(_Traits), [ctypes.c_int]
    address = traits(number).contents.to_float
    return _TO_FLOAT(address) if address else None


def valid(tensor: Tensor, data: bytes) -> bool:
    """Tell whether bytes are whole blocks of a tensor's type without NaN or infinity among their scales."""
    check = libggml.ggml_validate_row_data
    check.restype, check.argtypes = ctypes.c_bool, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    return bool(check(NUMBERS[tensor.type], data, len(data)))


def floats(tensor: Tensor, data: bytes) -> Floats:
    """Return the weights that bytes of a tensor stand for."""
    convert = _to_float(NUMBERS[tensor.type])
    if convert is None:
        return np.frombuffer(data, np.float32)
    _, block, size = TYPES[NUMBERS[tensor.type]]
    values = np.empty(len(data) // size * block, np.float32)
    source = ctypes.create_string_buffer(data, len(data))
    convert(ctypes.addressof(source), values.ctypes.data, values.size)
    return values


@dataclass(frozen=True)
class Weights:
    """A GGUF whose tensors are read."""

    path: Path
    header: Header

    @classmethod
    def of(cls, path: Path) -> Weights:
        """Read the header.

        Raises:
            LabError: NOT_FOUND or TOOLCHAIN, as `read_header`.
        """
        return cls(path, read_header(path))

    def tensor(self, name: str) -> Tensor | None:
        return next((tensor for tensor in self.header.tensors if tensor.name == name), None)

    def slabs(self, tensor: Tensor) -> Iterator[bytes]:
        """Yield a tensor's bytes in whole rows, about SLAB weights at a time."""
        _, block, size = TYPES[NUMBERS[tensor.type]]
        row = tensor.shape[0]
        step = max(1, SLAB // row) * row // block * size
        with self.path.open("rb") as file:
            file.seek(self.header.data_start + tensor.offset)
            left = tensor.bytes
            while left:
                data = file.read(min(step, left))
                left -= len(data)
                yield data


def unsound(product: Path, twin: Path | None, base: Path | None) -> dict[str, str]:
    """Return the tensors that cannot be right, by name, and why.

    Args:
        product: the file.
        twin: the same model in F16, if there is one: each chunk of weights is compared with it.
        base: else the model that it was tuned from in F16: shapes and the size of weights are compared.

    Raises:
        LabError: NOT_FOUND or TOOLCHAIN, a file cannot be read.
    """
    ours = Weights.of(product)
    reference = twin or base
    other = Weights.of(reference) if reference else None
    names = {tensor.name for tensor in ours.header.tensors}
    found = {
        tensor.name: "is missing" for tensor in (other.header.tensors if other else ()) if tensor.name not in names
    }
    with ThreadPoolExecutor(WORKERS) as pool:
        reasons = pool.map(lambda tensor: _reason(ours, tensor, other, twin is not None), ours.header.tensors)
        for tensor, reason in zip(ours.header.tensors, reasons, strict=True):
            if reason:
                found[tensor.name] = reason
    return found


def _reason(ours: Weights, tensor: Tensor, other: Weights | None, close: bool) -> str | None:
    theirs = other.tensor(tensor.name) if other else None
    if theirs is not None and theirs.shape != tensor.shape:
        return f"has the shape {tensor.shape}, not {theirs.shape}"
    scale = 0.0
    if other is not None and theirs is not None:
        squares = sum(float(np.square(floats(theirs, data), dtype=np.float64).sum()) for data in other.slabs(theirs))
        scale = (squares / max(theirs.weights, 1)) ** 0.5
    largest = limit = 0.0
    pairs = zip(ours.slabs(tensor), _slabs(other, theirs), strict=False)
    for data, its in pairs:
        if not valid(tensor, data):
            return "holds values that are no numbers"
        values = floats(tensor, data)
        if not np.isfinite(values).all():
            return "holds values that are no numbers"
        if theirs is None:
            continue
        wanted = floats(theirs, its)
        if close and (error := _error(values, wanted, tensor.shape[0], scale)) > ERROR_LIMIT:
            return f"differs from the F16 file's by {error:.2g} of its size"
        largest, limit = max(largest, float(np.abs(values).max())), max(limit, float(np.abs(wanted).max()))
    if theirs is not None and largest > GROWTH_LIMIT * limit:
        return f"has weights up to {largest:.3g}, the base up to {limit:.3g}"
    return None


def _slabs(other: Weights | None, tensor: Tensor | None) -> Iterator[bytes]:
    if other is not None and tensor is not None:
        yield from other.slabs(tensor)
        return
    while True:
        yield b""


def _error(values: Floats, wanted: Floats, width: int, scale: float) -> float:
    """Return the largest relative RMS error of a chunk of a row."""
    chunk = CHUNK if width % CHUNK == 0 else width
    wrong = np.sqrt(np.square(values - wanted).reshape(-1, chunk).mean(axis=1))
    size = np.sqrt(np.square(wanted).reshape(-1, chunk).mean(axis=1))
    size = np.maximum(size, QUIET * scale)
    return float(np.max(wrong / np.maximum(size, np.finfo(np.float32).tiny)))
