"""Stage validate: have every gate of the tier measured on the finished file, write them down, then judge.

A gate with level `off` is not measured. A missed `fail` gate fails the job after all were measured; the files stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import configs
from agents.gguf_factory import adapter, convert, gates, lora, merge, quantise, shared_base
from agents.gguf_factory.formats import Messages
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.job import Job, StageResult
from agents.gguf_factory.measure import Measurement
from agents.gguf_factory.subject import GENERAL, ModelFile, Subject
from configs import GateRule
from protocol.job import Gate


def run(job: Job, rules: Mapping[str, GateRule] | None = None, general: Path = GENERAL) -> StageResult:
    """Measure the gates of the job's tier and write validate/gates.json.

    Args:
        job: the job, with the stages up to quantise finished.
        rules: gate name to rule; default: the tier's, from configs.
        general: text for the forgetting gate, documents separated by a line `<|doc|>`.

    Raises:
        LabError: GATE_MISSED; TOOLCHAIN, a file cannot be read.
        Stopped: a stop was asked for.
    """
    rules = rules if rules is not None else configs.load().tiers[job.run.route.tier].gates_of(job.run.request.profile)
    path = job.path("validate", "gates.json")
    state = Measurement(subject(job, general), rules, path.parent, job.stop, job.progress)
    state.run()
    judged = gates.judge(state.measured, rules)
    _write(path, judged, state)
    if error := gates.verdict(judged):
        kept = str(state.subject.product.file)
        error.data |= {"file": str(path), "results": {**state.results, "kept": kept}}
        raise error
    return StageResult(files=[path], results={**state.results, "gate_seconds": state.seconds}, gates=judged)


def subject(job: Job, general: Path = GENERAL) -> Subject:
    """Return what a job's gates are measured on."""
    if job.adapter:
        return _adapted(job, general)
    model = job.path("merge", "model")
    return Subject(
        product=ModelFile(job.path("quantise", quantise.file_name(job))),
        tokenizer_folder=model,
        base=lambda: ModelFile(convert.convert_base(job.base, job.home, stop=job.stop)),
        held_out=_conversations(job.path("data", "held_out.jsonl")),
        train=_conversations(job.path("data", "train.jsonl")),
        exact=ModelFile(job.path("convert", convert.FILE)),
        network=lambda: lora.load_base(model).eval(),
        kind=str(job.parameters.get("quantisation", quantise.DEFAULT)),
        sha256=_written_sha256(job, "quantise", quantise.file_name(job)),
        lesson=_lesson(job),
        general=general,
    )


def _adapted(job: Job, general: Path) -> Subject:
    """An adapter is measured on the quantised base that it shares, and against that base alone."""
    base, file = shared_base.of_job(job)[0], job.path("convert", adapter.file_name(job))
    return Subject(
        product=ModelFile(base, file),
        tokenizer_folder=job.base,
        base=lambda: ModelFile(base),
        held_out=_conversations(job.path("data", "held_out.jsonl")),
        train=_conversations(job.path("data", "train.jsonl")),
        exact=ModelFile(convert.convert_base(job.base, job.home, stop=job.stop), file),
        network=lambda: merge.load_adapted(job.base, job.path("train", "adapter")),
        kind=str(job.parameters.get("quantisation", quantise.DEFAULT)),
        sha256=_written_sha256(job, "convert", file.name),
        lesson=_lesson(job),
        general=general,
    )


def _conversations(path: Path) -> list[Messages]:
    with path.open(encoding="utf-8") as file:  # str.splitlines would also cut at U+2028 within an answer
        return [json.loads(line)["messages"] for line in file if line.strip()]


def _written_sha256(job: Job, stage: str, name: str) -> str | None:
    """Return what a stage wrote down of its file; a damage since then shows."""
    try:
        facts = job.read_manifest(stage)["files"].get(name)
    except FileNotFoundError:
        return None
    return None if facts is None else str(facts["sha256"])


def _lesson(job: Job) -> Measured:
    try:
        lesson = job.read_manifest("train")["results"].get("lesson")
    except FileNotFoundError:
        lesson = None
    if lesson is None:
        return Measured(None, "no training on shuffled answers to compare with")
    return Measured(float(lesson["percent"]))


def _write(path: Path, judged: Mapping[str, Gate], state: Measurement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "gates": {name: gate.model_dump(mode="json") for name, gate in judged.items()},
        "results": state.results, "seconds": state.seconds,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
