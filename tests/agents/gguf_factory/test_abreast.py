from __future__ import annotations

import pytest
import torch

from agents.gguf_factory import abreast
from agents.gguf_factory.abreast import Abreast, share_out
from agents.gguf_factory.lora import Network
from agents.gguf_factory.rows import IGNORED
from tests.agents.gguf_factory.tiny import network, rows


@pytest.fixture
def net() -> Network:
    net = network(dropout=0.0)
    with torch.no_grad():
        for parameter in net.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return net


def gradients(net: Network, threads: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, list[torch.Tensor]]:
    monkeypatch.setattr(abreast.torch, "get_num_threads", lambda: threads)
    decoders = Abreast(net.causal, list(net.parameters.values()), 0.0)
    loss, found = decoders.nats(rows().take([0, 1, 2, 3, 4]), training=False, learn=True)
    return float(loss), found


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_many_cores_find_what_one_finds(net: Network, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (wanted, reference), (loss, found) = gradients(net, 1, monkeypatch), gradients(net, threads, monkeypatch)
    assert loss == pytest.approx(wanted, rel=1e-6)
    for ours, theirs in zip(found, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_same_number_of_cores_gives_the_same_bits(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = gradients(net, 2, monkeypatch), gradients(net, 2, monkeypatch)
    assert first[0] == second[0] and all(map(torch.equal, first[1], second[1]))


def test_rows_are_shared_out_once_each_and_those_without_labels_fall_away() -> None:
    batch = rows().take([0, 1, 2, 3])
    batch.labels[1] = IGNORED
    parts = share_out(batch, 2)
    told = [tuple(row.tolist()) for part in parts for row in part.input_ids]
    assert [len(part.input_ids) for part in parts] == [2, 1]
    assert sorted(told) == sorted(tuple(batch.input_ids[row].tolist()) for row in (0, 2, 3))


def test_a_batch_with_one_row_to_learn_is_not_shared() -> None:
    batch = rows().take([0])
    assert share_out(batch, 4) == [batch]


def test_an_error_on_one_core_is_raised_when_all_have_stopped(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abreast.torch, "get_num_threads", lambda: 2)
    decoders = Abreast(net.causal, list(net.parameters.values()), 0.0)
    ended: list[int] = []
    right = decoders.decoders[1].nats

    def fail(*_: object) -> torch.Tensor:
        raise MemoryError("full")

    def tell(*given: object) -> torch.Tensor:
        total = right(*given)  # type: ignore[arg-type]
        ended.append(1)
        return total

    monkeypatch.setattr(decoders.decoders[0], "nats", fail)
    monkeypatch.setattr(decoders.decoders[1], "nats", tell)
    with pytest.raises(MemoryError):
        decoders.nats(rows().take([0, 1, 2, 3]), training=False, learn=True)
    assert ended == [1]
