"""Look at a data set before anything is trained on it: what is in it, what is wrong, what a job would take.

    python -m agents.gguf_factory.check FILE [--eval-data FILE] [--tier NAME] [--base NAME] [--parameters JSON] [--home DIR]

Prints JSON lines: `{"progress": …}` while it works, last `{"report": …}` (protocol.datacheck) or `{"error": …}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import configs
from agents.gguf_factory import base as bases
from agents.gguf_factory import data, dataset, lengths, lifeline, near, plan, split, suspicion
from agents.gguf_factory.dataset import Bad, Dataset, Row
from configs import Configs, Settings
from protocol import Code, LabError
from protocol.datacheck import (
    BadRows,
    DataFile,
    DataReport,
    Division,
    Example,
    Finding,
    Leak,
    Prediction,
    Tokens,
)
from protocol.job import PlanRequest, Route, TrainRequest

LISTED = 20  # lines of bad rows in a report
REASONS = 20  # different reasons in a report: a broken file has as many as rows
EVERY_ROWS = 2000  # between two words of progress

Progress = Callable[[str, int, int | None], None]
"""Takes what is done, how many rows of it, and of how many (None: not known yet)."""


def silent(what: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


@dataclass
class _File:
    """A data set as far as it was read. `rows` are without exact duplicates."""

    facts: DataFile
    rows: list[Row]
    problems: list[LabError] = field(default_factory=list)

    @property
    def known(self) -> Dataset:
        return Dataset(self.facts.uri, self.facts.sha256, self.rows, self.facts.duplicates)


def check(
    uri: str,
    eval_uri: str | None,
    *,
    settings: Settings,
    tier: str | None = None,
    base: str | None = None,
    parameters: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> DataReport:
    """Read a data set to its end and report on it.

    Args:
        uri, eval_uri: paths or URIs, as in a request.
        settings: where the home is, for the machine's speed and finished jobs, and which configs hold.
        tier, base, parameters: as in a request; default: the lab's.
        progress: told a few times a second what is being done.

    Raises:
        LabError: BAD_DATA, a file cannot be read at all; CONFIGURATION or INVALID_PARAMS, the options are wrong.
    """
    start = time.perf_counter()
    loaded = configs.load(settings)
    request, route = _request(loaded, uri, eval_uri, tier, base, parameters or {})
    chosen = plan.parameters(request, route, loaded.tiers)
    train = _read(uri, "dataset", progress)
    evaluation = None if eval_uri is None else _read(eval_uri, "eval_dataset", progress)
    problems = [*train.problems, *(evaluation.problems if evaluation else [])]
    unknown: list[LabError] = []

    tokens = None
    counts: list[tuple[_File, str, lengths.Counted]] = []
    try:
        folder = bases.resolve(route.base)
        plan.checked_tokenizer(bases.read(folder))
    except LabError as error:
        unknown.append(error)
    else:
        counts = [
            (file, name, lengths.sizes_of(file.rows, folder, chosen.sequence_length))
            for file, name in ((train, "dataset"), (evaluation, "eval_dataset")) if file is not None
        ]  # fmt: skip
    twins = near.Twins()

    def also(facts: suspicion.Facts) -> None:
        twins.add(facts.words)
        if facts.number % EVERY_ROWS == 0:
            progress("looking for what is suspicious", facts.number, len(train.rows))

    found = suspicion.search(train.rows, also=also)
    findings = [_finding(rule, found[rule.name], train) for rule in suspicion.RULES if rule.name in found]
    progress("looking for near duplicates", 0, len(train.rows))
    repeated = twins.found()
    if repeated:
        findings.append(_twins(repeated, train))
    progress("counting tokens", 0, len(train.rows))
    sizes: dict[int, data.Size] = {}
    for file, name, counted in counts:
        try:
            found_sizes, refused = counted()
        except LabError as error:
            problems.append(error)
            continue
        if refused:
            problems.append(data.refusal(refused, file.facts.uri, name))
            continue
        sizes |= {id(row): size for row, size in zip(file.rows, found_sizes, strict=True)}
        if file is train and train.rows:
            tokens = lengths.tokens(found_sizes, route.base, chosen.sequence_length)

    progress("division", 0, None)
    division = prediction = None
    if train.rows:
        try:
            source = _divide(train, evaluation)
        except LabError as error:
            problems.append(error)
        else:
            division = _division(source, given=evaluation is not None)
            if counts and len(sizes) == sum(len(file.rows) for file, _, _ in counts):
                try:
                    prediction = _predict(PlanRequest(job="check", request=request, route=route), source, sizes, loaded)
                except LabError as error:
                    about_data = error.code == Code.BAD_DATA and error.data.get("field") != "base"
                    (problems if about_data else unknown).append(error)
    findings += _cuts(tokens) + _leaks(division)
    warned = any(finding.level == "warning" for finding in findings)
    return DataReport(
        verdict="unusable" if problems else "warnings" if warned else "good",
        data=train.facts, eval_data=evaluation.facts if evaluation else None, turns=lengths.turns(train.rows), tokens=tokens,
        near_duplicates=len(repeated), division=division, prediction=prediction,
        findings=sorted(findings, key=lambda finding: (finding.level != "warning", -finding.rows)),
        problems=[error.body() for error in problems], unknown=[error.body() for error in unknown],
        seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


def _request(
    loaded: Configs, uri: str, eval_uri: str | None, tier: str | None, base: str | None, parameters: dict[str, Any]
) -> tuple[TrainRequest, Route]:
    name = tier or loaded.default_tier or next(iter(loaded.tiers))
    if name not in loaded.tiers:
        raise LabError(
            Code.INVALID_PARAMS, f"The tier {name} is not in configs/.", advice=f"Known are {', '.join(loaded.tiers)}.",
            field="tier",
        )  # fmt: skip
    request = TrainRequest(text="check", dataset=uri, eval_dataset=eval_uri, parameters=parameters)
    route = Route(
        domain="check", category="check", tier=name, base=base or loaded.tiers[name].base, voice="", empathy="",
        quality_floor=0.0, safety_critical=False,
    )  # fmt: skip
    return request, route


def _read(uri: str, field: str, progress: Progress) -> _File:
    seen: set[bytes] = set()
    rows: list[Row] = []
    bad: list[Bad] = []
    forms: Counter[str] = Counter()
    count = 0
    with dataset.scan(uri, field) as scan:
        for count, row in enumerate(scan, 1):
            if count % EVERY_ROWS == 0:
                progress("reading", count, None)
            if isinstance(row, Bad):
                bad.append(row)
                continue
            forms[row.form] += 1
            if (key := row.key) not in seen:
                seen.add(key)
                rows.append(row)
    usable = count - len(bad)
    facts = DataFile(
        uri=scan.place, container=scan.container, unit=scan.unit, bytes=scan.bytes, sha256=scan.sha256, rows=usable,
        bad_rows=len(bad), bad=_reasons(bad), forms=dict(forms.most_common()), duplicates=usable - len(rows),
    )  # fmt: skip
    problems = [dataset.refuse_rows(scan, field, bad, count)] if bad else []
    if not count:
        problems.append(dataset.no_rows(scan.place, field))
    return _File(facts, rows, problems)


def _reasons(bad: Sequence[Bad]) -> list[BadRows]:
    groups: dict[tuple[str, str], list[int]] = {}
    for row in bad:
        groups.setdefault((row.error.reason, row.error.advice), []).append(row.line)
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1]))[:REASONS]
    return [
        BadRows(reason=reason, rows=len(lines), lines=lines[:LISTED], advice=advice) for (reason, advice), lines in ranked
    ]


def _finding(rule: suspicion.Rule, found: suspicion.Finding, file: _File) -> Finding:
    level: Literal["note", "warning"] = "note" if rule.note or found.note else "warning"
    return Finding(
        name=rule.name, level=level, rows=len(found.rows), share=len(found.rows) / len(file.rows), what=rule.what,
        advice=rule.advice, detail=found.detail,
        examples=[Example(line=file.rows[number].line, text=text) for number, text in found.excerpts.items()],
    )  # fmt: skip


def _twins(twins: Sequence[near.Twin], file: _File) -> Finding:
    shown = sorted(twins, key=lambda twin: -twin.likeness)[: suspicion.EXAMPLES]
    share = len(twins) / len(file.rows)
    return Finding(
        name="near_duplicates", level="warning" if share > NEAR_SHARE else "note", rows=len(twins), share=share,
        what="nearly the same text as an earlier row", advice="Keep one of each: what is repeated is learned by heart.",
        examples=[
            Example(
                line=file.rows[twin.row].line,
                text=f"{twin.likeness:.0%} as {file.facts.unit} {file.rows[twin.earlier].line}:"
                f" {suspicion.excerpt(file.rows[twin.row].question)}",
            )
            for twin in shown
        ],
    )  # fmt: skip


NEAR_SHARE = 0.05  # of the rows: public instruction sets have 1-3 % and train well; above, a few texts outweigh the rest


def _divide(train: _File, evaluation: _File | None) -> data.Source:
    digests = {"dataset_sha256": train.facts.sha256}
    if evaluation is None:
        return data.Source(train.known, None, split.split(train.rows, train.facts.uri), digests)
    digests["eval_dataset_sha256"] = evaluation.facts.sha256
    rows = split.apart(train.rows, evaluation.rows, train.facts.uri)
    return data.Source(train.known, evaluation.known, rows, digests)


def _division(source: data.Source, *, given: bool) -> Division:
    rows = source.rows
    hits = data.overlapping(rows.train, rows.held_out)
    first = [(rows.held_out[number], row) for number, row in sorted(hits.items())[: suspicion.EXAMPLES]]
    return Division(
        given=given, train=len(rows.train), held_out=len(rows.held_out), withheld=rows.withheld, unused=rows.unused,
        overlap=len(hits) / len(rows.held_out),
        leaks=[
            Leak(eval_line=held.line, train_line=row.line, text=suspicion.excerpt(held.question)) for held, row in first
        ],
    )  # fmt: skip


def _predict(request: PlanRequest, source: data.Source, sizes: dict[int, data.Size], loaded: Configs) -> Prediction:
    known = plan.Known(
        source, data.Sizes.of(sizes[id(row)] for row in source.rows.train),
        data.Sizes.of(sizes[id(row)] for row in source.rows.held_out),
    )  # fmt: skip
    found = plan.plan(request, loaded.settings.home, loaded.tiers, known=known)
    per_second = loaded.providers.local.price_usd_per_hour / 3600
    return Prediction(
        tier=request.route.tier, base=request.route.base, steps=found.steps, tokens=found.tokens,
        seconds_p50=found.seconds_p50, seconds_p90=found.seconds_p90, usd_p50=per_second * found.seconds_p50,
        usd_p90=per_second * found.seconds_p90, file_bytes=found.file_bytes, memory_bytes=found.memory_bytes,
        disk_bytes=found.disk_bytes, parameters=found.parameters,
    )  # fmt: skip


CUT_SHARE = 0.05  # of the rows; a few long ones are usual, more means that sequence_length does not fit the data
LEAK_SHARE = 0.01  # of the evaluated rows; stock phrases reach it by chance


def _cuts(tokens: Tokens | None) -> list[Finding]:
    if tokens is None or not tokens.cut_rows:
        return []
    rows = sum(one.rows for one in tokens.row.bins)
    share = tokens.cut_rows / rows
    lost = [
        text for count, text in (
            (tokens.truncated, "answers lose their end"), (tokens.skipped, "answers are not learned"),
            (tokens.continued, "times a conversation goes on in a further sample"),
        ) if count for text in [f"{count:,} {text}"]
    ]  # fmt: skip
    warn = (tokens.truncated + tokens.skipped) / rows > CUT_SHARE
    return [Finding(
        name="cut", level="warning" if warn else "note", rows=tokens.cut_rows, share=share,
        what=f"more than {tokens.sequence_length} tokens", advice="Raise sequence_length (--param sequence_length=…) or split them.",
        detail=", ".join(lost), examples=[],
    )]  # fmt: skip


def _leaks(division: Division | None) -> list[Finding]:
    found = []
    if division is not None and division.given and division.withheld:
        found.append(Finding(
            name="withheld", level="warning", rows=division.withheld, share=division.withheld / (division.withheld + division.train),
            what="a question or an answer that is also evaluated", advice="They are left out of training; remove them from one side.",
            examples=[],
        ))  # fmt: skip
    if division is not None and division.overlap > LEAK_SHARE:
        count = round(division.overlap * division.held_out)
        found.append(Finding(
            name="overlap", level="warning" if division.given else "note", rows=count, share=division.overlap,
            what=f"of the {division.held_out} evaluated answers share {data.RUN_WORDS} words in a row with training text",
            advice="The measured quality will flatter; evaluate on rows of another source (--eval-data).",
            examples=[Example(line=leak.eval_line, text=f"as training {leak.train_line}: {leak.text}") for leak in division.leaks],
        ))  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    lifeline.die_with_parent()
    parser = argparse.ArgumentParser(prog="check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--eval-data")
    parser.add_argument("--tier")
    parser.add_argument("--base")
    parser.add_argument("--parameters", type=json.loads, default={})
    parser.add_argument("--home", type=Path)
    options = parser.parse_args(arguments)

    def say(**line: Any) -> None:
        print(json.dumps(line, ensure_ascii=False), flush=True)

    try:
        report = check(
            options.file, options.eval_data, settings=Settings.read(home=options.home), tier=options.tier, base=options.base,
            parameters=options.parameters,
            progress=lambda what, done, total: say(progress={"what": what, "done": done, "total": total}),
        )  # fmt: skip
    except LabError as error:
        say(error=error.body().model_dump(mode="json"))
        return 2
    say(report=report.model_dump(mode="json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
