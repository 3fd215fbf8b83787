"""Stage quantise: llama.cpp's own quantiser with an importance matrix of the domain's training text.

    python -m agents.gguf_factory.quantise IN OUT TYPE [IMATRIX]   # what the stage starts as a process of its own

The quantiser is one long C call; only a process can be stopped in it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agents.gguf_factory import child, imatrix, lifeline, sizes
from agents.gguf_factory.gguf_header import Header, read_header
from agents.gguf_factory.job import Job, StageResult, never
from protocol import Code, LabError

FTYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20,
    "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29,
    "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip
"""Quantisations that a job may ask for, with llama.h's LLAMA_FTYPE_MOSTLY_* numbers."""

DEFAULT = "Q4_K_M"
PLAIN = frozenset({"F32", "F16", "BF16"})
"""Quantisations that no importance matrix changes."""
BUFFER_BYTES = 512 * 1024 * 1024
"""Most bytes of rows that the quantiser holds; llama.cpp's default of 8 GiB would be all of a small machine's memory."""
IMATRIX = "imatrix.safetensors"
THREADS = 2


def ftype(name: str) -> int:
    """Return llama.cpp's number of a quantisation.

    Raises:
        LabError: INVALID_PARAMS with field `quantisation` and the known names.
    """
    if name not in FTYPES:
        raise LabError(
            Code.INVALID_PARAMS, f"the quantisation {name!r} is not known.",
            advice=f"Use one of {', '.join(FTYPES)}.", field="quantisation",
        )  # fmt: skip
    return FTYPES[name]


def kind(header: Header) -> str:
    """Return which quantisation a file says it has, or "" where it does not say or it is unknown."""
    number = header.values.get("general.file_type")
    return next((name for name, known in FTYPES.items() if known == number), "")


def file_name(job: Job) -> str:
    """Return the product's name: <domain>-<type>.gguf."""
    return f"{job.run.route.domain}-{job.parameters.get('quantisation', DEFAULT)}.gguf"


def run(job: Job) -> StageResult:
    """Write quantise/<domain>-<type>.gguf.

    Raises:
        LabError: INVALID_PARAMS for an unknown type, TOOLCHAIN where the quantiser fails.
        Stopped: a stop was asked for.
    """
    name = str(job.parameters.get("quantisation", DEFAULT))
    ftype(name)
    source, target = job.path("convert", "model-f16.gguf"), job.path("quantise", file_name(job))
    matrix = job.path("quantise", IMATRIX)
    tokens = 0
    if name not in PLAIN and job.parameters.get("imatrix", True):
        job.progress(note="measuring which weights matter")
        tokens = importance(source, _trained_texts(job), matrix, stop=job.stop)
    job.progress(note=f"quantising to {name}")
    quantise(source, target, name, matrix if tokens else None, stop=job.stop)
    header = read_header(target)
    results: dict[str, Any] = {
        "type": name, "bytes": target.stat().st_size, "bits_per_weight": header.bits_per_weight,
        "fallback_percent": fallback_percent(header, name), "imatrix_tokens": tokens or None,
        "types": {kind: sum(tensor.type == kind for tensor in header.tensors)
                  for kind in sorted({tensor.type for tensor in header.tensors})},
    }  # fmt: skip
    return StageResult(files=[target, matrix] if tokens else [target], results=results)


def quantise(
    source: Path,
    target: Path,
    name: str,
    matrix: Path | None,
    *,
    stop: Callable[[], bool] = never,
    output: Path | None = None,
) -> None:
    """Quantise an F16 GGUF in a process of its own; the file appears whole or not at all.

    Args:
        source, target: the F16 file and what becomes of it.
        name: of the quantisation.
        matrix: the importance matrix that `importance` wrote; None: round plainly.
        stop: asked all the time; true ends the process.
        output: what the process prints; default: beside the target.

    Raises:
        LabError: INVALID_PARAMS, TOOLCHAIN.
        Stopped: `stop` was true.
    """
    ftype(name)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    extra = [matrix] if matrix else []
    try:
        child.run(
            child.module("agents.gguf_factory.quantise", source, temporary, name, *extra, forked=True),
            output=output or target.with_suffix(".log"), stop=stop, what="the quantiser",
        )  # fmt: skip
        read_header(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def fallback_percent(header: Header, name: str) -> float:
    """Return which share of the matrices' weights has another kind of type than was asked for, in percent.

    Rows that are no multiple of 256 (k-quants) or 32 (others) cannot have it and take more bits.
    """
    matrices = [tensor for tensor in header.tensors if len(tensor.shape) > 1]
    total = sum(tensor.weights for tensor in matrices)
    return 100 * sum(tensor.weights for tensor in matrices if _fell_back(tensor.type, name)) / total


def _fell_back(kind: str, name: str) -> bool:
    """Tell whether a matrix's type is none of those that llama.cpp gives such a file on purpose."""
    block = sizes.BLOCKS[sizes.MAIN.get(name, name)][0]
    if block == 256:
        return sizes.BLOCKS.get(kind, (256,))[0] != 256
    better = {
        "Q4_0": ("Q4_1", "Q6_K"),
        "Q4_1": ("Q6_K",),
        "Q5_0": ("Q5_1", "Q6_K"),
        "Q5_1": ("Q6_K",),
        "IQ4_NL": ("Q5_K", "Q6_K"),
    }
    return kind not in (name, *better.get(name, ()))


def importance(source: Path, texts: Iterable[Sequence[int]], target: Path, *, stop: Callable[[], bool] = never) -> int:
    """Measure and write the importance matrix of an F16 file; return the tokens of text that were read.

    Raises:
        LabError: TOOLCHAIN, llama.cpp does not take the file.
        Stopped: `stop` was true.
    """
    matrix, tokens = imatrix.measure(source, texts, stop=stop)
    imatrix.save(matrix, target)
    return tokens


def _trained_texts(job: Job) -> Iterator[list[int]]:
    from agents.gguf_factory import chat

    tokenizer = chat.load(job.path("merge", "model"))
    length = int(job.parameters.get("sequence_length", imatrix.LENGTH))
    with job.path("data", "train.jsonl").open(encoding="utf-8") as file:
        for line in file:
            for sample in chat.samples(tokenizer, json.loads(line)["messages"], length):
                yield sample.ids


def _quantise_here(source: Path, target: Path, name: str, matrix: Path | None) -> int:
    """Call the quantiser; returns its status, 0 when all went well."""
    import llama_cpp
    import numpy as np

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = ftype(name)
    options.nthread = THREADS
    options.max_buf_size = BUFFER_BYTES
    arrays = imatrix.read(matrix) if matrix else {}
    kept = {key: np.ascontiguousarray(values, dtype=np.float32) for key, values in sorted(arrays.items())}
    entries = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()  # the last one stays empty: it ends the list
    for entry, (key, values) in zip(entries, kept.items(), strict=False):
        entry.name = key.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    if kept:
        options.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    return int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(options)))


def main(arguments: list[str]) -> int:
    lifeline.die_with_parent()
    source, target, name, *extra = arguments
    return 1 if _quantise_here(Path(source), Path(target), name, Path(extra[0]) if extra else None) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
