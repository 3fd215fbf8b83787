"""Measure the base as the file that it becomes: the bytes of its Q4_K_M, and whether its answers end by themselves."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from agents.gguf_factory import convert, quantise
from agents.gguf_factory.proof import Request, prove
from agents.gguf_factory.subject import QUESTIONS

STOPS = "stops_percent"


@dataclass(frozen=True)
class Quantised:
    """Bytes of the file, and the percent of answers that end, the mean over domains of QUESTIONS questions each."""

    bytes: int
    stops_percent: float
    domains: int


def measure(base: Path, data: Path) -> Quantised:
    """Convert and quantise the untouched base, and draw its answers to the questions of the domains' evaluation files.

    Raises:
        LabError: TOOLCHAIN, a program of the tool chain is missing or failed.
        ValueError: no domain has QUESTIONS questions.
    """
    shares = []
    with tempfile.TemporaryDirectory(prefix="starter-") as folder:
        home = Path(folder)
        file = home / "base.gguf"
        quantise.quantise(convert.convert_base(base, home), file, quantise.DEFAULT, None)
        for path in sorted((data / "domains_heldout").glob("*.jsonl")):
            if len(path.read_text(encoding="utf-8").splitlines()) >= QUESTIONS:
                gate = prove(Request(file, str(base), str(path), only=(STOPS,)), home)["gates"][STOPS]
                shares.append(float(gate["value"]))
        if not shares:
            raise ValueError(f"no file in {data / 'domains_heldout'} has {QUESTIONS} rows")
        return Quantised(file.stat().st_size, fmean(shares), len(shares))
