"""Make word vectors from text, for fitting the router; no agent imports this.

    python -m agents.router.vectors --data DATA --out vectors.npz

Twenty-six sentences say little about a domain's words; vectors know from other text that `invoice` is near `payable`. Words are
counted together within ten words of each other, the counts become positive pointwise mutual information, and its largest
directions become the vectors (Levy, Goldberg & Dagan 2015). The same data give the same bytes on one kind of machine.
DATA is a folder with general/pretrain, domains, emotion-text/goemotions and routing/clinc150; see PARTS for what is used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
import zstandard
from sklearn.utils.extmath import randomized_svd

from textmodel.features import tokens
from textmodel.model import Floats

PARTS = (
    "dialogue_sgd_taskmaster", "encyclopedic_wikipedia_passages", "health_medquad", "tech_owasp_tldr", "textbooks_openstax",
)  # fmt: skip
"""Parts of general/pretrain; the rest is old prose, speeches, and recipes whose licence forbids it."""
WITHHELD = frozenset(
    ["communication", "conflict_resolution", "cooking", "mental_health", "parenting", "relationships", "stress_management"]
)
"""Domain data sets whose licence does not let weights that were trained on them be given away."""
LEAST = 10
"""Occurrences of a word; rarer ones get vectors of little sense."""
WINDOW = 10
"""Words to either side: the topic counts here, not the grammar. 5 and 20 were no better."""
WIDTH = 200
"""Numbers of a vector; 300 were no better."""
FREQUENT = 1e-4
"""Words more frequent than this are dropped at random, the more so the more frequent (Mikolov et al. 2013)."""
SMOOTHING = 0.75
"""Power of the context's frequency (Levy et al. 2015)."""


def texts(data: Path) -> Iterator[str]:
    """Yield the documents that words are counted in."""
    for path in sorted((data / "domains").glob("*.jsonl")):
        if path.stem not in WITHHELD:
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                yield " ".join(part for part in (row["instruction"], row.get("input"), row["output"]) if part)
    for part in PARTS:
        plain, packed = data / f"general/pretrain/{part}.txt", data / f"general/pretrain/{part}.txt.zst"
        content = plain.read_bytes() if plain.exists() else zstandard.ZstdDecompressor().stream_reader(packed.read_bytes()).read()
        yield from content.decode().split("<|doc|>")
    for line in (data / "emotion-text/goemotions/ekman/train.tsv").read_text(encoding="utf-8").split("\n"):
        yield line.split("\t")[0]
    clinc = json.loads((data / "routing/clinc150/data/data_full.json").read_text(encoding="utf-8"))
    for name in ("train", "val", "oos_train"):
        yield from (text for text, _ in clinc[name])


def vectors(documents: Iterator[str]) -> tuple[list[str], Floats, Floats]:
    """Return words, their vectors of length one (N × WIDTH), and their frequencies (N)."""
    known: dict[str, int] = {}
    found = [
        np.array([known.setdefault(token, len(known)) for token in tokens(text) if token[0].isalnum()], np.int32)
        for text in documents
    ]
    stream = np.concatenate(found)
    document = np.repeat(np.arange(len(found)), [len(one) for one in found])
    often = np.bincount(stream, minlength=len(known))
    kept = np.flatnonzero(often >= LEAST)
    number = np.full(len(known), -1, np.int32)
    number[kept] = np.arange(len(kept))
    frequency = often[kept] / len(stream)
    stream = number[stream]
    chance = np.minimum(1, np.sqrt(FREQUENT / frequency) + FREQUENT / frequency)
    stays = stream >= 0
    stays[stays] &= np.random.default_rng(0).random(int(stays.sum())) < chance[stream[stays]]
    stream, document = stream[stays], document[stays]
    together = sparse.csr_matrix((len(kept), len(kept)), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        same = document[distance:] == document[:-distance]
        pairs = stream[:-distance][same].astype(np.int64) * len(kept) + stream[distance:][same]
        unique, counts = np.unique(pairs, return_counts=True)
        places = (unique // len(kept), unique % len(kept))
        together = together + sparse.csr_matrix((counts.astype(np.float32), places), together.shape)
    table = (together + together.T).tocoo()
    total = np.asarray(table.sum(axis=1)).ravel()
    context = total**SMOOTHING / (total**SMOOTHING).sum()
    information = np.log(table.data / (total[table.row] * context[table.col]))
    above = information > 0
    positive = sparse.csr_matrix((information[above].astype(np.float32), (table.row[above], table.col[above])), table.shape)
    left, strength, _ = randomized_svd(positive, WIDTH, n_iter=4, random_state=0)
    found_vectors = left * np.sqrt(strength)
    found_vectors /= np.linalg.norm(found_vectors, axis=1, keepdims=True) + 1e-9
    words = np.array(list(known))[kept].tolist()
    return words, found_vectors.astype(np.float32), frequency.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    words, found, frequency = vectors(texts(options.data))
    np.savez(options.out, words=np.array(words), vectors=found, frequency=frequency)


if __name__ == "__main__":
    main()
