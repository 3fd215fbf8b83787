"""The data stage: rows are read, split, encoded and packed, with a control in which the answers are shuffled."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from agents.gguf_factory import chat, dataset, packing
from agents.gguf_factory.dataset import Dataset, Row
from agents.gguf_factory.job import Job, StageResult
from agents.gguf_factory.split import Split, apart, normalise, split
from protocol import Code, LabError
from protocol.job import Stage, TrainRequest

ENDLESS = 2**31  # tokens; longer than any conversation, so that its whole length is seen
RUN_WORDS = 13  # the length at which contamination is counted since GPT-3's report (arXiv 2005.14165, appendix C)


Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """The request's data, read and divided. `digests` are by the request's field."""

    train: Dataset
    evaluation: Dataset | None
    rows: Split
    digests: dict[str, str]


def source(request: TrainRequest) -> Source:
    """Read and divide a request's data set.

    Raises:
        LabError: BAD_DATA, as `dataset.read` and `split.split`.
    """
    train = dataset.read(request.dataset)
    digests = {"dataset_sha256": train.sha256}
    if request.eval_dataset is None:
        return Source(train, None, split(train.rows, train.uri), digests)
    evaluation = dataset.read(request.eval_dataset, "eval_dataset")
    digests["eval_dataset_sha256"] = evaluation.sha256
    return Source(train, evaluation, apart(train.rows, evaluation.rows, train.uri), digests)


@dataclass(frozen=True)
class Encoded:
    """Samples of rows; `skipped` answers have a question that fills the whole length, so that they are not learned."""

    samples: list[chat.Sample]
    skipped: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(sample.ids) for sample in self.samples]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def truncated(self) -> int:
        """Answers that lost their end."""
        return sum(sample.truncated for sample in self.samples)

    @property
    def continued(self) -> int:
        """Samples that go on with a conversation that was too long for one."""
        return sum(sample.continued for sample in self.samples)


def encode(tokenizer: chat.Tokenizer, rows: Sequence[Row], length: int, uri: str = "", field: str = "dataset") -> Encoded:
    """Encode rows as samples of at most `length` tokens.

    Args:
        tokenizer: the base's.
        rows: rows of one data set.
        length: most tokens of a sample.
        uri, field: of the data set, for the error.

    Raises:
        LabError: BAD_DATA with file and lines, the chat template refuses rows; else as `chat.samples`.
    """
    found, refused = attempt(rows, lambda row: chat.samples(tokenizer, row.messages, length))
    if refused:
        raise refusal(refused, uri, field)
    answers = sum(turn["role"] == "assistant" for row in rows for turn in row.messages)
    samples = [sample for each in found for sample in each]
    return Encoded(samples, answers - sum(sample.answers for sample in samples))


def attempt(rows: Iterable[Row], work: Callable[[Row], Result]) -> tuple[list[Result], list[tuple[int, str]]]:
    """Return what work makes of each row, and line and reason of those rows that the chat template refuses.

    Raises:
        LabError: any other that work raises.
    """
    found: list[Result] = []
    refused: list[tuple[int, str]] = []
    for row in rows:
        try:
            found.append(work(row))
        except LabError as error:
            if "refused" not in error.data:
                raise
            refused.append((row.line, str(error.data["refused"])))
    return found, refused


def refusal(refused: Sequence[tuple[int, str]], uri: str, field: str) -> LabError:
    """Return the error that lists rows which the chat template refuses."""
    listed = "; ".join(f"line {line} ({reason})" for line, reason in refused[: dataset.SHOWN])
    more = f"; and {len(refused) - dataset.SHOWN} more" if len(refused) > dataset.SHOWN else ""
    return LabError(
        Code.BAD_DATA, f"The base's chat template refuses {len(refused)} rows of the data set {uri}: {listed}{more}.",
        advice=chat.REFUSED_ADVICE, field=field, file=uri, line=refused[0][0], bad_rows=len(refused),
    )  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What one row takes: `tokens` of the whole conversation, `lengths` of its samples, and counts as in `Encoded`."""

    tokens: int
    lengths: tuple[int, ...]
    skipped: int
    truncated: int
    continued: int


@dataclass(frozen=True)
class Sizes:
    """What rows take, without their samples: planning needs no more, and memory is bounded."""

    lengths: list[int]
    skipped: int
    truncated: int
    continued: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @classmethod
    def of(cls, sizes: Iterable[Size]) -> Sizes:
        found = list(sizes)
        return cls(
            [length for size in found for length in size.lengths], sum(size.skipped for size in found),
            sum(size.truncated for size in found), sum(size.continued for size in found),
        )  # fmt: skip


def size(tokenizer: chat.Tokenizer, row: Row, length: int) -> Size:
    """Return what a row takes in samples of at most `length` tokens.

    Raises:
        LabError: as `chat.samples`.
    """
    whole = chat.samples(tokenizer, row.messages, ENDLESS)
    tokens = sum(len(sample.ids) for sample in whole)
    fits = all(len(sample.ids) <= length for sample in whole)
    encoded = Encoded(whole, 0) if fits else encode(tokenizer, [row], length)
    return Size(tokens, tuple(encoded.lengths), encoded.skipped, encoded.truncated, encoded.continued)


def sizes(tokenizer: chat.Tokenizer, rows: Iterable[Row], length: int, uri: str = "", field: str = "dataset") -> Sizes:
    """Return what rows take.

    Raises:
        LabError: as `encode`.
    """
    found, refused = attempt(rows, lambda row: size(tokenizer, row, length))
    if refused:
        raise refusal(refused, uri, field)
    return Sizes.of(found)


Fitting = TypeVar("Fitting", Encoded, Sizes)


def fitting(encoded: Fitting, length: int, name: str) -> Fitting:
    """Return the samples, or refuse when none is left.

    Raises:
        LabError: BAD_DATA.
    """
    if encoded.lengths:
        return encoded
    raise LabError(
        Code.BAD_DATA, f"Every question of the {name} rows fills all {length} tokens, so no answer is left to learn.",
        advice="Raise parameters.sequence_length or shorten the questions.", field="parameters.sequence_length",
    )  # fmt: skip


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows with their last answers moved: none keeps its own (Sattolo's single cycle).

    A model that learns as well from these has learned the form of answers, not what the questions ask for.
    """
    order = list(range(len(rows)))
    generator = random.Random(seed)
    for index in range(len(order) - 1, 0, -1):
        other = generator.randrange(index)
        order[index], order[other] = order[other], order[index]
    return [
        replace(row, messages=[*row.messages[:-1], rows[order[index]].messages[-1]]) for index, row in enumerate(rows)
    ]


def overlap(train: Iterable[Row], held_out: Sequence[Row], length: int = RUN_WORDS) -> float:
    """Return the share of held-out rows whose answers have a run of `length` words that stands in training text."""
    return len(overlapping(train, held_out, length)) / len(held_out)


def overlapping(train: Iterable[Row], held_out: Sequence[Row], length: int = RUN_WORDS) -> dict[int, Row]:
    """Return the held-out rows, by number from 0, of `overlap`, each with the first training row that shares a run.

    Only runs of held-out answers are kept, and training text is looked at where all its words occur in such runs: the
    runs of the training rows themselves would take gigabytes for a hundred thousand rows.
    """
    wanted: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(held_out):
        for run in {run for turn in row.messages if turn["role"] == "assistant" for run in runs(turn["content"], length)}:
            wanted.setdefault(run, []).append(number)
    known = {word for run in wanted for word in run}
    hit: dict[int, Row] = {}
    for row in train:
        for turn in row.messages:
            words = normalise(turn["content"]).split()
            start = 0
            for end in [*(at for at, word in enumerate(words) if word not in known), len(words)]:
                for at in range(start, end - length + 1):
                    for number in wanted.get(tuple(words[at : at + length]), ()):
                        hit.setdefault(number, row)
                start = end + 1
    return hit


def runs(text: str, length: int = RUN_WORDS) -> Iterable[tuple[str, ...]]:
    """Yield all runs of `length` words of a text, case and punctuation folded."""
    words = normalise(text).split()
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def run(job: Job) -> StageResult:
    """Write the stage's files: train.jsonl, held_out.jsonl, and packed, control and held_out.safetensors.

    Raises:
        LabError: BAD_DATA, also when a file is not the one that was planned with.
    """
    found = source(job.run.request)
    parameters = job.parameters
    for name, value in found.digests.items():
        if parameters.get(name, value) != value:
            place = found.train if name == "dataset_sha256" or found.evaluation is None else found.evaluation
            raise LabError(
                Code.BAD_DATA, f"The data set {place.uri} has changed since the job was planned.",
                advice="Submit the job again, and leave the file alone while it runs.",
                field=name.removesuffix("_sha256"), file=place.uri,
            )  # fmt: skip
    length = int(parameters["sequence_length"])
    tokenizer = chat.load(job.base)
    pad = chat.filler(tokenizer.pad_token_id, chat.ends(tokenizer))
    train, held_out = found.rows.train, found.rows.held_out
    folder = job.path(Stage.DATA)
    results: dict[str, Any] = {
        "rows": len(train), "held_out_rows": len(held_out), "duplicates": found.train.duplicates,
        "withheld": found.rows.withheld, "held_out_unused": found.rows.unused,
    }  # fmt: skip
    files = [folder / "train.jsonl", folder / "held_out.jsonl"]
    _write(files[0], train)
    _write(files[1], held_out)
    control = shuffled(train, int(parameters["seed"]))
    for name, rows in (("packed", train), ("control", control), ("held_out", held_out)):
        job.progress(note=f"encoding {name} rows")
        encoded = fitting(encode(tokenizer, rows, length, found.train.uri), length, name)
        packed = packing.pack(encoded.samples, length, pad)
        files.append(folder / f"{name}.safetensors")
        packing.save(packed, files[-1])
        prefix = "" if name == "packed" else f"{name}_"
        results |= {
            f"{prefix}tokens": encoded.tokens, f"{prefix}samples": len(encoded.samples),
            f"{prefix}packed_rows": packed.input_ids.shape[0], f"{prefix}fill": packed.fill,
            f"{prefix}truncated": encoded.truncated, f"{prefix}skipped": encoded.skipped,
            f"{prefix}continued": encoded.continued,
            f"{prefix}supervised_tokens": sum(sum(sample.supervised) for sample in encoded.samples),
        }  # fmt: skip
    results["overlap"] = overlap(train, held_out)
    return StageResult(files=files, results=results)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps({"messages": row.messages}, ensure_ascii=False) + "\n")
