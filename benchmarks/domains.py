"""Fine-tune the starter base on many domains, one request each through a running lab, and tabulate what came out.

    python -m benchmarks.domains --data ../shared/data              # all domains with enough held-out rows
    python -m benchmarks.domains --data ../shared/data --only fitness music
    python -m benchmarks.domains --page                              # only docs/results/domains.md, from the JSON

Each job's end is kept in docs/results/domains.json at once; a domain that is there for the same base is not run again. Training rows
whose answers share a run of words with an evaluation answer are left out: some public sets repeat themselves in both parts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agents.gguf_factory.data import RUN_WORDS, runs
from benchmarks.cluster import lab_up
from benchmarks.result import PROJECT, Machine, describe_machine, utc_now
from bus.mosquitto import find_mosquitto
from configs import load
from meetara.lab import Lab
from protocol import JobSnapshot, State
from protocol.job import Gate
from starter.corpus import evaluated

LEAST_ROWS = 20
"""Held-out rows; a perplexity over fewer answers says little about a domain."""
RESULTS = PROJECT / "docs" / "results" / "domains.json"
PAGE = RESULTS.with_suffix(".md")
BASE = PROJECT / "models" / "starter" / "model.safetensors"
NUMBERS = (
    "base_perplexity", "tuned_perplexity", "held_out_measured_rows", "tokens", "steps", "tokens_per_s", "seconds",
    "train_seconds", "bits_per_weight", "overlap",
)  # fmt: skip
"""What is kept of a job's results."""


class Run(BaseModel):
    """How one domain's job ended."""

    domain: str
    state: State
    reason: str | None
    bytes: int | None
    left_out: int
    gates: dict[str, Gate]
    results: dict[str, Any]
    at: datetime


class Table(BaseModel):
    """All runs on one base and machine."""

    base_sha256: str
    machine: Machine
    runs: list[Run]


def domains(data: Path) -> list[str]:
    """Return the lab's domains that have training and enough evaluation rows in the data folder."""
    return [
        name for name in sorted(load().domains)
        if (data / "domains" / f"{name}.jsonl").exists()
        and len((data / "domains_heldout" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()) >= LEAST_ROWS
    ]  # fmt: skip


def read(base: str) -> Table:
    """Return what was measured on this base so far."""
    if RESULTS.exists():
        table = Table.model_validate_json(RESULTS.read_bytes())
        if table.base_sha256 == base:
            return table
    return Table(base_sha256=base, machine=describe_machine(find_mosquitto()), runs=[])


def clean(train: Path, evaluation: Path, out: Path) -> int:
    """Write the training rows whose answers share no RUN_WORDS words in a row with an evaluation answer; return how many do."""
    avoid = evaluated([evaluation])
    lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
    strangers = [line for line in lines if avoid.isdisjoint(runs(json.loads(line)["output"]))]
    out.parent.mkdir(exist_ok=True)
    out.write_text("".join(strangers), encoding="utf-8")
    return len(lines) - len(strangers)


def kept(domain: str, final: JobSnapshot, left_out: int) -> Run:
    """Return what the table needs of a job's end."""
    gguf = next((artefact for artefact in final.artefacts if artefact.kind == "gguf"), None)
    numbers = {name: final.results[name] for name in NUMBERS if name in final.results}
    return Run(
        domain=domain, state=final.state, reason=final.reason, gates=final.gates, results=numbers, at=utc_now(),
        bytes=gguf.bytes if gguf else final.results.get("bytes"), left_out=left_out,
    )  # fmt: skip


async def measure(data: Path, wanted: list[str], table: Table) -> None:
    """Run the missing domains one after another; each one's end is written down when it is known."""
    done = {run.domain for run in table.runs}
    async with lab_up() as up, Lab(host=up.host, port=up.port, home=up.home, name="domains") as lab:
        for domain in wanted:
            if domain in done:
                continue
            rows, evaluation = up.home / "rows" / f"{domain}.jsonl", data / "domains_heldout" / f"{domain}.jsonl"
            left_out = clean(data / "domains" / f"{domain}.jsonl", evaluation, rows)
            job = await lab.train(domain=domain, dataset=rows, eval_dataset=evaluation, tier="starter")
            async for update in job.updates():
                if isinstance(update, JobSnapshot):
                    final = update
            run = kept(domain, final, left_out)
            table.runs = sorted([*table.runs, run], key=lambda one: one.domain)
            RESULTS.write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")
            quality = run.gates.get("quality_percent")
            print(domain, run.state.value, quality and quality.value, run.reason or "", flush=True)


def page(table: Table) -> str:
    """Return docs/results/domains.md."""
    passed = sum(run.state is State.DONE for run in table.runs)
    machine = table.machine
    lines = [
        "| domain | ends | quality, % | perplexity of held-out answers: base → tuned | forgetting, % | stops, % | lesson, % |"
        " bytes | minutes | training, tokens/s | held-out rows | training rows left out |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(row(run) for run in table.runs),
    ]
    missed = [f"- {run.domain}: {run.reason}" for run in table.runs if run.reason]
    return f"""# The starter base on {len(table.runs)} domains

Written by `python -m benchmarks.domains` from [domains.json](domains.json); edits are lost. One training request a domain through a
running lab, tier `starter` as it ships, all public training rows of the domain up to the tier's limit, measured on the domain's evaluation
file. No evaluation answer shares {RUN_WORDS} words in a row with the base's pre-training or with the rows of its own training: training rows that
do are left out and counted in the last column. Definitions: [factory.md](../factory.md#gates). **{passed} of {len(table.runs)}** pass all gates
that fail a job; bold values missed their gate.

{chr(10).join(lines)}

{"What the others miss:" + chr(10) + chr(10) + chr(10).join(missed) if missed else ""}

Base: sha256 `{table.base_sha256[:16]}…`. {machine.processor}, {machine.cores} cores, {machine.memory_gb} GB, {machine.system}, Python
{machine.python}, commit {machine.commit}; load of the machine at the beginning: {machine.load}.
"""


def row(run: Run) -> str:
    """Return a domain's line."""

    def gate(name: str, form: str) -> str:
        found = run.gates.get(name)
        if found is None or found.value is None:
            return "not measured"
        return format(found.value, form) if found.ok else f"**{format(found.value, form)}**"

    def value(name: str, form: str, scale: float = 1) -> str:
        found = run.results.get(name)
        return "not measured" if found is None else format(found / scale, form)

    cells = (
        run.domain, run.state.value, gate("quality_percent", ".1f"),
        f"{value('base_perplexity', '.1f')} → {value('tuned_perplexity', '.1f')}", gate("forgetting_percent", ".1f"),
        gate("stops_percent", ".0f"), gate("lesson_percent", ".1f"), "none" if run.bytes is None else f"{run.bytes:,}",
        value("seconds", ".1f", 60) if run.state is State.DONE else "not measured", value("tokens_per_s", ",.0f"), value("held_out_measured_rows", ".0f"), str(run.left_out),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with domains and domains_heldout")
    parser.add_argument("--only", nargs="*", help="domains; default: all that can be measured")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    options = parser.parse_args()
    if not options.page and options.data is None:
        parser.error("--data is missing")
    table = read(hashlib.sha256(BASE.read_bytes()).hexdigest())
    if not options.page:
        asyncio.run(measure(options.data.resolve(), options.only or domains(options.data), table))
    PAGE.write_text(page(table), encoding="utf-8")
    print(json.dumps({run.domain: run.state.value for run in table.runs}, indent=1))


if __name__ == "__main__":
    main()
