"""Fit the emotion model on GoEmotions and write models/emotion, card included.

    python -m agents.emotion.fit --data GOEMOTIONS --out models/emotion

GOEMOTIONS is a folder with ekman/ and original/, each with train.tsv, dev.tsv, test.tsv and labels.txt. Fitted on train;
calibration and thresholds on dev, on which the settings below were chosen as well; test is evaluated once, at the end. The
same data give the same model.safetensors and model.json, byte for byte. Takes about a minute of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

from agents.emotion.core import EMOTIONS
from agents.emotion.intensity import STRONG, emphasis, intensity
from textmodel.features import Grams
from textmodel.fitting import (
    Truth,
    Vocabulary,
    calibration,
    calibration_error,
    counted,
    one_against_rest,
    uncalibrated,
)  # fmt: skip
from textmodel.model import Floats, TextModel

GRAMS = Grams(words=(1, 2), chars=(2, 5), style=True)
LEAST = (2, 5)
"""Comments in which a word n-gram and a character n-gram must stand."""
STRENGTH = 0.6
"""C of the logistic regressions."""
LABELS = (*EMOTIONS, "felt", "strong", "confusion")
OVERRIDE = 0.6
"""The intensity above which the voice follows the emotion."""


@dataclass(frozen=True)
class Part:
    """One split: texts, and which of LABELS hold for each (N × 10)."""

    texts: list[str]
    truth: Truth
    files: dict[str, str]


def read(folder: Path, name: str) -> Part:
    """Read a split of both groupings, whose rows are the same comments in the same order."""
    files = {}
    rows: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for grouping in ("ekman", "original"):
        path = folder / grouping / f"{name}.tsv"
        known = (folder / grouping / "labels.txt").read_text(encoding="utf-8").split()
        files[f"{grouping}/{name}.tsv"] = hashlib.sha256(path.read_bytes()).hexdigest()
        rows[grouping] = []
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                text, numbers, _ = line.split("\t")
                rows[grouping].append((text, frozenset(known[int(number)] for number in numbers.split(","))))
    if [text for text, _ in rows["ekman"]] != [text for text, _ in rows["original"]]:
        raise SystemExit(f"{folder}: {name}.tsv of ekman and of original hold different comments")
    truth = [
        [*(label in coarse for label in EMOTIONS), fine != {"neutral"}, not fine.isdisjoint(STRONG), "confusion" in fine]
        for (_, coarse), (_, fine) in zip(rows["ekman"], rows["original"], strict=True)
    ]
    return Part([text for text, _ in rows["ekman"]], np.array(truth), files)


def best_thresholds(probabilities: Floats, truth: Truth) -> list[float]:
    """Return for each label the threshold with the best F1, in steps of 0.02."""
    steps = [round(0.1 + 0.02 * step, 2) for step in range(35)]
    return [
        max(steps, key=lambda step: f1_score(truth[:, label], probabilities[:, label] >= step))
        for label in range(truth.shape[1])
    ]


def fit(train: Part, dev: Part) -> TextModel:
    """Fit, calibrate, and choose the thresholds."""
    vocabulary = Vocabulary.of(counts := counted(train.texts, GRAMS), LEAST)
    weights, bias = one_against_rest(vocabulary.matrix(counts), train.truth, strength=STRENGTH)
    ids, idf, kept = vocabulary.merged(weights)
    raw = TextModel(LABELS, "sigmoid", GRAMS, ids, idf, kept, bias, uncalibrated(len(LABELS)))
    scores = np.stack([raw.scores(text) for text in dev.texts])
    model = replace(raw, calibration=calibration(scores, dev.truth))
    thresholds = best_thresholds(model.calibrated(scores), dev.truth)
    return replace(model, facts={"thresholds": dict(zip(LABELS, thresholds, strict=True))})


def probabilities(model: TextModel, texts: Sequence[str]) -> Floats:
    """Return the calibrated probabilities of texts (N × L)."""
    return np.stack([model.probabilities(text) for text in texts])


def measure(model: TextModel, part: Part) -> dict[str, Any]:
    """Return what a part's texts say of the model, by the code that an agent runs."""
    found = probabilities(model, part.texts)
    seven = len(EMOTIONS)
    chosen = found >= np.array([model.facts["thresholds"][label] for label in LABELS])
    truth = part.truth
    rows = np.arange(len(truth))
    primary = found[:, :seven].argmax(axis=1)
    right = truth[rows, primary]
    level = (truth[:, LABELS.index("felt")].astype(int) + truth[:, LABELS.index("strong")]) / 2
    strong = truth[:, LABELS.index("strong")]
    felt, full = (found[:, LABELS.index(label)].tolist() for label in ("felt", "strong"))
    strength = np.array([intensity(one, two, text) for one, two, text in zip(felt, full, part.texts, strict=True)])
    unmarked = np.array([intensity(one, two, "") for one, two in zip(felt, full, strict=True)])
    loud = strength > OVERRIDE
    mild = level == 0.5
    some = mild | (level == 1)
    return {
        "texts": len(truth),
        "macro_f1": f1_score(truth[:, :seven], chosen[:, :seven], average="macro"),
        "micro_f1": f1_score(truth[:, :seven], chosen[:, :seven], average="micro"),
        "labels": {
            label: {
                "texts": int(truth[:, number].sum()),
                "f1": f1_score(truth[:, number], chosen[:, number]),
                "threshold": model.facts["thresholds"][label],
                "ece": calibration_error(found[:, number], truth[:, number]),
            }
            for number, label in enumerate(LABELS)
        },
        "primary": {"right": float(right.mean()), "ece": calibration_error(found[rows, primary], right)},
        "intensity": {
            "share_above_threshold": float(loud.mean()),
            "full_strength_above": float(strong[loud].mean()),
            "full_strength_below": float(strong[~loud].mean()),
            "any_feeling_above": float((level[loud] > 0).mean()),
            "auc_full_strength_against_mild": roc_auc_score(level[some] == 1, strength[some]),
            "auc_without_marks": roc_auc_score(level[some] == 1, unmarked[some]),
            "auc_feeling_against_neutral": roc_auc_score(level > 0, strength),
            "share_with_marks": float(np.mean([emphasis(text) != 0 for text in part.texts])),
        },
    }  # fmt: skip


def milliseconds(model: TextModel, texts: Sequence[str], rounds: int = 3) -> float:
    """Return the median time of one text."""
    times = []
    for text in list(texts)[:500] * rounds:
        began = time.perf_counter()
        model.probabilities(text)
        times.append((time.perf_counter() - began) * 1000)
    return float(np.median(times))


def card(model: TextModel, size: int, took_ms: float) -> str:
    """Return the model card; its numbers come from the model's facts, but for the time, which no two runs share."""
    measured = model.facts["measured"]
    strength, primary = measured["intensity"], measured["primary"]
    rows = "\n".join(
        f"| {label} | {one['texts']} | {one['f1']:.3f} | {one['threshold']:.2f} | {one['ece']:.3f} |"
        for label, one in measured["labels"].items()
    )
    return f"""---
license: cc-by-4.0
language: en
pipeline_tag: text-classification
---
# Emotion of a text

A linear model over {len(model.ids):,} n-grams (words 1-2, characters 2-5, capitals and drawn-out letters marked), tf-idf, one
logistic regression for each label on naive-Bayes scaled features. {size / 1e6:.2f} MB; {took_ms:.1f} ms for a
comment on one shared core. It runs on numpy alone: see `textmodel/`. Fitted by `agents/emotion/fit.py`.

## Measured

On the {measured["texts"]:,} comments of GoEmotions' test split, evaluated once. A label counts as found from its threshold on.

| | this model | tf-idf + logistic regression | BERT, published |
|---|---|---|---|
| macro-F1 | {measured["macro_f1"]:.3f} | 0.592 | 0.64 |
| micro-F1 | {measured["micro_f1"]:.3f} | 0.658 | |

| label | test comments | F1 | threshold | calibration error |
|---|---|---|---|---|
{rows}

`felt` is any feeling, `strong` one of full strength, `confusion` GoEmotions' finer label within surprise. The calibration error
(ECE, ten bins) says how far a stated probability is from the share that holds.

- Primary emotion (the label with the highest probability): in {100 * primary["right"]:.1f} % of the comments it is one that
  people chose. Calibration error of `emotion_confidence`: {primary["ece"]:.3f}.
- Intensity above {OVERRIDE}, where the voice follows the emotion: {100 * strength["share_above_threshold"]:.1f} % of the comments.
  Of these {100 * strength["any_feeling_above"]:.1f} % carry a feeling and {100 * strength["full_strength_above"]:.1f} % one of full strength;
  of the others {100 * strength["full_strength_below"]:.1f} % do.
- Intensity tells a comment of full strength from a mild one with an AUC of {strength["auc_full_strength_against_mild"]:.3f}
  ({strength["auc_without_marks"]:.3f} without intensifiers, exclamation marks and capitals), and one with a feeling from a neutral
  one with {strength["auc_feeling_against_neutral"]:.3f}. Its definition stands in `agents/emotion/intensity.py`.

## Limits

- English comments of Reddit, mostly short. Other languages, other kinds of text and long texts are not measured.
- It sees words, not meaning: irony, negation at a distance and feelings that are only described are often missed.
- Disgust, fear and confusion are rare in the data (see the table); rely on the probability, not on the label alone.
- Nobody measured intensity by asking people for it: strength is derived from which of the 27 finer labels they chose.
- It is no diagnosis. `professional_analysis` is a table of advice by context, not the judgement of a professional.

## Made from

GoEmotions (Demszky et al. 2020), {model.facts["data"]["train_texts"]:,} comments for fitting, {model.facts["data"]["dev_texts"]:,} for calibration,
thresholds and settings; 7 Ekman labels and 28 original ones. Licence of the data and of this model: CC BY 4.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ekman/ and original/")
    parser.add_argument("--out", type=Path, default=Path("models/emotion"))
    parser.add_argument("--dev", action="store_true", help="measure on dev instead of test, print it, and write nothing")
    options = parser.parse_args()
    train, dev = read(options.data, "train"), read(options.data, "dev")
    model = fit(train, dev)
    if options.dev:
        print(json.dumps(measure(model, dev), indent=1))
        return
    test = read(options.data, "test")
    model.facts["measured"] = measure(model, test)
    model.facts["data"] = {
        "name": "GoEmotions", "licence": "CC BY 4.0", "train_texts": len(train.texts), "dev_texts": len(dev.texts),
        "sha256": train.files | dev.files | test.files,
    }  # fmt: skip
    model.save(options.out)
    size = (options.out / "model.safetensors").stat().st_size
    (options.out / "README.md").write_text(card(model, size, milliseconds(model, test.texts)), encoding="utf-8")


if __name__ == "__main__":
    main()
