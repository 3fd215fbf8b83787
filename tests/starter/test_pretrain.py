from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agents.gguf_factory.data import runs
from starter import pretrain
from starter.corpus import Stream
from starter.model import Llama, Samples, Shape
from starter.pretrain import BOS, Run

TINY = Shape(vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, feed_forward=48, context=32)


def documents(count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.concatenate([[BOS, *draw.integers(4, 64, draw.integers(3, 40))] for _ in range(count)]).astype(np.uint16)


@pytest.fixture
def model() -> Llama:
    model = Llama(TINY, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pretrain, "Shape", lambda **given: Shape(**given) if given else TINY)
    for seed, name in enumerate(("text", "chat")):
        np.save(tmp_path / f"{name}.npy", documents(30, seed))
    return tmp_path


def test_a_token_sees_its_own_document_only(model: Llama) -> None:
    first, second = torch.tensor([BOS, 5, 6, 7, 8]), torch.tensor([BOS, 9, 10, 11])
    both = torch.cat([first, second])
    together = model.hidden(both, Samples(both, BOS, 32))
    alone = model.hidden(second, Samples(second, BOS, 32))
    torch.testing.assert_close(together[len(first) :], alone, rtol=1e-4, atol=1e-5)


def test_a_document_is_cut_at_the_context_and_at_a_seam() -> None:
    tokens = torch.tensor([BOS, *range(4, 14)])
    assert Samples(tokens, BOS, 4).parts == [(0, 4), (4, 8), (8, 11)]
    assert Samples(tokens, BOS, 8, seams=[6]).parts == [(0, 6), (6, 11)]


def test_the_padded_attention_of_a_gpu_equals_the_one_by_parts() -> None:
    samples = Samples(torch.tensor([BOS, 5, 6, BOS, 7, BOS, 8, 9, 10, 11]), BOS, 4)
    q, k, v = torch.randn(3, 10, 2, 16, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(samples.attend_padded(q, k, v), samples.attend(q, k, v), rtol=1e-5, atol=1e-6)


def test_the_chunked_loss_is_cross_entropy(model: Llama) -> None:
    tokens = torch.tensor(documents(4, 3).astype(np.int64))
    samples = Samples(tokens[:-1], BOS, 32)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, [*model.parameters()]), strict=True))

    ours = model.loss(tokens[:-1], tokens[1:], samples)
    plain = F.cross_entropy(model.hidden(tokens[:-1], samples) @ model.model.embed_tokens.weight.t(), tokens[1:])
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=1e-3, atol=1e-6)


def test_a_stream_holds_every_document_once_a_round_in_another_order_each() -> None:
    tokens = documents(20, 4)
    stream = Stream(tokens, BOS, seed=0)
    rounds = [stream.take(number * len(tokens), len(tokens) - 1) for number in range(2)]
    pieces = [sorted(tuple(part) for part in np.split(one, np.flatnonzero(one == BOS))[1:]) for one in [tokens, *rounds]]
    assert pieces[0] == pieces[1] == pieces[2] and not np.array_equal(*rounds)


def test_a_place_in_a_stream_does_not_depend_on_how_one_came_there() -> None:
    tokens = documents(20, 4)
    long = Stream(tokens, BOS, seed=0).take(len(tokens) - 50, 100)
    stream = Stream(tokens, BOS, seed=0)
    pieces = [stream.take(len(tokens) - 50 + start, 25)[:-1] for start in range(0, 100, 25)]
    assert np.array_equal(np.concatenate(pieces), long[:-1])


def test_a_run_that_was_interrupted_reaches_the_same_bits(folder: Path) -> None:
    def steps(run: Run, count: int) -> None:
        for _ in range(count):
            run.step(4, 16, 0.25, run.scale())

    whole = Run.open(folder, "cpu", 0, None)
    steps(whole, 6)
    first = Run.open(folder, "cpu", 0, None)
    steps(first, 3)
    first.save()
    second = Run.open(folder, "cpu", 0, None)
    steps(second, 3)
    assert {k: second.meta[k] for k in ("step", "text", "chat")} == {"step": 6, "text": 288, "chat": 96}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_the_rate_warms_up_stays_and_falls_to_zero_once_the_end_is_asked_for(folder: Path) -> None:
    run = Run.open(folder, "cpu", 0, None)
    assert run.scale() == pytest.approx(1 / pretrain.WARMUP)
    run.meta["step"] = 500
    assert run.scale() == 1
    run.meta["decay"] = {"from": 500, "steps": 100}
    run.meta["step"] = 575
    assert run.scale() == pytest.approx(0.25)
    run.meta["step"] = 600
    assert run.scale() == 0


def test_conversations_whose_answers_are_evaluated_are_left_out(tmp_path: Path) -> None:
    from starter.corpus import chat_rows

    answer = "Keep the room dark and cool, and get up at the same time every day of the week."
    rows = [{"instruction": "How?", "input": "", "output": text} for text in (answer, "Something else that is long enough.")]
    (tmp_path / "sleep.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    kept = chat_rows(tmp_path, 0, set(runs(f"She said: {answer.upper()}")))
    assert [turns[1][1] for turns in kept] == ["Something else that is long enough."]
