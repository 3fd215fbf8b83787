"""Quantise a model to one type or to many, and measure what each costs.

    python -m agents.gguf_factory.compare FILE --data FILE [--train-data FILE] [--base FILE] [--types T,T] [--no-imatrix]
    python -m agents.gguf_factory.compare FILE --out FILE --types T [--train-data FILE] [--no-imatrix]

FILE is an F16, BF16 or F32 GGUF, or a job's folder. Writes JSON lines as `lines` says. Everything is read from the GGUF
itself: its tokenizer, its chat template, its weights; torch is not needed.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.gguf_factory import chat, convert, dataset, distance, lines, llama, quantise, split, template
from agents.gguf_factory.chat import Sample
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job, Stopped, never, silent
from agents.gguf_factory.llama import Model
from configs.parameters import NEED_IMATRIX
from protocol import Code, LabError
from protocol.job import RunRequest

TYPES = (
    "IQ2_M", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M",
    "Q6_K", "Q8_0", "F16",
)  # fmt: skip
"""What is compared unless types are named: the k-quants, the i-quants that a small model survives, and what people know."""

TOKENS = 3_000  # held-out tokens that every type reads: its KL has a relative error of a few percent
LENGTH = 512  # most tokens of a conversation
SPACE = 1.5  # free bytes wanted over those of one F16 file: one quantised file at a time, and the exact logits


@dataclass(frozen=True)
class Row:
    """What one quantisation costs.

    Attributes:
        kl: mean over tokens of KL(F16 || this) in nats.
        top1_percent: tokens after which this and F16 find the same next token likeliest.
        perplexity: of the held-out answers.
        quality_percent: 100 x the base's perplexity over this one; None where no base was given.
        pareto: no other type is at most as large and at most as far from F16, and better in one of both.
        error: why the quantiser did not make it; then there are no numbers.
    """

    type: str
    bytes: int | None = None
    bits_per_weight: float | None = None
    fallback_percent: float | None = None
    kl: float | None = None
    top1_percent: float | None = None
    perplexity: float | None = None
    quality_percent: float | None = None
    seconds: float | None = None
    pareto: bool = False
    error: str | None = None


class GgufTokenizer:
    """The part of a tokenizer that `chat` uses, from a loaded GGUF."""

    def __init__(self, model: Model) -> None:
        """Raises: LabError BAD_DATA, the file has no chat template."""
        self._model, self._template = model, model.conversation_template()
        self.eos_token_id: int | None = model.eos

    def apply_chat_template(
        self, messages: Any, /, *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        return template.render(self._template, self._model, messages, prompt=add_generation_prompt)

    def encode(self, text: str, /, *, add_special_tokens: bool = False) -> list[int]:
        return self._model.tokenize(text)


@dataclass(frozen=True)
class Request:
    """What is to be quantised.

    Args:
        file: a 16- or 32-bit GGUF, or a job's folder.
        data: held-out conversations, needed to compare; "": those that the job held out.
        train_data: text of the importance matrix; default: the job's training rows, else `data`.
        base: the untuned model as a GGUF, for quality_percent; a job's own base is found.
        types: names of `quantise.FTYPES`.
        imatrix: weigh the rounding by an importance matrix.
    """

    file: Path
    data: str | None = None
    train_data: str | None = None
    base: Path | None = None
    types: tuple[str, ...] = TYPES
    imatrix: bool = True


def located(request: Request, home: Path, stop: Callable[[], bool] = never) -> Request:
    """Return the request with a job's folder replaced by the files in it.

    Raises:
        LabError: NOT_FOUND or BAD_DATA, what cannot be quantised and why.
    """
    for name in request.types:
        quantise.ftype(name)
        if name in NEED_IMATRIX and not request.imatrix:
            raise LabError(
                Code.INVALID_PARAMS, f"{name} cannot be made without an importance matrix.",
                advice="Leave out --no-imatrix, or choose another type.", field="types",
            )  # fmt: skip
    if request.file.is_dir():
        request = _of_job(request, home, stop)
    elif request.data == "":
        raise LabError(
            Code.INVALID_PARAMS,
            "there is nothing to compare on.",
            advice="Give --data FILE, rows it was not trained on.",
            field="data",
        )
    header = read_header(request.file)
    types = sorted({tensor.type for tensor in header.tensors} - {"F32", "F16", "BF16"})
    if types:
        raise LabError(
            Code.BAD_DATA, f"{request.file} is quantised already ({', '.join(types)}): rounding twice costs more than once.",
            advice="Give the F16 file that it was made from, or the job.", field="file", file=str(request.file),
        )  # fmt: skip
    return request


def _of_job(request: Request, home: Path, stop: Callable[[], bool]) -> Request:
    folder = request.file
    file = folder / "convert" / convert.FILE
    if not file.is_file():
        raise LabError(
            Code.NOT_FOUND, f"{folder} holds no F16 file ({file.name} of the stage convert).",
            advice="The job was not converted, or its files were cleared: name an F16 GGUF.", file=str(folder),
        )  # fmt: skip
    base = request.base
    if base is None and request.data is not None:  # comparing
        run = RunRequest.model_validate_json((folder / "job.json").read_text(encoding="utf-8"))
        base = convert.convert_base(Job(run, folder, home).base, home, stop=stop)
    train, held_out = folder / "data" / "train.jsonl", folder / "data" / "held_out.jsonl"
    data = str(held_out) if request.data == "" and held_out.is_file() else request.data
    found = str(train) if request.train_data is None and train.is_file() else request.train_data
    return replace(request, file=file, base=base, train_data=found, data=data)


def compare(
    request: Request, home: Path, *, stop: Callable[[], bool] = never, progress: Callable[..., None] = silent
) -> dict[str, Any]:
    """Quantise to every type in turn, measure it, and remove it.

    Returns:
        file, tokens (measured), imatrix_tokens, rows (see `Row`).

    Raises:
        LabError: NOT_FOUND, BAD_DATA, NO_SPACE or TOOLCHAIN.
        Stopped: `stop` was true; nothing is left behind.
    """
    request = located(request, home, stop)
    assert request.data is not None
    with tempfile.TemporaryDirectory(prefix="meetara-quantise-") as name:
        folder = Path(name)
        with llama.load(request.file, n_ctx=LENGTH, threads=_threads(request.file), exact=True) as exact:
            tokenizer = GgufTokenizer(exact)
            samples = list(bounded(samples_of(request.data, tokenizer), TOKENS))
            tokens = sum(len(sample.ids) for sample in samples)
            check_space(folder, request.file, 4 * tokens * exact.vocabulary_size)
            matrix = _matrix(request, tokenizer, folder, stop, progress)
            progress(note="reading held-out text with the F16 file")
            truth = Truth(exact, samples, folder / "logits", stop)
        base = None
        if request.base is not None:
            progress(note="reading held-out text with the base")
            base = _perplexity(request.base, samples, stop)
        rows = []
        for index, kind in enumerate(request.types):
            progress(note=f"{kind} ({index + 1} of {len(request.types)})")
            rows.append(_row(request.file, kind, matrix[0], folder, truth, base, stop))
    return {
        "file": str(request.file), "bytes": request.file.stat().st_size, "tokens": tokens, "imatrix_tokens": matrix[1],
        "base_perplexity": base, "rows": [asdict(row) for row in marked(rows)],
    }  # fmt: skip


class Truth:
    """F16's logits after every held-out token, in a file: with a vocabulary of 152,000 they are gigabytes."""

    def __init__(self, exact: Model, samples: Sequence[Sample], path: Path, stop: Callable[[], bool]) -> None:
        self.samples = samples
        tokens = sum(len(sample.ids) for sample in samples)
        self._logits = np.memmap(path, np.float32, "w+", shape=(tokens, exact.vocabulary_size))
        at = 0
        for sample in samples:
            _check(stop)
            self._logits[at : at + len(sample.ids)] = exact.logits(sample.ids)
            at += len(sample.ids)

    def against(self, model: Model, stop: Callable[[], bool]) -> tuple[float, float, float]:
        """Return another model's mean KL in nats, share of equal likeliest tokens in percent, and perplexity of answers."""
        total, equal, surprise, answers, at = 0.0, 0, 0.0, 0, 0
        for sample in self.samples:
            _check(stop)
            wanted, found = self._logits[at : at + len(sample.ids)], model.logits(sample.ids)
            at += len(sample.ids)
            total += distance.divergence(wanted, found)
            equal += int((wanted.argmax(axis=1) == found.argmax(axis=1)).sum())
            rows = np.flatnonzero(sample.supervised[1:])
            chosen = distance.log_softmax(found[rows])
            surprise -= float(chosen[np.arange(len(rows)), np.asarray(sample.ids)[rows + 1]].sum())
            answers += len(rows)
        return total / at, 100 * equal / at, math.exp(surprise / answers)


def _row(
    source: Path, kind: str, matrix: Path | None, folder: Path, truth: Truth, base: float | None, stop: Callable[[], bool]
) -> Row:  # fmt: skip
    start = time.perf_counter()
    file = folder / f"{kind}.gguf"
    try:
        quantise.quantise(source, file, kind, None if kind in quantise.PLAIN else matrix, stop=stop)
        seconds = time.perf_counter() - start
        header = read_header(file)
        with llama.load(file, n_ctx=LENGTH, threads=_threads(file)) as model:
            kl, top1, perplexity = truth.against(model, stop)
        return Row(
            kind, file.stat().st_size, header.bits_per_weight, quantise.fallback_percent(header, kind), max(kl, 0.0), top1,
            perplexity, None if base is None else 100 * base / perplexity, round(seconds, 3),
        )  # fmt: skip
    except LabError as error:
        if error.code is not Code.TOOLCHAIN:
            raise
        return Row(kind, error=error.message)
    finally:
        file.unlink(missing_ok=True)


def marked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows by size, those marked that no other beats in size and KL together."""
    ordered = sorted(rows, key=lambda row: (row.bytes is None, row.bytes, row.kl))
    best = math.inf
    result = []
    for row in ordered:
        front = row.kl is not None and row.kl < best
        best = min(best, row.kl) if row.kl is not None else best
        result.append(replace(row, pareto=front))
    return result


def produce(
    request: Request, target: Path, home: Path, *, stop: Callable[[], bool] = never,
    progress: Callable[..., None] = silent,
) -> dict[str, Any]:  # fmt: skip
    """Write one quantised file; it appears whole or not at all.

    Returns:
        file, type, bytes, bits_per_weight, fallback_percent, imatrix_tokens.

    Raises:
        LabError: as `compare`; CONFLICT, the target is the source.
        Stopped: `stop` was true.
    """
    request = located(request, home, stop)
    (kind,) = request.types
    if target.exists() and target.samefile(request.file):
        raise LabError(Code.CONFLICT, f"{target} is the file that is read.", advice="Give another --out.", field="out")
    if not target.parent.is_dir():
        raise LabError(Code.NOT_FOUND, f"there is no folder {target.parent}.", advice="Create it first.", field="out")
    check_space(target.parent, request.file, 0)
    with tempfile.TemporaryDirectory(prefix="meetara-quantise-") as name:
        matrix: tuple[Path | None, int | None] = (None, None)
        if request.imatrix and kind not in quantise.PLAIN:
            if request.train_data is None and request.data is None:
                raise LabError(
                    Code.INVALID_PARAMS, "the importance matrix needs text of the domain.",
                    advice="Give --data FILE, or --no-imatrix to round plainly.", field="data",
                )  # fmt: skip
            with llama.load(request.file, n_ctx=LENGTH) as model:
                matrix = _matrix(request, GgufTokenizer(model), Path(name), stop, progress)
        progress(note=f"quantising to {kind}")
        output = Path(name) / "quantiser.log"
        quantise.quantise(request.file, target, kind, matrix[0], stop=stop, output=output)
    header = read_header(target)
    return {
        "file": str(target), "type": kind, "bytes": target.stat().st_size, "bits_per_weight": header.bits_per_weight,
        "fallback_percent": quantise.fallback_percent(header, kind), "imatrix_tokens": matrix[1],
    }  # fmt: skip


def _matrix(
    request: Request, tokenizer: GgufTokenizer, folder: Path, stop: Callable[[], bool], progress: Callable[..., None]
) -> tuple[Path | None, int | None]:
    """Measure the importance matrix; return its file and the tokens read."""
    if not request.imatrix or all(kind in quantise.PLAIN for kind in request.types):
        return None, None
    progress(note="measuring which weights matter")
    place = request.train_data or request.data
    assert place is not None
    path = folder / quantise.IMATRIX
    texts = (sample.ids for sample in samples_of(place, tokenizer, "train_data" if request.train_data else "dataset"))
    return path, quantise.importance(request.file, texts, path, stop=stop)


def samples_of(place: str, tokenizer: GgufTokenizer, field: str = "dataset") -> Iterator[Sample]:
    """Yield a data set's conversations as token ids, in an order that does not follow the file's.

    Raises:
        LabError: BAD_DATA, the file or the model's template cannot be used.
    """
    for row in sorted(dataset.read(place, field).rows, key=lambda row: split.fraction(row.question)):
        yield from chat.samples(tokenizer, row.messages, LENGTH)


def bounded(samples: Iterator[Sample], most: int) -> Iterator[Sample]:
    """Yield samples up to `most` tokens, at least one."""
    tokens = 0
    for sample in samples:
        if tokens and tokens + len(sample.ids) > most:
            return
        tokens += len(sample.ids)
        yield sample


def check_space(folder: Path, source: Path, further: int) -> None:
    """Refuse where a quantised file would not fit.

    Raises:
        LabError: NO_SPACE.
    """
    wanted = int(SPACE * source.stat().st_size) + further
    if (free := shutil.disk_usage(folder).free) < wanted:
        raise LabError(
            Code.NO_SPACE, f"{free / 1e6:,.0f} MB are free at {folder}; {wanted / 1e6:,.0f} MB are needed.",
            advice="Free some space, or set TMPDIR to another disk.", file=str(folder),
        )  # fmt: skip


def _perplexity(file: Path, samples: Sequence[Sample], stop: Callable[[], bool]) -> float:
    total, count = 0.0, 0
    with llama.load(file, n_ctx=LENGTH, threads=_threads(file)) as model:
        for sample in samples:
            _check(stop)
            found, tokens = model.log_likelihood(sample.ids, sample.supervised)
            total, count = total + found, count + tokens
    return math.exp(-total / count)


def _threads(file: Path) -> int:
    return llama.threads_for(file, os.cpu_count() or 1)


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped("quantising was stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--train-data")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--no-imatrix", dest="imatrix", action="store_false")
    parser.add_argument("--out", type=Path)
    options = vars(parser.parse_args(arguments))
    target: Path | None = options.pop("out")
    types = tuple(filter(None, options.pop("types").split(",")))
    request = Request(**options, types=types)

    def work(home: Path, stop: Callable[[], bool], progress: Callable[..., None]) -> tuple[dict[str, Any], bool]:
        if target is not None:
            return produce(request, target, home, stop=stop, progress=progress), True
        return compare(request, home, stop=stop, progress=progress), True

    return lines.run(work)


if __name__ == "__main__":
    raise SystemExit(main())
