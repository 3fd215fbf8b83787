"""Stage convert: the merged model becomes an F16 GGUF, by llama.cpp's own converter in a process of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import configs
from agents.gguf_factory import base as bases
from agents.gguf_factory import child, converter, storage, support, toolchain
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.hashes import Hashes, file_sha256
from agents.gguf_factory.job import Job, StageResult, never
from protocol import Code, LabError

FILE = storage.F16
TOKENIZER_FILES = (
    "config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "generation_config.json", "vocab.json", "merges.txt",
)  # fmt: skip


def run(job: Job) -> StageResult:
    """Write convert/model-f16.gguf from merge/model, and the base's own F16 file into the cache (validate needs it).

    Raises:
        LabError: TOOLCHAIN, the converter is missing or failed.
        Stopped: a stop was asked for.
    """
    source, target = job.path("merge", "model"), job.path("convert", FILE)
    program = toolchain.converter()
    job.progress(note="converting to F16")
    with ThreadPoolExecutor(2) as pool:  # two processes: most of the time goes into importing torch, on one core each
        base = pool.submit(convert_base, job.base, job.home, program=program, stop=job.stop)
        made = pool.submit(convert, source, target, program=program, stop=job.stop)
        made.result()
        base_file = base.result()
    header = read_header(target)
    return StageResult(
        files=[target],
        results={"bytes": target.stat().st_size, "tensors": len(header.tensors), "weights": header.weights,
                 "base_sha256": base_file.parent.name},
    )  # fmt: skip


def convert(source: Path, target: Path, *, program: Path, stop: Callable[[], bool] = never) -> None:
    """Convert a folder in transformers' format into an F16 GGUF; the file appears whole or not at all.

    Raises:
        LabError: TOOLCHAIN with the converter's last lines; BAD_DATA, the folder is not a whole model.
        Stopped: `stop` was true.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    pre = support.pre_name(bases.read(source))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        child.run(
            child.script(Path(converter.__file__), program, pre or converter.UNKNOWN, source, temporary),
            output=target.with_suffix(".log"), stop=stop, what=f"converting {source}",
            environment=toolchain.environment(program.parent),
        )  # fmt: skip
        if not temporary.is_file():
            raise LabError(Code.TOOLCHAIN, f"the converter left no file for {source}.", advice="Run meetara doctor.")
        read_header(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def convert_base(base: Path, home: Path, *, program: Path | None = None, stop: Callable[[], bool] = never) -> Path:
    """Return the base itself as an F16 GGUF, cached by what it is made from.

    Args:
        base: folder in transformers' format.
        home: MEETARA_HOME; the file is models/<sha256 of weights, tokenizer and converter>/model-f16.gguf.
        program: the checked converter, default `toolchain.converter()`.
        stop: as in `convert`.

    Raises:
        LabError: TOOLCHAIN.
        Stopped: `stop` was true.
    """
    program = program or toolchain.converter()
    target = home / "models" / identity(base, Hashes(home).sha256) / FILE
    try:
        os.utime(target)  # that it was used: what was not for longest goes first
    except FileNotFoundError:
        convert(base, target, program=program, stop=stop)
        storage.shrink_models(home, configs.load().storage, target)
    return target


def identity(base: Path, digest_of: Callable[[Path], str] = file_sha256) -> str:
    """Return the sha256 over names and contents of a base's weights, config and tokenizer, and of the converter.

    Args:
        digest_of: gives a file's sha256; `hashes.Hashes.sha256` does not read large files again.
    """
    digest = hashlib.sha256(toolchain.LIST_SHA256.encode())
    names = sorted({*(path.name for path in base.glob("*.safetensors")), *TOKENIZER_FILES})
    for name in names:
        if (path := base / name).is_file():
            digest.update(f"{name}\0{digest_of(path)}\n".encode())
    return digest.hexdigest()
