"""The shipped model is what its card says, and folding vectors into words changes no score."""

import numpy as np
import pytest

import configs
from agents.router.agent import MODEL
from agents.router.fit import GRAMS, Ridge, Rows, Words, utterances
from agents.router.words import OTHER, Reader, matches
from configs import Settings
from configs.tiers import PROJECT
from textmodel.fitting import Vocabulary, counted, quantised, uncalibrated
from textmodel.model import TextModel

EVAL = PROJECT / "data" / "utterances_eval.jsonl"


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel.load(MODEL)


def test_the_model_knows_every_shipped_domain_and_no_other(model):
    assert set(model.labels) == {*configs.load(Settings.read()).domains, OTHER}


def test_the_cards_numbers_are_those_of_the_shipped_files(model):
    domains = configs.load(Settings.read()).domains
    reader = Reader(
        lambda text: list(zip(model.labels, model.probabilities(text).tolist(), strict=True)), model.facts["ranks"]
    )
    rows = [(name, matches(text, reader, domains)) for name, text in utterances(EVAL)]
    inside = [(name, found) for name, found in rows if name]
    measured = model.facts["measured"]
    assert np.mean([found[0].domain == name for name, found in inside]) == pytest.approx(measured["top1"])
    assert np.mean([name in [one.domain for one in found] for name, found in inside]) == pytest.approx(measured["top3"])
    asked = np.mean([found[0].confidence < 0.3 for name, found in rows if not name])
    assert asked == pytest.approx(measured["by_limit"]["0.30"]["out_of_scope_rejected"])
    assert f"{100 * measured['top1']:.1f} %" in (MODEL / "README.md").read_text(encoding="utf-8")


def test_vectors_folded_into_words_give_the_scores_of_the_vectors():
    texts = ["sleep well tonight", "a good night", "sell more soap", "more profit soon"]
    label = np.array([0, 0, 1, 1])
    vocabulary = Vocabulary.of(counted(texts, GRAMS), (1, 1))
    random = np.random.default_rng(0)
    vectors = tuple(random.normal(size=(len(vocabulary.ids[0]), width)).astype(np.float32) for width in (5, 3))
    rows = Rows(texts, label, np.ones(4, np.float32), np.zeros(4, np.int64))
    ridge = Ridge(rows, Words(vocabulary, vectors), 2)
    expected = ridge.kernel @ ridge.solve(np.ones(4, bool))
    weights, bias = ridge.weights()
    ids, first = np.unique(np.concatenate(vocabulary.ids), return_index=True)
    small, scale = quantised(weights[first])
    idf = np.concatenate(vocabulary.idf)[first].astype(np.float16)
    folded = TextModel(("a", "b"), "softmax", GRAMS, ids, idf, small, bias, uncalibrated(2), scale)
    np.testing.assert_allclose(np.stack([folded.scores(text) for text in texts]), expected, atol=0.02)


