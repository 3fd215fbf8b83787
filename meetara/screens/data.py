"""`meetara data check`: what is in a data set, what is wrong with it, what a job would take. Needs no lab."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from meetara import show
from meetara.door import FAILED, OK, WRONG, emit
from meetara.request import base_name, data_uri
from protocol import Code, ErrorBody, LabError
from protocol.datacheck import DataFile, DataReport, Finding, Spread

LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of one line from the process: a report has some kilobytes, its excerpts are short."""
BLOCKS = " ▁▂▃▄▅▆▇█"
LINES_SHOWN = 8
FORMS = "Mend or remove them; the forms of rows are in docs/data.md."
VERDICTS = {
    "good": Text("✓ nothing suspicious", style="green"),
    "warnings": Text("! look at the warnings before you train", style="yellow"),
    "unusable": Text("✗ cannot be trained on as it is", style="red"),
}


async def check(
    where: dict[str, Any], file: str, options: dict[str, Any], *, strict: bool, as_json: bool, console: Console
) -> int:
    """Have the factory's check look at a file and show its report.

    Args:
        where: `home`, as the user gave it.
        file: path, URI or hub name.
        options: `eval_data`, `tier`, `base`, `parameters`, as the user gave them.
        strict: warnings are a failure too.

    Returns:
        OK, FAILED for warnings when strict, WRONG when the data set cannot be trained on.
    """
    found = await _report(where, file, options, console=None if as_json else console)
    if as_json:
        emit(found)
    else:
        render(found, console)
    if found.verdict == "unusable":
        return WRONG
    return FAILED if strict and found.verdict == "warnings" else OK


async def _report(where: dict[str, Any], file: str, options: dict[str, Any], *, console: Console | None) -> DataReport:
    command = [sys.executable, "-m", "agents.gguf_factory.check", data_uri(file)]
    if options.get("eval_data"):
        command += ["--eval-data", data_uri(options["eval_data"])]
    if options.get("base"):
        command += ["--base", base_name(options["base"])]
    if options.get("tier"):
        command += ["--tier", options["tier"]]
    if options.get("parameters"):
        command += ["--parameters", json.dumps(options["parameters"])]
    if where.get("home"):
        command += ["--home", str(where["home"])]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT, start_new_session=True,  # with the processes that it starts it is a group of its own
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        with _status(console) as status:
            async for raw in process.stdout:
                line = json.loads(raw)
                if "report" in line:
                    return DataReport.model_validate(line["report"])
                if "error" in line:
                    raise LabError.from_body(ErrorBody.model_validate(line["error"]))
                if status is not None:
                    status.update(_doing(**line["progress"]))
        told = (await errors).decode("utf-8", "replace").strip().splitlines()
        last = told[-1] if told else f"status {await process.wait()}"
        raise LabError(Code.INTERNAL, f"the check ended early: {last}.", advice="Free memory, or check a part of the rows.")
    finally:
        if process.returncode is None:  # nothing of the group is left, also when it is interrupted while it starts
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        errors.cancel()


@contextlib.contextmanager
def _status(console: Console | None) -> Iterator[Any]:
    if console is None or not console.is_terminal:
        yield None
        return
    with console.status("starting") as status:
        yield status


def _doing(what: str, done: int, total: int | None) -> str:
    if total is None:
        return f"{what}: {done:,} rows" if done else what
    return f"{what}: {done:,} of {total:,} rows" if done else f"{what}: {total:,} rows"


def render(found: DataReport, console: Console) -> None:
    """Show a report to a person."""
    console.print(Text(found.data.uri, style="bold"))
    for name, value in _facts(found):
        lines = (value if isinstance(value, Text) else Text(value)).split("\n")
        for number, line in enumerate(lines):
            console.print(Text.assemble((f"  {'' if number else name:<12}", "dim"), line))
    for problem in found.problems:
        if "bad_rows" not in problem.data:
            console.print(Text.assemble(("✗ ", "red"), problem.message))
    for data in (found.data, found.eval_data):
        if data is not None and data.bad_rows:
            _bad_rows(data, console)
    for finding in found.findings:
        _finding(finding, found.data.unit, console)
    console.print(VERDICTS[found.verdict])


def _facts(found: DataReport) -> Iterator[tuple[str, Text | str]]:
    yield "file", _file(found.data)
    if found.eval_data is not None:
        yield "evaluation", f"{found.eval_data.uri}: {_file(found.eval_data)}"
    near = "" if found.near_duplicates is None else f", {found.near_duplicates:,} nearly so"
    yield "duplicates", f"{found.data.duplicates:,} exact (dropped){near}"
    if found.turns is not None:
        answers = found.turns.answers
        several = f"{found.turns.several:,} rows with several answers (at most {answers.most:,})" if found.turns.several else "one answer per row"
        yield "turns", several + (f", {found.turns.system:,} with a system turn" if found.turns.system else "")
    if found.tokens is not None:
        yield "tokens", _spread(found.tokens.row, f"{found.tokens.total:,} in all")
        cut = found.tokens.cut_rows
        share = cut / max(1, found.data.rows - found.data.duplicates)
        yield "longest", (
            f"{cut:,} rows ({share:.1%}) have more than sequence_length {found.tokens.sequence_length}"
            if cut else f"all rows fit sequence_length {found.tokens.sequence_length}"
        )  # fmt: skip
    if (division := found.division) is not None:
        how = "given" if division.given else "held out by the hash of the question"
        more = f", {division.withheld:,} stand on both sides and are left out" if division.withheld else ""
        more += f", {division.unused:,} evaluation rows are more than needed" if division.unused else ""
        yield "division", f"{division.train:,} rows to train on, {division.held_out:,} to evaluate ({how}){more}"
        yield "overlap", f"{division.overlap:.1%} of the evaluated answers share 13 words in a row with training text"
    if (plan := found.prediction) is not None:
        times = f"{show.duration(plan.seconds_p50)} (P50) to {show.duration(plan.seconds_p90)} (P90)"
        money = show.dollars(plan.usd_p50)
        if plan.usd_p90 != plan.usd_p50:
            money += f" to {show.dollars(plan.usd_p90)}"
        yield "a job here", f"{plan.steps:,} steps, {times}, {money}; a file of {show.size(plan.file_bytes)} ({plan.tier})"
    for problem in found.unknown:
        yield "not known", Text(problem.message, style="yellow")


def _file(data: DataFile) -> str:
    forms = ", ".join(f"{name} ({count:,})" if len(data.forms) > 1 else name for name, count in data.forms.items())
    bad = f", {data.bad_rows:,} that cannot be used" if data.bad_rows else ""
    return f"{data.container}, {show.size(data.bytes)}, {data.rows:,} rows{bad}" + (f": {forms}" if forms else "")


def _spread(spread: Spread, total: str) -> Text:
    most = max(one.rows for one in spread.bins)
    bars = "".join(BLOCKS[0 if not one.rows else max(1, round(one.rows / most * 8))] for one in spread.bins)
    numbers = f"per row {spread.least:,} to {spread.most:,}, median {spread.median:,}, 95 % at most {spread.p95:,}; {total}"
    return Text.assemble(numbers, "\n", (f"{spread.least:,} ", "dim"), (bars, "cyan"), (f" {spread.most:,}", "dim"))


def _bad_rows(data: DataFile, console: Console) -> None:
    all_rows = data.bad_rows + data.rows
    console.print(Text.assemble(
        ("✗ ", "red"), (f"{data.bad_rows:,} of {all_rows:,} ", "bold"),
        f"rows of {data.uri} cannot be used; a job takes a file whole or not at all",
    ))  # fmt: skip
    for bad in data.bad:
        lines = ", ".join(str(line) for line in bad.lines[:LINES_SHOWN]) + (" …" if bad.rows > LINES_SHOWN else "")
        console.print(Text.assemble((f"    {data.unit} {lines}: ", "dim"), bad.reason, (f" ({bad.rows:,} rows)" if bad.rows > 1 else "", "dim")))
    others = data.bad_rows - sum(bad.rows for bad in data.bad)
    if others:
        console.print(Text(f"    and {others:,} rows for other reasons", style="dim"))
    for advice in dict.fromkeys(bad.advice or FORMS for bad in data.bad):
        console.print(Text(f"    → {advice}", style="dim"))


def _finding(finding: Finding, unit: str, console: Console) -> None:
    mark, style = ("!", "yellow") if finding.level == "warning" else ("·", "dim")
    share = f" ({finding.share:.1%})" if finding.share < 1 else ""
    console.print(Text.assemble(
        (f"{mark} ", style), (f"{finding.rows:,}{share} ", "bold" if finding.level == "warning" else ""), finding.what,
        (f" · {finding.detail}" if finding.detail else "", "dim"),
    ))  # fmt: skip
    for example in finding.examples[: 3 if finding.level == "warning" else 1]:
        console.print(Text.assemble((f"    {unit} {example.line}: ", "dim"), example.text), no_wrap=True, overflow="ellipsis")
    console.print(Text(f"    → {finding.advice}", style="dim"))
