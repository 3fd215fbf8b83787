"""Training on a random Llama: what it computes, and that nothing interrupts it for good."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from agents.gguf_factory import recovery
from agents.gguf_factory.job import Stopped
from agents.gguf_factory.loop import History, Loop, Settings
from agents.gguf_factory.lora import Network
from agents.gguf_factory.rows import Batch, Schedule
from protocol import Code, LabError
from tests.agents.gguf_factory.tiny import network, packed, rows

STEPS = 7


def loop(folder: Path, net: Network | None = None, micro_batch: int = 3, rate: float = 1e-2, **hooks: Any) -> Loop:
    data = rows()
    schedule = Schedule.plan(
        data.tokens, batch=6, max_steps=STEPS, max_epochs=None, max_tokens=None, warmup_steps=2, decay="cosine", seed=5
    )
    return Loop(net or network(), data, rows(3, 9), schedule, Settings(rate, 0.01, micro_batch, 2, 11), folder, **hooks)


def adapter(run: Loop) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.network.parameters.items()}


def stop_after(calls: int) -> Callable[[], bool]:
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > calls

    return stop


def test_no_token_sees_its_neighbours_sample() -> None:
    net = network(dropout=0.0)
    for parameter in net.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    net.peft.eval()
    batch = rows().take([0])

    def states(ids: torch.Tensor) -> torch.Tensor:
        return net.hidden(Batch(ids, batch.labels, batch.position_ids, batch.tokens)).detach()

    before = states(batch.input_ids)
    changed = batch.input_ids.clone()
    changed[0, 8:16] = (changed[0, 8:16] + 17) % 64  # the middle one of three samples; four states belong to each
    after = states(changed)
    assert torch.equal(before[:4], after[:4]) and torch.equal(before[8:], after[8:])
    assert not torch.allclose(before[4:8], after[4:8], atol=1e-2)


def test_a_packed_sample_has_the_loss_that_it_has_alone() -> None:
    net = network(dropout=0.0)
    net.peft.eval()
    together = float(net.loss(rows().take([0])).detach())
    part = packed(1)
    alone = 0.0
    for at in (0, 8, 16):
        ids = part["input_ids"][:, at : at + 8].long()
        logits = net.causal(input_ids=ids).logits
        alone += float(F.cross_entropy(logits[0, 3:7], ids[0, 4:8], reduction="sum"))
    assert together == pytest.approx(alone, rel=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    runs = [loop(tmp_path / str(micro), network(dropout=0.0), micro_batch=micro) for micro in (6, 4, 1)]
    for run in runs:
        run.run(set())
    whole = runs[0].history
    for run in runs[1:]:
        assert run.history.losses == pytest.approx(whole.losses, rel=1e-4)
        assert run.history.tokens == whole.tokens


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    history = loop(tmp_path).run({0, STEPS})
    assert history.step == STEPS and len(history.losses) == STEPS
    before, after = history.held_out_at(0), history.held_out_at(STEPS)
    assert before is not None and after is not None and after < before - 0.02


@pytest.mark.parametrize("seed", [1, 2])
def test_interrupted_anywhere_it_ends_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    straight = loop(tmp_path / "straight")
    straight.run({0, 3, STEPS})
    where = random.Random(seed)
    interruptions, mid_step = 0, 0
    while True:
        run = loop(tmp_path / "broken", stop=stop_after(where.randint(0, 4)))
        try:
            run.run({0, 3, STEPS})
        except Stopped:
            interruptions += 1
            mid_step += run.taken > 0
            continue
        break
    assert interruptions >= 3 and mid_step >= 1
    assert run.history.losses == straight.history.losses
    assert run.history.held_out == straight.history.held_out
    assert all(torch.equal(tensor, adapter(run)[name]) for name, tensor in adapter(straight).items())


def test_killed_without_warning_it_repeats_from_the_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    straight = loop(tmp_path / "straight")
    straight.run({STEPS})
    killed = loop(tmp_path / "killed")
    original, calls = killed.network.loss, 0

    def dies(batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:  # in step 5; the checkpoint is that of step 4
            raise KeyboardInterrupt
        return original(batch)

    killed.network.loss = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run({STEPS})
    again = loop(tmp_path / "killed")
    again.resume()
    assert again.history.step == 4
    again.run({STEPS})
    assert again.history.losses == straight.history.losses
    assert all(torch.equal(tensor, adapter(again)[name]) for name, tensor in adapter(straight).items())


def test_a_checkpoint_of_other_data_is_not_used(tmp_path: Path) -> None:
    loop(tmp_path, identity="one").run(set())
    other = loop(tmp_path, identity="two")
    other.resume()
    assert other.history.step == 0 and "began anew" in other.history.notes[0]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("gpu"), MemoryError(), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tmp_path: Path, error: BaseException) -> None:
    run = loop(tmp_path / "small", network(dropout=0.0), micro_batch=6)
    original = run.network.loss

    def limited(batch: Batch) -> torch.Tensor:
        if len(batch.input_ids) > 2:
            raise error
        return original(batch)

    run.network.loss = limited  # type: ignore[method-assign]
    history = run.run(set())
    plain = loop(tmp_path / "plain", network(dropout=0.0), micro_batch=2).run(set())
    assert history.micro_batch == 2 and len(history.notes) == 2
    assert history.losses == plain.losses


def test_a_row_that_never_fits_is_an_error_for_another_machine(tmp_path: Path) -> None:
    run = loop(tmp_path)

    def fails(_: Batch) -> torch.Tensor:
        raise MemoryError

    run.network.loss = fails  # type: ignore[method-assign]
    with pytest.raises(LabError) as caught:
        run.run(set())
    assert caught.value.code is Code.NO_CAPACITY and caught.value.retry == "other-worker"


def test_another_runtime_error_is_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    run = loop(tmp_path)

    def fails(_: Batch) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    run.network.loss = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes"):
        run.run(set())


def wild(folder: Path, **hooks: Any) -> Loop:
    """A real run at a learning rate (8) at which the gradient overflows in transformers' norm; the flat path's does not."""
    data, net = rows(), network()
    net.flat = None
    schedule = Schedule.plan(
        data.tokens, batch=6, max_steps=14, max_epochs=None, max_tokens=None, warmup_steps=2, decay="cosine", seed=5
    )
    settings = Settings(hooks.pop("rate", 8.0), 0.01, 6, 5, 11)
    return Loop(net, data, rows(3, 9), schedule, settings, folder, **hooks)


def test_a_run_that_diverges_goes_back_and_is_in_the_end_the_run_at_the_lower_rate(tmp_path: Path) -> None:
    run = wild(tmp_path / "wild")
    history = run.run({0, 14})
    assert [share for _, share in history.rates] == [0.5, 0.25]
    first, second = history.notes
    assert "the gradient became " in first and "went back to step 5, the learning rate is now 4" in first
    assert "went back to step 0, the learning rate is now 2" in second
    calm = wild(tmp_path / "calm", rate=2.0)
    assert calm.run({0, 14}).losses == history.losses and calm.history.held_out == history.held_out
    assert all(torch.equal(tensor, adapter(run)[name]) for name, tensor in adapter(calm).items())


def test_a_run_that_diverges_ends_with_the_same_bits_wherever_it_is_interrupted(tmp_path: Path) -> None:
    straight = wild(tmp_path / "straight")
    straight.run({14})
    where = random.Random(3)
    while True:
        run = wild(tmp_path / "broken", stop=stop_after(where.randint(0, 3)))
        try:
            run.run({14})
        except Stopped:
            continue
        break
    assert run.history.losses == straight.history.losses and run.history.rates == [list(x) for x in straight.history.rates]
    assert all(torch.equal(tensor, adapter(run)[name]) for name, tensor in adapter(straight).items())


@pytest.mark.parametrize(("factor", "said"), [(float("nan"), "became nan at step 5"), (4.0, "exploded to .* at step 9")])
def test_a_run_that_always_diverges_names_step_and_cure_and_keeps_the_checkpoint(
    tmp_path: Path, factor: float, said: str
) -> None:
    def doomed() -> Loop:
        run = wild(tmp_path, rate=1e-2)
        loss = run.network.loss
        run.network.loss = lambda batch: loss(batch) * (factor if run.history.step >= 5 else 1)  # type: ignore[method-assign]
        return run

    run = doomed()
    with pytest.raises(recovery.Diverged, match=said + ".*learning_rate") as caught:
        run.run(set())
    assert caught.value.code is Code.INTERNAL and caught.value.data["field"] == "parameters.learning_rate"
    assert [share for _, share in run.history.rates] == [0.5, 0.25]
    again = wild(tmp_path)
    again.resume()
    assert again.history.step == 5


def test_a_held_out_loss_that_shows_ruin_is_divergence_too(tmp_path: Path) -> None:
    run = wild(tmp_path, rate=1e-2)
    loss = run.network.loss

    def ruined(batch: Batch) -> torch.Tensor:
        return loss(batch) * (2 if run.history.step == 10 and not torch.is_grad_enabled() else 1)

    run.network.loss = ruined  # type: ignore[method-assign]
    with pytest.raises(recovery.Diverged, match=r"held-out loss exploded to .* at step 10"):
        run.run({0, 10})
    assert run.history.rates == [(5, 0.5), (0, 0.25)], "the milestone that was measured is not one to go back to"


def test_it_saves_every_save_steps_and_whenever_15_seconds_have_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def now() -> float:
        nonlocal clock
        clock += step
        return clock

    saved: list[tuple[int, int]] = []
    monkeypatch.setattr(Loop, "save", lambda self: saved.append((self.history.step, self.taken)) or setattr(self, "saved_at", self.now()))
    step = 0.0
    loop(tmp_path, now=now).run(set())
    assert saved[:3] == [(2, 0), (4, 0), (6, 0)]
    saved.clear()
    step = 16.0
    loop(tmp_path, now=now).run(set())
    assert saved[:4] == [(0, 3), (1, 0), (1, 3), (2, 0)]


def test_progress_comes_at_most_twice_a_second_with_speed_and_remaining_time(tmp_path: Path) -> None:
    clock = 0.0
    reports: list[dict[str, Any]] = []

    def now() -> float:
        nonlocal clock
        clock += 0.01
        return clock

    loop(tmp_path / "fast", now=now, report=lambda **facts: reports.append(facts)).run(set())
    assert len(reports) < STEPS
    reports.clear()
    clock = 0.0

    def slow() -> float:
        nonlocal clock
        clock += 1.0
        return clock

    history = loop(tmp_path / "slow", now=slow, report=lambda **facts: reports.append(facts), note="control").run(set())
    assert [fact["step"] for fact in reports] == list(range(1, STEPS + 1))
    assert all(fact["steps"] == STEPS and fact["note"] == "control" for fact in reports)
    assert reports[0]["eta_s"] is None and reports[-1]["eta_s"] == 0
    assert reports[2]["eta_s"] == pytest.approx(4 * 3.0)  # a step takes 3 clock ticks: two micro-batches, one update
    assert reports[-1]["tokens"] == history.tokens and reports[-1]["tokens_per_s"] > 0
    assert isinstance(history, History)


def test_the_head_is_checked_against_the_models_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    net.check_head(rows().take([0]))
    monkeypatch.setattr(net.causal.lm_head, "forward", lambda x: F.linear(x, net.head.weight) * 0.5)
    with pytest.raises(LabError, match="does more than multiply"):
        net.check_head(rows().take([0]))

