"""Fit the router's understanding of free words and write models/router, card included.

    python -m agents.router.fit --vectors vectors.npz --glove glove.6B.50d.txt --clinc CLINC150 --out models/router

Fitted on data/utterances.jsonl, on the domains' one-line descriptions (data/domains.md) and, for what belongs to no domain, on
out-of-scope questions of CLINC150. Calibration and the settings below come from five folds of the same rows. The held-out
utterances (data/utterances_eval.jsonl) are only measured on. vectors.npz comes from agents/router/vectors.py, GloVe from its
authors (glove.6B.zip). The same input gives the same model.safetensors and model.json, byte for byte. Takes a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from agents.router.words import LIMIT, NEAREST, OTHER, TRAIN_LIMIT, confidence
from configs.tiers import PROJECT
from textmodel.features import Grams, tokens
from textmodel.fitting import Truth, Vocabulary, calibration_error, counted, quantised, uncalibrated
from textmodel.model import Floats, TextModel

DATA = PROJECT / "data"
GRAMS = Grams(words=(1, 1), chars=(2, 5))
LEAST_CHARS = 2
"""Sentences in which a character n-gram must stand."""
GLOVE_WORDS = 40_000
"""The most frequent of GloVe's 400,000; each word costs 68 bytes."""
LEAST_SHARE = 7e-7
"""Frequency of the rarest word taken from the vectors: 10 occurrences in 14 million words."""
RARE = 1e-3
"""a of the weight a / (a + frequency) of a word (Arora, Liang & Ma 2017): `the` counts little."""
RIDGE = 16.0
"""Strength of the regularisation; 8 was worse in five folds, 32 no better."""
DESCRIBED = 8.0
"""How many utterances a domain's description counts for; 3 was a little worse, more was not tried."""
FOLDS = 5
WITHOUT_VECTORS = 39
"""Percent right in five folds by words and character n-grams alone, measured when vectors were tried."""
LIMITS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
NO_DOMAIN_SHARE = 0.25
"""Of texts that reach a router, so many are taken to belong to no domain when confidences are calibrated."""


@dataclass(frozen=True)
class Rows:
    """Texts, their label (its number), and how much each counts. Descriptions are in no fold (-1)."""

    texts: list[str]
    label: np.ndarray[Any, np.dtype[np.int64]]
    weight: Floats
    fold: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Words:
    """The known words: hashes ascending, weights, and both kinds of vectors (zero where one does not know the word)."""

    vocabulary: Vocabulary
    vectors: tuple[Floats, Floats]


def utterances(path: Path) -> list[tuple[str | None, str]]:
    """Read rows of domain (None: no domain) and text."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["domain"], row["text"]) for row in rows]


def descriptions(path: Path) -> list[tuple[str, str]]:
    """Read what belongs to each domain, without the sentences on what does not."""
    found = re.findall(r"^- (\w+): (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [(name, f"{name.replace('_', ' ')}: {re.split(r'[.] [A-Z]', text)[0]}") for name, text in found]


def training(labels: list[str], clinc: dict[str, list[list[str]]]) -> Rows:
    """Gather the rows; every label's utterances are dealt to the folds in turn."""
    told = utterances(DATA / "utterances.jsonl")
    outside = [text for name in ("oos_train", "oos_val") for text, _ in clinc[name]]
    about = descriptions(DATA / "domains.md")
    label = np.array([labels.index(name) for name, _ in [*told, *about] if name] + [labels.index(OTHER)] * len(outside))
    weight = np.ones(len(label), np.float32)
    weight[len(told) : len(told) + len(about)] = DESCRIBED
    fold = np.zeros(len(label), np.int64)
    shuffled = np.random.default_rng(0)
    for number in range(len(labels)):
        own = np.flatnonzero(label == number)
        fold[shuffled.permutation(own)] = np.arange(len(own)) % FOLDS
    fold[len(told) : len(told) + len(about)] = -1
    return Rows([text for _, text in told] + [text for _, text in about] + outside, label, weight, fold)


def known_words(rows: Rows, vectors: Path, glove: Path) -> tuple[Words, dict[str, str]]:
    """Gather the words of the utterances, of the vectors and of GloVe, and the sha256 of what was read."""
    with np.load(vectors) as found:
        frequent = found["frequency"] >= LEAST_SHARE
        frequency = dict(zip(found["words"][frequent].tolist(), found["frequency"][frequent].tolist(), strict=True))
        own = dict(zip(frequency, found["vectors"][frequent], strict=True))
        digests = {"vectors": hashlib.sha256(found["vectors"].tobytes()).hexdigest()}
    with glove.open(encoding="utf-8") as file:
        lines = [next(file).split() for _ in range(GLOVE_WORDS)]
    table = np.array([line[1:] for line in lines], np.float32)
    table -= table.mean(axis=0)
    _, _, directions = np.linalg.svd(table, full_matrices=False)
    table -= np.outer(table @ directions[0], directions[0])  # the direction of frequency (Mu & Viswanath 2018)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    given = {line[0]: vector for line, vector in zip(lines, table, strict=True)}
    for rank, line in enumerate(lines):
        frequency.setdefault(line[0], 0.1 / (rank + 2))  # Zipf's law
    seen = {token for text in rows.texts for token in tokens(text) if token[0].isalnum()}
    words = sorted({word for word in {*own, *given, *seen} if tokens(word) == [word]}, key=_hash)
    weight = np.array([RARE / (RARE + frequency.get(word, 1e-6)) for word in words]).astype(np.float16).astype(np.float32)
    vectors_of = [
        np.stack([source.get(word, np.zeros(width, np.float32)) for word in words])
        for source, width in ((own, next(iter(own.values())).size), (given, table.shape[1]))
    ]
    chars = Vocabulary.of(counted(rows.texts, GRAMS), (1, LEAST_CHARS))
    ids = np.array([_hash(word) for word in words], np.uint32)
    once = np.append(True, ids[1:] != ids[:-1])
    vocabulary = Vocabulary((ids[once], chars.ids[1]), (weight[once], chars.idf[1]))
    digests["glove"] = hashlib.sha256("\n".join(" ".join(line) for line in lines).encode()).hexdigest()
    return Words(vocabulary, (vectors_of[0][once], vectors_of[1][once])), digests


def _hash(word: str) -> int:
    from zlib import crc32

    return crc32(b"w" + word.encode())


class Ridge:
    """Least squares on words, their vectors, and character n-grams, solved for the rows (a kernel), given back for n-grams.

    Vectors are sums over words, so their part of a score is folded into the words' own weights: an agent needs no vectors.
    """

    def __init__(self, rows: Rows, words: Words, labels: int) -> None:
        self.rows, self.words = rows, words
        matrix = words.vocabulary.matrix(counted(rows.texts, GRAMS))
        size = len(words.vocabulary.ids[0])
        self.word_part, self.char_part = matrix[:, :size], matrix[:, size:]
        self.dense = [self.word_part @ table for table in words.vectors]
        kernel = (matrix @ matrix.T).toarray().astype(np.float64)
        self.kernel = kernel + sum(part.astype(np.float64) @ part.T for part in self.dense) + 1
        self.target = 2.0 * np.eye(labels)[rows.label] - 1

    def solve(self, chosen: Truth) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the rows' coefficients, fitted on the chosen ones."""
        inside = self.kernel[np.ix_(chosen, chosen)] + np.diag(RIDGE / self.rows.weight[chosen])
        return np.linalg.solve(inside, self.target[chosen])

    def held_out(self) -> Floats:
        """Return every row's scores by a fit that has not seen its fold (descriptions: none)."""
        scores = np.zeros(self.target.shape, np.float32)
        for fold in range(FOLDS):
            inside = self.rows.fold != fold
            scores[~inside] = self.kernel[np.ix_(~inside, inside)] @ self.solve(inside)
        return scores

    def weights(self) -> tuple[Floats, Floats]:
        """Return the weights of all n-grams (F × L), words first, and the bias, fitted on all rows."""
        found = self.solve(np.ones(len(self.rows.texts), bool))
        words = self.word_part.T @ found
        for part, table in zip(self.dense, self.words.vectors, strict=True):
            words = words + table @ (part.T @ found)
        return np.vstack([words, self.char_part.T @ found]).astype(np.float32), found.sum(axis=0).astype(np.float32)


def calibration(scores: Floats, label: np.ndarray[Any, np.dtype[np.int64]]) -> Floats:
    """Return one temperature for all labels and an offset for `no domain`, of the least negative log likelihood."""
    last = scores.shape[1] - 1
    weight = outside_weight(label, last)

    def loss(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        held = scores * np.exp(values[0])
        held[:, last] += values[1]
        held -= held.max(axis=1, keepdims=True)
        likelihood = held[np.arange(len(held)), label] - np.log(np.exp(held).sum(axis=1))
        return -float((weight * likelihood).mean())

    steepness, offset = minimize(loss, np.array([2.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7}).x
    found = uncalibrated(scores.shape[1]) * np.float32(np.exp(steepness))
    found[2, last] = offset
    return found


def outside_weight(label: np.ndarray[Any, np.dtype[np.int64]], last: int) -> Floats:
    """Return weights with which texts of no domain have NO_DOMAIN_SHARE of all."""
    outside = label == last
    return np.where(outside, NO_DOMAIN_SHARE / outside.mean(), (1 - NO_DOMAIN_SHARE) / (1 - outside.mean()))


def rank_calibration(shares: Floats, label: np.ndarray[Any, np.dtype[np.int64]]) -> list[list[float]]:
    """Return rise, fall and offset of the first three ranks (see `agents.router.words.confidence`)."""
    last = shares.shape[1] - 1
    order = np.argsort(-shares[:, :last], axis=1, kind="stable")
    found = []
    for rank in range(NEAREST):
        p = np.clip(shares[np.arange(len(label)), order[:, rank]].astype(np.float64), 1e-6, 1 - 1e-6)
        logs = np.stack([np.log(p), -np.log(1 - p)], axis=1)
        fitted = LogisticRegression(C=1e4, max_iter=1000)
        fitted.fit(logs, order[:, rank] == label, sample_weight=outside_weight(label, last))
        found.append([round(float(value), 6) for value in (*fitted.coef_[0], fitted.intercept_[0])])
    return found


def fit(rows: Rows, words: Words, labels: list[str]) -> tuple[TextModel, dict[str, Any]]:
    """Fit and calibrate; also return what the folds say."""
    ridge = Ridge(rows, words, len(labels))
    weights, bias = ridge.weights()
    vocabulary = words.vocabulary
    ids, first = np.unique(np.concatenate(vocabulary.ids), return_index=True)
    small, scale = quantised(weights[first])
    idf = np.concatenate(vocabulary.idf)[first].astype(np.float16)
    dealt = rows.fold >= 0
    scores = ridge.held_out()[dealt]
    model = TextModel(
        tuple(labels), "softmax", GRAMS, ids, idf, small, bias, calibration(scores, rows.label[dealt]), scale
    )  # fmt: skip
    ranks = rank_calibration(model.calibrated(scores), rows.label[dealt])
    return replace(model, facts={"ranks": ranks}), measure(model.calibrated(scores), rows.label[dealt], ranks)


def measure(found: Floats, label: np.ndarray[Any, np.dtype[np.int64]], ranks: list[list[float]]) -> dict[str, Any]:
    """Return what shares (N × L, the last label: no domain) say against the truth."""
    last = found.shape[1] - 1
    inside = label < last
    order = np.argsort(-found[:, :last], axis=1, kind="stable")
    best, top = order[:, 0], found[:, :last].max(axis=1)
    sure = np.array([confidence(share, ranks[0]) for share in top.tolist()], np.float32)
    right = best == label
    curve = {}
    for step in LIMITS:
        taken = sure >= step
        curve[f"{step:.2f}"] = {
            "in_scope_accepted": float(taken[inside].mean()),
            "right_of_these": float(right[inside & taken].mean()),
            "out_of_scope_rejected": float((~taken[~inside]).mean()),
        }
    return {
        "in_scope": int(inside.sum()),
        "out_of_scope": int((~inside).sum()),
        "top1": float(right[inside].mean()),
        "top3": float((order[inside, :NEAREST] == label[inside, None]).any(axis=1).mean()),
        "ece": calibration_error(sure, right),
        "ece_in_scope": calibration_error(sure[inside], right[inside]),
        "by_limit": curve,
    }


def milliseconds(model: TextModel, texts: list[str]) -> float:
    """Return the median time of one text."""
    times = []
    for text in texts * 3:
        began = time.perf_counter()
        model.probabilities(text)
        times.append((time.perf_counter() - began) * 1000)
    return float(np.median(times))


def card(model: TextModel, size: int, took_ms: float) -> str:
    """Return the model card; its numbers come from the model's facts, but for the time, which no two runs share."""
    measured, folds = model.facts["measured"], model.facts["folds"]
    trivia = model.facts["clinc_out_of_scope"]
    rows = "\n".join(
        f"| {limit} | {100 * one['in_scope_accepted']:.1f} % | {100 * one['right_of_these']:.1f} % |"
        f" {100 * one['out_of_scope_rejected']:.1f} % |"
        for limit, one in measured["by_limit"].items()
    )
    return f"""---
license: cc-by-sa-4.0
language: en
pipeline_tag: text-classification
---
# What a sentence is about

A linear model that finds the domain of a sentence among {len(model.labels) - 1}, or none. {len(model.ids):,} words and character
n-grams; {size / 1e6:.2f} MB; {took_ms:.1f} ms for a sentence on one shared core. It runs on numpy alone: see `textmodel/`.
Fitted by `agents/router/fit.py` with `agents/router/vectors.py`.

## Measured

On {measured["in_scope"]} utterances of the {len(model.labels) - 1} domains and {measured["out_of_scope"]} that belong to none
(`data/utterances_eval.jsonl`). Nothing was fitted or chosen on them.

| | held out | five folds of the training rows |
|---|---|---|
| the likeliest domain is right | {100 * measured["top1"]:.1f} % | {100 * folds["top1"]:.1f} % |
| it is among the three nearest | {100 * measured["top3"]:.1f} % | {100 * folds["top3"]:.1f} % |
| calibration error of `domain_confidence` (ECE, ten bins) | {measured["ece"]:.3f} | {folds["ece"]:.3f} |
| the same, texts of a domain only | {measured["ece_in_scope"]:.3f} | {folds["ece_in_scope"]:.3f} |

What a limit on the confidence costs, on the held-out utterances. `route.text` asks below {LIMIT}, `train.submit` below {TRAIN_LIMIT}:

| limit | accepted, of texts with a domain | right, of the accepted | asked, of texts without a domain |
|---|---|---|---|
{rows}

Of CLINC150's {trivia["texts"]:,} out-of-scope test questions (general knowledge) {100 * trivia["rejected"]:.1f} % are asked back at {LIMIT}.

## Limits

- These numbers are modest: {100 - 100 * measured["top1"]:.0f} of 100 sentences get a wrong first guess, many of them a neighbour of the
  right domain (stress_management and work_life_balance, legal and legal_business). Name the domain where you know it.
- Confidence is calibrated for a mix in which one text in four belongs to no domain. In another mix it is off.
- English only. A domain of your own under `custom:` is not in the model: it is found by its name alone.
- It sees words, not meaning: a sentence whose words the model has never seen says nothing to it.

## Made from

| what | licence |
|---|---|
| {model.facts["data"]["rows"]:,} rows: `data/utterances.jsonl`, one description a domain, and out-of-scope questions of CLINC150 | CC0-1.0, CC BY 3.0 |
| word vectors of 14 million words: instruction rows of permissively licensed domain data sets, Schema-Guided Dialogue, Taskmaster-4, MedQuAD, OWASP cheat sheets, tldr pages, OpenStax, Wikipedia passages, GoEmotions, CLINC150 | CC BY 3.0/4.0, CC BY-SA 3.0/4.0, MIT |
| GloVe 6B, 50 numbers a word, the {GLOVE_WORDS:,} most frequent words (Pennington, Socher & Manning 2014) | PDDL 1.0 |

A ridge regression over words, both kinds of vectors and character n-grams, with twenty-six sentences a domain. Vectors are sums over
words, so they are folded into the words' own weights. Without any vectors the folds found {WITHOUT_VECTORS} % right, with those of one kind
alone about 50 %.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--glove", type=Path, required=True, help="glove.6B.50d.txt")
    parser.add_argument("--clinc", type=Path, required=True, help="folder with data_full.json")
    parser.add_argument("--out", type=Path, default=Path("models/router"))
    parser.add_argument("--folds", action="store_true", help="print what the folds say, and write nothing")
    options = parser.parse_args()
    clinc = json.loads((options.clinc / "data_full.json").read_text(encoding="utf-8"))
    labels = [*dict.fromkeys(name for name, _ in utterances(DATA / "utterances.jsonl") if name), OTHER]
    rows = training(labels, clinc)
    words, digests = known_words(rows, options.vectors, options.glove)
    model, folds = fit(rows, words, labels)
    if options.folds:
        print(json.dumps(folds, indent=1))
        return
    held_out = utterances(DATA / "utterances_eval.jsonl")
    truth = np.array([labels.index(name) if name else len(labels) - 1 for name, _ in held_out])
    trivia = [text for text, _ in clinc["oos_test"]]
    first = model.facts["ranks"][0]
    asked = [confidence(float(model.probabilities(text)[:-1].max()), first) < LIMIT for text in trivia]
    facts = {
        **model.facts, "limit": LIMIT, "folds": folds,
        "measured": measure(np.stack([model.probabilities(text) for _, text in held_out]), truth, model.facts["ranks"]),
        "clinc_out_of_scope": {"texts": len(trivia), "rejected": sum(asked) / len(asked)},
        "data": {"rows": len(rows.texts), "sha256": digests},
    }  # fmt: skip
    model = replace(model, facts=facts)
    model.save(options.out)
    size = (options.out / "model.safetensors").stat().st_size
    took = milliseconds(model, [text for _, text in held_out])
    (options.out / "README.md").write_text(card(model, size, took), encoding="utf-8")


if __name__ == "__main__":
    main()
