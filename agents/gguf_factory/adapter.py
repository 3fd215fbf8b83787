"""A LoRA as a GGUF of its own: converted from peft's files, marked with the base that it belongs to, and proven whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agents.gguf_factory import child, convert, quantise, toolchain
from agents.gguf_factory.base import base_name
from agents.gguf_factory.gguf_header import Header, read_header
from agents.gguf_factory.gguf_values import add_values
from agents.gguf_factory.hashes import Hashes, file_sha256
from agents.gguf_factory.job import Job, StageResult, never
from agents.gguf_factory.llama import BASE_SHA256
from protocol import Code, LabError

RANK, ALPHA = "adapter.lora.rank", "adapter.lora.alpha"
BASE_NAME, BASE_QUANTISATION = "meetara.base.name", "meetara.base.quantisation"
INEXPRESSIBLE = ("use_rslora", "alpha_pattern", "rank_pattern")
"""peft's settings that scale layers differently; llama.cpp scales each by alpha ÷ rank alone (llama-adapter.h, get_scale)."""


def file_name(job: Job) -> str:
    """Return the product's name: <domain>-adapter.gguf."""
    return f"{job.run.route.domain}-adapter.gguf"


def is_adapter(header: Header) -> bool:
    """Tell whether a GGUF is an adapter rather than a whole model."""
    return header.values.get("general.type") == "adapter"


def run(job: Job) -> StageResult:
    """Stage convert of the profile adapter: write convert/<domain>-adapter.gguf from train/adapter.

    The base's F16 file, which the next stages need, is made beside it where it is missing.

    Raises:
        LabError, Stopped: as `convert_adapter`.
    """
    target = job.path("convert", file_name(job))
    job.progress(note="converting the adapter")
    with ThreadPoolExecutor(2) as pool:  # two processes: most of the time goes into importing torch, on one core each
        base = pool.submit(convert.convert_base, job.base, job.home, stop=job.stop)
        results = convert_adapter(
            job.path("train", "adapter"), job.base, target, name=base_name(job.run.route.base),
            quantisation=str(job.parameters.get("quantisation", quantise.DEFAULT)), stop=job.stop,
            digest_of=Hashes(job.home).sha256,
        )  # fmt: skip
        base.result()
    return StageResult(files=[target], results=results)


def convert_adapter(
    folder: Path, base: Path, target: Path, *, name: str, quantisation: str, stop: Callable[[], bool] = never,
    digest_of: Callable[[Path], str] = file_sha256,
) -> dict[str, Any]:  # fmt: skip
    """Convert peft's adapter into an F16 GGUF; the file appears whole or not at all.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        base: the base's folder in transformers' format.
        target: the file to write.
        name: of the base, for people.
        quantisation: of the base that it will be used on.
        stop: as in `convert.convert`.
        digest_of: gives a file's sha256, as in `convert.identity`.

    Returns:
        modules, tensors, rank, alpha, bytes and base_sha256.

    Raises:
        LabError: CONFIGURATION, the adapter has what no GGUF can carry; TOOLCHAIN, the converter failed; INTERNAL, it left
            something out.
        Stopped: `stop` was true.
    """
    from agents.gguf_factory.merge import check_adapter

    modules = check_adapter(folder, also=INEXPRESSIBLE)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    program = toolchain.check() / "convert_lora_to_gguf.py"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        child.run(
            child.script(program, folder, "--base", base, "--outfile", temporary, "--outtype", "f16"),
            output=target.with_suffix(".log"), stop=stop, what=f"converting the adapter {folder}",
            environment=toolchain.environment(program.parent),
        )  # fmt: skip
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        check_whole(read_header(temporary), len(modules), rank, alpha)
        digest = content(base, digest_of)
        add_values(temporary, {
            RANK: rank, BASE_SHA256: digest, BASE_NAME: name, BASE_QUANTISATION: quantisation,
        })  # fmt: skip
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "modules": len(modules), "tensors": 2 * len(modules), "rank": rank, "alpha": alpha,
        "bytes": target.stat().st_size, "base_sha256": digest,
    }  # fmt: skip


def check_whole(header: Header, modules: int, rank: int, alpha: float) -> None:
    """Check that a converted adapter has all that was trained.

    Raises:
        LabError: INTERNAL, what is missing or different.
    """
    found, wrong = header.values.get(ALPHA), None
    if len(header.tensors) != 2 * modules:
        wrong = f"has {len(header.tensors)} tensors, the adapter {modules} modules of two"
    elif not all(rank in tensor.shape for tensor in header.tensors):
        wrong = f"has tensors of another rank than {rank}"
    elif found != alpha:
        wrong = f"has alpha {found}, the adapter {alpha}"
    if wrong:
        raise LabError(
            Code.INTERNAL, f"the converted adapter {wrong}.",
            advice="The trained adapter is untouched; report this with its adapter_config.json.",
        )  # fmt: skip


def content(base: Path, digest_of: Callable[[Path], str] = file_sha256) -> str:
    """Return the sha256 over names and contents of a base's weights, config and tokenizer.

    Unlike `convert.identity` it leaves the converter out: an adapter fits a base whichever converter wrote it.
    """
    digest = hashlib.sha256()
    for name in sorted({*(path.name for path in base.glob("*.safetensors")), *convert.TOKENIZER_FILES}):
        if (path := base / name).is_file():
            digest.update(f"{name}\0{digest_of(path)}\n".encode())
    return digest.hexdigest()
