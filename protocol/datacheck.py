"""What `meetara data check --json` prints: a data set, looked at before anything is trained on it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from protocol.errors import ErrorBody
from protocol.job import Strict


class Bin(Strict):
    """One bar of a histogram: how many rows have at least `low` and at most `high`."""

    low: int
    high: int
    rows: int


class Spread(Strict):
    """How a whole number is spread over the rows."""

    least: int
    median: int
    p95: int
    most: int
    bins: list[Bin]


class Example(Strict):
    """A row to look at. `line` counts from 1; of parquet it is the row. Personal data in `text` is covered."""

    line: int
    text: str


class BadRows(Strict):
    """Rows that cannot be trained on for one reason."""

    reason: str
    rows: int
    lines: list[int] = Field(description="the first ones")
    advice: str = ""


class Finding(Strict):
    """What is suspicious or worth knowing. Only `level` warning counts for --strict."""

    name: str
    level: Literal["warning", "note"]
    rows: int
    share: float = Field(description="of the usable rows, 0 to 1")
    what: str = Field(description="what these rows have; reads on after their number")
    advice: str
    detail: str = ""
    examples: list[Example]


class DataFile(Strict):
    """A file of rows, read to its end."""

    uri: str
    container: str = Field(description="what it is by its content, e.g. jsonl.gz")
    unit: Literal["line", "row"] = Field(description="what the numbers of rows count")
    bytes: int
    sha256: str
    rows: int = Field(description="usable ones, duplicates included")
    bad_rows: int
    bad: list[BadRows]
    forms: dict[str, int]
    duplicates: int = Field(description="exact but for white space; they are dropped")


class Turns(Strict):
    """Conversations: answers of a row, rows with more than one, rows with a system turn."""

    answers: Spread
    several: int
    system: int


class Tokens(Strict):
    """Lengths by the base's own tokenizer and chat template. `truncated`, `skipped` are answers, `continued` samples."""

    base: str
    sequence_length: int
    total: int
    row: Spread
    cut_rows: int = Field(description="rows that are longer than sequence_length")
    truncated: int = Field(description="answers that lose their end")
    skipped: int = Field(description="answers whose question fills sequence_length: they are not learned")
    continued: int = Field(description="further samples of conversations that are cut between turns")


class Leak(Strict):
    """A row to evaluate on, and the training row that shares words with it."""

    eval_line: int
    train_line: int
    text: str


class Division(Strict):
    """What is trained on and what is measured by, by the rule that every job uses."""

    given: bool = Field(description="whether an evaluation set was given; else a part is held out")
    train: int
    held_out: int
    withheld: int = Field(description="training rows left out, because their question or answer is evaluated")
    unused: int = Field(description="rows of the evaluation set beyond what is needed")
    overlap: float = Field(description="share of evaluated answers with 13 words in a row that stand in training text")
    leaks: list[Leak] = Field(description="the first of the overlap")


class Prediction(Strict):
    """What a job on this machine would take, by the plan's own code. Money is the local price; P50 and P90."""

    tier: str
    base: str
    steps: int
    tokens: int = Field(description="of the training rows, one epoch")
    seconds_p50: float
    seconds_p90: float
    usd_p50: float
    usd_p90: float
    file_bytes: int | None
    memory_bytes: int
    disk_bytes: int
    parameters: dict[str, Any]


class DataReport(Strict):
    """The report. What is null could not be known, and `unknown` tells why."""

    verdict: Literal["good", "warnings", "unusable"]
    data: DataFile
    eval_data: DataFile | None
    turns: Turns | None
    tokens: Tokens | None
    near_duplicates: int | None
    division: Division | None
    prediction: Prediction | None
    findings: list[Finding]
    problems: list[ErrorBody] = Field(description="why it is unusable")
    unknown: list[ErrorBody] = Field(description="why something above is null although the data set may be fine")
    seconds: float = Field(description="what the check took")
