"""A random two-layer Llama with the starter's tokenizer, taught a dozen answers, and the job that exports it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama import LlamaForCausalLM

import configs
from agents.gguf_factory import chat, merge
from agents.gguf_factory.doctor import STARTER, write_tiny
from agents.gguf_factory.job import Job
from configs import GateRule
from protocol.job import Plan, Route, RunRequest, TrainRequest

PARAMETERS: dict[str, Any] = {"sequence_length": 128, "quantisation": "Q4_K_M", "seed": 1}
ROWS = [
    [{"role": "user", "content": f"What goes with {one}?"}, {"role": "assistant", "content": f"With {one} goes {two}."}]
    for one, two in (
        ("bread", "butter"), ("salt", "pepper"), ("rain", "an umbrella"), ("night", "the moon"), ("tea", "milk"),
        ("a lock", "a key"), ("winter", "snow"), ("a ship", "the sea"), ("a nail", "a hammer"), ("music", "dance"),
    )
]  # fmt: skip
GENERAL = "\n<|doc|>\n".join(
    f"Document {number}. The river runs past the mill and on towards the sea, as it did in the year {1800 + number}."
    for number in range(6)
)


def make_job(folder: Path, home: Path, base: Path, **parameters: Any) -> Job:
    run = RunRequest(
        job="tiny", lease="lease", fence=1, attempt=1, price_micros_per_hour=0,
        request=TrainRequest(domain="sleep", dataset="rows.jsonl"),
        route=Route(
            domain="sleep", category="health", tier="starter", base=str(base), voice="calm", empathy="high",
            quality_floor=101.0, safety_critical=False,
        ),
        plan=Plan(
            rows=10, held_out_rows=10, tokens=300, steps=40, parameters={**PARAMETERS, **parameters},
            base_parameters=3_000_000, file_bytes=2_000_000, disk_bytes=50_000_000, memory_bytes=500_000_000,
            seconds_p50=60, seconds_p90=120,
        ),
    )  # fmt: skip
    return Job(run=run, folder=folder, home=home)


def teach(
    model: Any, tokenizer: Any, steps: int = 60, rows: list[Any] = ROWS, *, rate: float = 3e-3, sure: bool = True
) -> None:
    """Train all weights that learn on the rows, and where `sure` until the model knows them."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other most of the time
    encoded = [chat.encode(tokenizer, messages) for messages in rows]
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in encoded])
    wanted = torch.tensor([mask + [False] * (length - len(mask)) for _, mask in encoded])
    labels = ids.masked_fill(~wanted, -100)
    optimiser = torch.optim.Adam([weights for weights in model.parameters() if weights.requires_grad], lr=rate)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    assert not sure or loss.item() < 0.5, "the fixture did not learn its rows"


def prepare(root: Path) -> Job:
    """Write base, data and merged model as the stages before convert leave them."""
    base = root / "base"
    write_tiny(base, STARTER)
    job = make_job(root / "home" / "jobs" / "tiny", root / "home", base)
    job.path("data").mkdir(parents=True)
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in ROWS)
    for name in ("train.jsonl", "held_out.jsonl"):
        job.path("data", name).write_text(lines)
    job.path("train").mkdir()
    curve = {"loss": [3.0, 2.0, 1.5, 1.2], "held_out": [{"step": 0, "loss": 3.1}, {"step": 4, "loss": 1.4}]}
    job.path("train", "curve.json").write_text(json.dumps(curve))
    manifest = {"stage": "train", "results": {"lesson": {"percent": 140.0}, "steps": 25}, "files": {}, "seconds": 1.0}
    job.path("train", "manifest.json").write_text(json.dumps(manifest))
    model = LlamaForCausalLM.from_pretrained(base)
    teach(model, chat.load(base))
    write_merged(job, model)
    return job


def write_merged(job: Job, model: LlamaForCausalLM) -> None:
    model.save_pretrained(job.path("merge", "model"))
    for name in merge.TOKENIZER_FILES:
        if (job.base / name).is_file():
            shutil.copyfile(job.base / name, job.path("merge", "model", name))


def copy(job: Job, root: Path) -> Job:
    """Return a job of one's own to break: files are copied, home (with the converted base) is shared."""
    folder = root / "jobs" / "tiny"
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(job.folder, folder)
    return make_job(folder, job.home, job.base)


def rules(profile: str = "edge", **changes: GateRule) -> dict[str, GateRule]:
    """Return the starter tier's gates of a profile; those that a two-layer model cannot or a busy machine may not meet only warn."""
    gates = dict(configs.load().tiers["starter"].gates_of(profile))
    for name in ("forgetting_percent", "load_ms", "private_mb", "quant_kl"):
        if gates[name].level != "off":
            gates[name] = gates[name].model_copy(update={"level": "warn"})
    return {**gates, **changes}
