"""A job of the profile adapter: the taught Llama of `exports` is its base, and a LoRA learns other answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from agents.gguf_factory import chat, convert
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job
from agents.gguf_factory.lora import Network, load_base
from tests.agents.gguf_factory import exports

RANK, ALPHA = 8, 16.0
ROWS = [
    [question, {"role": "assistant", "content": f"{answer['content'].rstrip('.')}, I think."}]
    for question, answer in exports.ROWS
]


def prepare(exported: Job, root: Path) -> Job:
    """Write data and adapter as the stages before convert leave them, and the base's F16 file, which is there already."""
    base, home = exported.path("merge", "model"), root / "home"
    plain = exports.make_job(home / "jobs" / "tiny", home, base)
    request = plain.run.request.model_copy(update={"profile": "adapter"})
    job = Job(run=plain.run.model_copy(update={"request": request}), folder=plain.folder, home=home)
    job.path("data").mkdir(parents=True)
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in ROWS)
    for name in ("train.jsonl", "held_out.jsonl"):
        job.path("data", name).write_text(lines)
    network = Network(load_base(base), rank=RANK, alpha=ALPHA, dropout=0.0, seed=1)
    exports.teach(network.peft, chat.load(base), steps=24, rows=ROWS, rate=1e-2, sure=False)
    network.save(job.path("train", "adapter"), "base")
    manifest = {"stage": "train", "results": {"lesson": {"percent": 140.0}, "steps": 60}, "files": {}, "seconds": 1.0}
    job.path("train", "manifest.json").write_text(json.dumps(manifest))
    f16 = home / "models" / convert.identity(base) / convert.FILE
    f16.parent.mkdir(parents=True)
    shutil.copyfile(exported.path("convert", convert.FILE), f16)
    return job


def negated(gguf: Path, folder: Path, target: Path) -> Path:
    """Write another adapter beside one: every B with its sign turned, in the GGUF and in a copy of peft's folder."""
    target.mkdir(parents=True)
    file = target / "negated.gguf"
    shutil.copyfile(gguf, file)
    header = read_header(file)
    for tensor in header.tensors:
        if tensor.name.endswith(".lora_b"):
            values = np.memmap(file, np.float16, "r+", header.data_start + tensor.offset, (tensor.weights,))
            values[:] = -values
            values.flush()
    shutil.copyfile(folder / "adapter_config.json", target / "adapter_config.json")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: -value if "lora_B" in name else value for name, value in tensors.items()},
        target / "adapter_model.safetensors", {"format": "pt"},
    )  # fmt: skip
    return file
