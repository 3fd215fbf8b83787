import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from textmodel.features import Grams
from textmodel.fitting import Vocabulary, calibration, calibration_error, counted, one_against_rest, uncalibrated
from textmodel.model import TextModel, bent

GLAD = ["what a lovely day", "I love this so much", "great work, thank you", "so happy to see you", "lovely, just lovely"]
SAD = ["this is so sad", "I miss her every day", "sad and alone again", "it hurts so much", "I cried all day"]
TEXTS = GLAD + SAD
TRUTH = np.array([[True, False]] * 5 + [[False, True]] * 5)
WHICH = Grams(words=(1, 2), chars=(2, 4), style=True)


def fitted(kind: str = "sigmoid") -> TextModel:
    vocabulary = Vocabulary.of(counts := counted(TEXTS, WHICH), (1, 1))
    weights, bias = one_against_rest(vocabulary.matrix(counts), TRUTH, strength=1.0)
    ids, idf, kept = vocabulary.merged(weights)
    return TextModel(("glad", "sad"), kind, WHICH, ids, idf, kept, bias, uncalibrated(2), facts={"licence": "none"})


@pytest.fixture(scope="module")
def model() -> TextModel:
    return fitted()


def test_an_agent_computes_what_the_fitting_saw(model):
    vocabulary = Vocabulary.of(counts := counted(TEXTS, WHICH), (1, 1))
    rows = vocabulary.matrix(counts)
    weights, bias = one_against_rest(rows, TRUTH, strength=1.0)
    expected = rows @ weights.astype(np.float16).astype(np.float32) + bias
    found = np.stack([model.scores(text) for text in TEXTS])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_it_tells_texts_apart_that_it_has_not_seen(model):
    assert model.probabilities("a lovely, happy day").argmax() == 0
    assert model.probabilities("alone and sad").argmax() == 1


@pytest.mark.parametrize("text", ["", "日本語", "zzz qqq", "!"])
def test_a_text_without_a_known_word_has_the_prior(model, text):
    assert np.isfinite(model.probabilities(text)).all()
    np.testing.assert_allclose(model.scores("日本語"), model.bias)


def test_the_same_texts_give_the_same_bytes(tmp_path: Path):
    for folder in ("one", "two"):
        fitted().save(tmp_path / folder)
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_model_read_back_answers_the_same(model, tmp_path: Path):
    model.save(tmp_path)
    again = TextModel.load(tmp_path)
    assert again.labels == model.labels and again.grams == model.grams and again.facts == {"licence": "none"}
    np.testing.assert_array_equal(again.probabilities(TEXTS[0]), model.probabilities(TEXTS[0]))


def broken(folder: Path, what: str) -> None:
    fitted().save(folder)
    about = json.loads((folder / "model.json").read_text())
    match what:
        case "no arrays":
            (folder / "model.safetensors").unlink()
        case "cut arrays":
            arrays = folder / "model.safetensors"
            arrays.write_bytes(arrays.read_bytes()[:-100])
        case "no json":
            (folder / "model.json").unlink()
        case "cut json":
            (folder / "model.json").write_text("{")
        case "other format":
            (folder / "model.json").write_text(json.dumps({**about, "format": 99}))
        case "other labels":
            (folder / "model.json").write_text(json.dumps({**about, "labels": ["glad"]}))


@pytest.mark.parametrize("what", ["no arrays", "cut arrays", "no json", "cut json", "other format", "other labels"])
def test_a_broken_folder_is_refused_by_its_name(tmp_path: Path, what):
    broken(tmp_path, what)
    with pytest.raises(ValueError, match=str(tmp_path)):
        TextModel.load(tmp_path)


def test_softmax_shares_one_and_sigmoid_does_not(model):
    scores = np.array([[2.0, 1.0], [900.0, -900.0]], np.float32)
    assert fitted("softmax").calibrated(scores).sum(axis=1) == pytest.approx([1, 1])
    assert model.calibrated(scores)[0].sum() > 1.5
    assert np.isfinite(model.calibrated(scores)).all()


def test_calibration_undoes_a_stretch_of_the_scores():
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (20_000, 1)).astype(np.float32)
    truth = random.random((20_000, 1)) < 1 / (1 + np.exp(-logits))
    found = bent(3 * logits + 1, calibration(3 * logits + 1, truth))
    assert np.abs(found - logits).mean() < 0.1


def test_no_calibration_leaves_scores_alone():
    scores = np.array([[-30.0, 0.0, 2.5]], np.float32)
    np.testing.assert_allclose(bent(scores, uncalibrated(3)), scores, atol=1e-5)


def test_the_calibration_error_is_the_distance_between_said_and_held():
    said = np.full(1000, 0.8, np.float32)
    assert calibration_error(said, np.arange(1000) < 800) == pytest.approx(0, abs=1e-6)
    assert calibration_error(said, np.arange(1000) < 500) == pytest.approx(0.3, abs=1e-6)


def test_inference_imports_numpy_alone():
    code = (
        "import sys; import textmodel.model, agents.emotion.agent, agents.router.agent; "
        "print([name for name in ('scipy', 'sklearn', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
