"""A fitted linear text model: arrays in model.safetensors, everything else in model.json. Runs on numpy alone.

score = bias + (tf-idf vector · weights); the vector is (1 + ln count) · idf, its word part and its character part each of
length one. Calibration bends each label's scores (Kull et al. 2017, "beta calibration"), so that a probability says how often
it holds; then `sigmoid` gives each label a probability of its own (several may hold), `softmax` shares one among all (one holds).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from textmodel.features import Grams, Hashes, count

FORMAT = 1
"""Of model.json; another number is another way to read the arrays."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextModel:
    """A text classifier.

    Attributes:
        labels: what is told apart, in the order of the columns.
        kind: `sigmoid` or `softmax`.
        grams: the n-grams that are counted.
        ids: hashes of the known n-grams, ascending (F).
        idf: inverse document frequency of each (F).
        weights: of n-grams to labels (F × L): float16, or int8 with `scale`.
        bias: of the labels (L).
        calibration: of each label (3 × L), see `bent`.
        scale: what each n-gram's int8 weights are multiplied by (F); None: they are as they stand.
        facts: what model.json says beyond this: measured numbers, data, licence.
    """

    labels: tuple[str, ...]
    kind: str
    grams: Grams
    ids: Hashes
    idf: npt.NDArray[np.float16]
    weights: npt.NDArray[np.float16] | npt.NDArray[np.int8]
    bias: Floats
    calibration: Floats
    scale: npt.NDArray[np.float16] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def scores(self, text: str) -> Floats:
        """Return the labels' raw scores (L)."""
        total = self.bias.copy()
        for hashes, often in count(text, self.grams):
            places = np.minimum(np.searchsorted(self.ids, hashes), len(self.ids) - 1)
            known = self.ids[places] == hashes
            places = places[known]
            if not len(places):
                continue
            values = (1 + np.log(often[known])) * self.idf[places].astype(np.float32)
            values /= np.sqrt(values @ values)
            if self.scale is not None:
                values *= self.scale[places].astype(np.float32)
            total += values @ self.weights[places].astype(np.float32)
        return total

    def probabilities(self, text: str) -> Floats:
        """Return the labels' calibrated probabilities (L)."""
        return self.calibrated(self.scores(text))

    def calibrated(self, scores: Floats) -> Floats:
        """Return the probabilities that raw scores (… × L) stand for."""
        held = bent(scores, self.calibration)
        if self.kind == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-np.clip(held, -30, 30))), np.float32)
        raised = np.exp(held - held.max(axis=-1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json; the same model gives the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        if self.scale is not None:
            arrays["scale"] = self.scale
        (folder / "model.safetensors").write_bytes(save(arrays))
        about = {
            "format": FORMAT, "kind": self.kind, "labels": list(self.labels),
            "grams": {"words": list(self.grams.words), "chars": list(self.grams.chars), "style": self.grams.style},
            **self.facts,
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TextModel:
        """Read a model.

        Raises:
            ValueError: the folder holds no whole model; the text names the file and what is wrong with it.
        """
        try:
            about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            if about.pop("format") != FORMAT:
                raise ValueError(f"{folder / 'model.json'} has another format than {FORMAT}")
            arrays = load_file(folder / "model.safetensors")
            grams = about.pop("grams")
            model = cls(
                labels=tuple(about.pop("labels")), kind=about.pop("kind"),
                grams=Grams(tuple(grams["words"]), tuple(grams["chars"]), grams["style"]),
                **{name: arrays[name] for name in ARRAYS}, scale=arrays.get("scale"), facts=about,
            )  # fmt: skip
        except (OSError, KeyError, TypeError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} holds no text model: {error}") from error
        shape = (len(model.ids), len(model.labels))
        if model.weights.shape != shape or model.idf.shape != shape[:1] or model.bias.shape != shape[1:]:
            raise ValueError(f"{folder / 'model.safetensors'} does not fit model.json: weights of {model.weights.shape}")
        return model


ARRAYS = ("ids", "idf", "weights", "bias", "calibration")


def bent(scores: Floats, calibration: Floats) -> Floats:
    """Return calibrated scores: rise · ln p - fall · ln(1 - p) + offset, where p is the score's sigmoid.

    `calibration` holds rise, fall and offset (3 × L). With rise = fall it is Platt's line, of which temperature is a case.
    """
    rise, fall, offset = calibration
    return np.asarray(offset - rise * np.logaddexp(0, -scores) + fall * np.logaddexp(0, scores), np.float32)
