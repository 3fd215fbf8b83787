"""The importance matrix: mean square of what enters each matrix of a GGUF, measured on text.

llama.cpp's quantiser takes it as weights of the rounding error. Its own tool is a program that no wheel brings; but any
context can be told to show each operation's result, which is how that tool works too. So it serves every model that
llama.cpp runs, and needs neither torch nor the model's weights in another form.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_cpp._ggml import libggml
from safetensors.numpy import load_file, save_file

from agents.gguf_factory import llama
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Stopped, never
from protocol import Code, LabError

Matrix = dict[str, npt.NDArray[np.float32]]

TOKENS = 4_096  # text that is read: seconds on two cores, and thousands of values behind each mean
LENGTH = 512  # most tokens of one text; what is longer is cut
F32 = 0  # GGML_TYPE_F32


class _Tensor(ctypes.Structure):
    """ggml.h's struct ggml_tensor up to the name; a test compares it with torch, each call the name with ggml's own."""


_Tensor._fields_ = (
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
)  # fmt: skip


@cache
def _operation(number: int) -> bytes:
    libggml.ggml_op_name.restype, libggml.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    return bytes(libggml.ggml_op_name(number))


class _Watch:
    """Sums squares of what is multiplied with each of the named matrices."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {name.encode(): name for name in names}
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.rows: dict[str, int] = {}
        self.problem: LabError | None = None

    def __call__(self, address: int, ask: bool, _: object) -> bool:
        """Be asked by ggml whether to be shown a result, and then be shown it; False ends the computation."""
        tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if _operation(tensor.op) != b"MUL_MAT":
            return not ask
        matrix = tensor.src[0].contents
        name = self.names.get(matrix.name)
        if name is None or ask:
            return name is not None if ask else True
        entering = tensor.src[1].contents
        width, rows = entering.ne[0], entering.ne[1] * entering.ne[2] * entering.ne[3]
        if entering.type != F32 or entering.nb[0] != 4 or entering.nb[1] != 4 * width or width != matrix.ne[0]:
            self.problem = LabError(
                Code.TOOLCHAIN, f"llama.cpp multiplies {name} with numbers in a form that is not known here.",
                advice="Install the pinned llama-cpp-python, or ask for imatrix: false.",
            )  # fmt: skip
            return False
        numbers = ctypes.cast(entering.data, ctypes.POINTER(ctypes.c_float))
        values = np.ctypeslib.as_array(numbers, shape=(rows, width))
        squares = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        self.sums[name] = squares if name not in self.sums else self.sums[name] + squares
        self.rows[name] = self.rows.get(name, 0) + rows
        return True


def measure(
    file: Path, texts: Iterable[Sequence[int]], *, tokens: int = TOKENS, stop: Callable[[], bool] = never
) -> tuple[Matrix, int]:
    """Run texts through a model and return tensor name to mean square per column, and the tokens that were read.

    Matrices of experts (MUL_MAT_ID) are not measured; they are rounded without weights.

    Args:
        file: the model as a GGUF, best in F16.
        texts: token ids of each text.
        tokens: stop reading after this many.
        stop: asked before each text.

    Raises:
        LabError: TOOLCHAIN, llama.cpp does not take the file.
        Stopped: `stop` was true.
    """
    watch = _Watch(tensor.name for tensor in read_header(file).tensors if len(tensor.shape) > 1)
    seen = 0
    with llama.load(file, n_ctx=LENGTH, threads=llama.threads_for(file, 2), watch=watch) as model:
        for ids in texts:
            if seen >= tokens:
                break
            if stop():
                raise Stopped("measuring the importance matrix was stopped")
            part = ids[: min(LENGTH, tokens - seen)]
            try:
                model.read(part)
            except LabError as error:
                raise watch.problem or error from error
            seen += len(part)
    return {name: (total / watch.rows[name]).astype(np.float32) for name, total in watch.sums.items()}, seen


def save(matrix: Matrix, path: Path) -> None:
    """Write a matrix as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(matrix, path)


def read(path: Path) -> Matrix:
    """Read what `save` wrote."""
    return load_file(path)
