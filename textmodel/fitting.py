"""Fitting text models with scikit-learn. Imported by fit scripts, never by an agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from sklearn.linear_model import LogisticRegression

from textmodel.features import Grams, Hashes, count
from textmodel.model import Floats

Counted = list[list[tuple[Hashes, Floats]]]
Truth = npt.NDArray[np.bool_]

BINS = 10
"""Of the calibration error: the number that most papers use (Guo et al. 2017 use 15 on sets twice as large)."""


def counted(texts: Sequence[str], grams: Grams) -> Counted:
    """Count every text's n-grams."""
    return [count(text, grams) for text in texts]


@dataclass(frozen=True)
class Vocabulary:
    """The n-grams that a model knows, of each block (words, characters) apart: hashes ascending, and their idf."""

    ids: tuple[Hashes, ...]
    idf: tuple[Floats, ...]

    @classmethod
    def of(cls, texts: Counted, least: tuple[int, int]) -> Vocabulary:
        """Take the n-grams that stand in at least so many texts (of words, of characters).

        idf = ln((1 + texts) / (1 + texts with it)) + 1, rounded to the float16 in which it is kept.
        """
        ids, idf = [], []
        for block, minimum in enumerate(least):
            unique, often = np.unique(np.concatenate([text[block][0] for text in texts]), return_counts=True)
            kept = often >= minimum
            values = np.log((1 + len(texts)) / (1 + often[kept])) + 1
            ids.append(unique[kept])
            idf.append(values.astype(np.float16).astype(np.float32))
        return cls(tuple(ids), tuple(idf))

    def matrix(self, texts: Counted) -> sparse.csr_matrix:
        """Return the tf-idf rows of texts: words first, then characters."""
        parts = []
        for block, (ids, idf) in enumerate(zip(self.ids, self.idf, strict=True)):
            rows = np.repeat(np.arange(len(texts)), [len(text[block][0]) for text in texts])
            hashes = np.concatenate([text[block][0] for text in texts])
            often = np.concatenate([text[block][1] for text in texts])
            places = np.minimum(np.searchsorted(ids, hashes), len(ids) - 1)
            known = ids[places] == hashes
            values = (1 + np.log(often[known])) * idf[places[known]]
            part = sparse.csr_matrix((values, (rows[known], places[known])), (len(texts), len(ids)), dtype=np.float32)
            length = np.sqrt(np.asarray(part.multiply(part).sum(axis=1)).ravel())
            parts.append(sparse.diags_array(1 / np.maximum(length, 1e-12), dtype=np.float32) @ part)
        return sparse.hstack(parts, format="csr", dtype=np.float32)

    def merged(self, weights: Floats) -> tuple[Hashes, npt.NDArray[np.float16], npt.NDArray[np.float16]]:
        """Return ids, idf and weights of both blocks as a TextModel keeps them: one table, ascending.

        A hash that both blocks know keeps the words' entry; of 100,000 n-grams about one is lost so.
        """
        ids, first = np.unique(np.concatenate(self.ids), return_index=True)
        return ids, np.concatenate(self.idf)[first].astype(np.float16), weights[first].astype(np.float16)


def quantised(weights: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Return weights (F × L) as int8 and the scale of each row (F): half the size of float16."""
    scale = np.maximum(np.abs(weights).max(axis=1) / 127, 1e-7).astype(np.float16)
    steps = np.rint(weights / np.maximum(scale.astype(np.float32), 1e-7)[:, None])
    return np.clip(steps, -127, 127).astype(np.int8), scale


def one_against_rest(rows: sparse.csr_matrix, truth: Truth, *, strength: float) -> tuple[Floats, Floats]:
    """Fit a logistic regression for each label on features scaled by their naive-Bayes log ratio.

    The scaling (Wang & Manning 2012, "NBSVM") says beforehand which n-grams speak for a label; it is multiplied into the
    weights, so that a model with it is as small and fast as one without.

    Args:
        rows: features (N × F).
        truth: which labels hold (N × L).
        strength: scikit-learn's C; smaller is smoother.

    Returns:
        Weights (F × L) and bias (L).
    """
    weights, bias = [], []
    for label in range(truth.shape[1]):
        held = truth[:, label]
        inside = 1 + np.asarray(rows[held].sum(axis=0)).ravel()
        outside = 1 + np.asarray(rows[~held].sum(axis=0)).ravel()
        ratio = np.log((inside / inside.sum()) / (outside / outside.sum())).astype(np.float32)
        scaled = (rows @ sparse.diags_array(ratio)).tocsr().astype(np.float32)
        # liblinear's primal would be `dual=False` as here: no random order, so the same data give the same weights
        fitted = LogisticRegression(C=strength, solver="liblinear", dual=False).fit(scaled, held)
        weights.append(fitted.coef_[0] * ratio)
        bias.append(fitted.intercept_[0])
    return np.stack(weights, axis=1).astype(np.float32), np.array(bias, np.float32)


def calibration(scores: Floats, truth: Truth) -> Floats:
    """Fit each label's calibration (3 × L, see `textmodel.model.bent`) on scores (N × L) that its fitting has not seen."""
    columns = []
    for label in range(truth.shape[1]):
        logs = np.stack([-np.logaddexp(0, -scores[:, label]), np.logaddexp(0, scores[:, label])], axis=1)
        fitted = LogisticRegression(C=1e4, max_iter=1000).fit(logs, truth[:, label])
        columns.append([*fitted.coef_[0], fitted.intercept_[0]])
    return np.array(columns, np.float32).T


def uncalibrated(labels: int) -> Floats:
    """Return the calibration that leaves scores as they are."""
    return np.repeat(np.array([[1], [1], [0]], np.float32), labels, axis=1)


def calibration_error(confidence: Floats, right: Truth) -> float:
    """Return the expected calibration error (Naeini et al. 2015): |confidence - share right|, averaged over equal bins."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    error = 0.0
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            error += inside.mean() * abs(float(confidence[inside].mean()) - float(right[inside].mean()))
    return error
