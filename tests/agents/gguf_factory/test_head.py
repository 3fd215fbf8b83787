"""Heads that scale or cap their logits, and layers that see a window: the loss and the mask are those of the model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from agents.gguf_factory.lora import PLAIN, Head, Supervised, masks
from agents.gguf_factory.rows import Batch
from protocol import LabError
from tests.agents.gguf_factory.tiny import network, rows


@pytest.mark.parametrize("head", [PLAIN, Head(scale=0.25), Head(cap=3.0), Head(scale=2.0, cap=5.0)])
def test_loss_and_gradient_are_those_of_the_whole_logits(head: Head) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, wanted = torch.randn(50, 16, generator=generator), torch.randint(50, (9,), generator=generator)
    ours = torch.randn(9, 16, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    loss = Supervised.apply(ours, weight, wanted, head)
    logits = head(theirs @ weight.t())
    assert float(logits.detach().abs().max()) <= (head.cap or float("inf"))
    whole = F.cross_entropy(logits, wanted, reduction="sum")
    loss.backward()
    whole.backward()
    assert ours.grad is not None and theirs.grad is not None
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_a_heads_settings_are_read_from_the_config() -> None:
    assert Head.of(SimpleNamespace(final_logit_softcapping=30.0)) == Head(cap=30.0)
    assert Head.of(SimpleNamespace(logits_scaling=8.0)) == Head(scale=1 / 8)
    assert Head.of(SimpleNamespace(logit_scale=0.0625)) == Head(scale=0.0625)
    assert Head.of(SimpleNamespace(final_logit_softcapping=None)) == PLAIN


def test_an_architecture_that_mixes_the_samples_of_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    net.check_apart(rows(2).take([0]))
    monkeypatch.setattr(Batch, "mask", lambda self, *_: torch.zeros(1, 1, self.input_ids.shape[1], self.input_ids.shape[1]))
    with pytest.raises(LabError, match="does not keep the samples of a row apart"):
        net.check_apart(rows(2).take([0]))


def test_layers_with_a_window_get_a_mask_of_their_own() -> None:
    batch = rows(2).take([0])
    length = batch.input_ids.shape[1]
    plain = batch.mask()
    assert torch.equal(masks(SimpleNamespace(sliding_window=None), batch), plain)  # type: ignore[arg-type]
    assert torch.equal(masks(SimpleNamespace(sliding_window=length), batch), plain)  # type: ignore[arg-type]
    config = SimpleNamespace(sliding_window=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    found = masks(config, batch)
    assert isinstance(found, dict) and torch.equal(found["full_attention"], plain)
    seen = found["sliding_attention"][0, 0] == 0
    place = torch.arange(length)
    near = (place[:, None] - place[None, :]) < 3
    assert torch.equal(seen, (plain[0, 0] == 0) & near)
    assert isinstance(masks(SimpleNamespace(sliding_window=3), batch), torch.Tensor)  # Mistral: every layer has it
