"""Compare shapes of the starter base: the same text, the same optimiser, files of the same size.

    python -m starter.shapes --data ../shared/data --out starter/shapes

Each shape is trained from random weights on the same documents in the same order, exported, converted and quantised.
What counts is held-out bits per byte (tokens of different vocabularies are not comparable) at a file that fits. It
says which shape learns fastest from little text; it does not say which is best after much.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from agents.gguf_factory import toolchain
from agents.gguf_factory.convert import convert
from agents.gguf_factory.quantise import quantise
from starter import tokenizer
from starter.corpus import PARTS, documents
from starter.export import export
from starter.model import Llama, Shape
from starter.pretrain import BOS, Optimiser, Run, bits_per_byte, held_out

ROWS, LENGTH = 8, 512
WARMUP, DECAY = 0.1, 0.4  # shares of the steps: a short run needs most of its steps at a falling rate


@dataclass(frozen=True)
class Finding:
    """What one shape came to after the same text."""

    name: str
    weights: int
    file_bytes: int
    bytes_per_token: float
    bits_per_byte: float
    tokens_per_second: float


@dataclass(frozen=True)
class Candidate:
    """A shape and its name in the table."""

    name: str
    shape: Shape = field(default_factory=Shape)


CANDIDATES = (
    Candidate("13 x 256, vocabulary 8192", Shape()),
    Candidate("15 x 256, vocabulary 4096", Shape(vocabulary=4096, layers=15)),
    Candidate("9 x 256, vocabulary 16384", Shape(vocabulary=16384, layers=9)),
    Candidate("3 x 512, vocabulary 4096", Shape(vocabulary=4096, layers=3, width=512, heads=8, kv_heads=4, feed_forward=1536)),
)  # each as deep as 8.3 MB allow


def sample(data: Path, size: int, seed: int) -> list[str]:
    """Return random documents of the permissive parts, in random order, of about `size` characters together."""
    texts = [text for part in PARTS for text in documents(data / "general/pretrain", part)]
    random.Random(seed).shuffle(texts)
    chosen: list[str] = []
    while size > 0 and texts:
        chosen.append(texts.pop())
        size -= len(chosen[-1])
    return chosen


def vocabulary(data: Path, folder: Path, size: int, seed: int) -> Path:
    """Return the folder of a tokenizer of so many tokens; trains it where it is missing."""
    found = folder / f"tokenizer-{size}"
    if not (found / "tokenizer.model").exists():
        tokenizer.train(data, found, seed, size)
    return found


def compare(candidate: Candidate, texts: list[str], data: Path, folder: Path, seed: int) -> Finding:
    """Train one candidate on the texts and measure it and its file."""
    words = vocabulary(data, folder, candidate.shape.vocabulary, seed)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(words / "tokenizer.model"))
    tokens = np.concatenate([np.array([BOS, *ids], np.uint16) for ids in processor.encode(texts, num_threads=2)])
    home = folder / candidate.name.replace(" ", "-").replace(",", "")
    home.mkdir(exist_ok=True)
    for name in ("text", "chat"):
        np.save(home / f"{name}.npy", tokens)
    model = Llama(candidate.shape, seed)
    run = Run(home, model, Optimiser(model), {"step": 0, "seed": seed, "text": 0, "chat": 0, "decay": None, "curve": []})
    steps = len(tokens) // (ROWS * LENGTH)
    began = time.monotonic()
    for step in range(steps):
        scale = min(1.0, (step + 1) / (WARMUP * steps), (steps - step) / (DECAY * steps))
        loss = run.step(ROWS, LENGTH, 0.0, scale)
        if step % 10 == 0:
            print(f"{candidate.name}: step {step} of {steps}, loss {loss:.3f}", flush=True)
    seconds = time.monotonic() - began
    with run.mixed():
        bits = bits_per_byte(model, *held_out(data / "general/pretrain_heldout.jsonl", words / "tokenizer.model", None))
    run.save()
    export(home, home / "model", words)
    convert(home / "model", home / "f16.gguf", program=toolchain.converter())
    quantise(home / "f16.gguf", home / "q4.gguf", "Q4_K_M", None)
    return Finding(
        candidate.name, sum(weight.numel() for weight in model.parameters()), (home / "q4.gguf").stat().st_size,
        sum(len(text.encode("utf-8")) for text in texts) / len(tokens), bits, steps * ROWS * LENGTH / seconds,
    )  # fmt: skip


def table(findings: list[Finding]) -> str:
    """Return the findings as a table in Markdown."""
    rows = [
        f"| {found.name} | {found.weights / 1e6:.2f} M | {found.file_bytes:,} | {found.bytes_per_token:.2f} |"
        f" {found.tokens_per_second:,.0f} | {found.bits_per_byte:.3f} |"
        for found in findings
    ]
    head = "| layers x width | weights | Q4_K_M, bytes | bytes per token | tokens/s | held-out bits per byte |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain and domains")
    parser.add_argument("--out", type=Path, default=Path("starter/shapes"))
    parser.add_argument("--characters", type=int, default=1_800_000, help="of text for each shape")
    parser.add_argument("--only", type=int, nargs="*", default=range(len(CANDIDATES)), help="candidates by number, from 0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = sample(options.data, options.characters, options.seed)
    findings = []
    for candidate in (CANDIDATES[number] for number in options.only):
        findings.append(compare(candidate, texts, options.data, options.out, options.seed))
        print(table(findings), flush=True)
    (options.out / "shapes.json").write_text(json.dumps([vars(found) for found in findings], indent=1))


if __name__ == "__main__":
    main()
