"""The training loop: exact effective batches out of micro-batches, checkpoints, exact resume, recovery from lack of
memory and from divergence.

A run is a function of its rows, schedule, settings and number of threads: interrupted anywhere, also between the
micro-batches of a step, and started again on the same folder, it ends with the same bits. Does not know about jobs.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.gguf_factory import checkpoint, divergence, recovery
from agents.gguf_factory.checkpoint_store import CheckpointStore
from agents.gguf_factory.job import Stopped, never, silent
from agents.gguf_factory.lora import Network
from agents.gguf_factory.recovery import Action, Diverged
from agents.gguf_factory.rows import Rows, Schedule
from protocol import Code, LabError, Retry

WINDOW = 20  # steps over which the speed is shown: a few seconds on the starter base
REPORT_SECONDS = 0.5  # a person cannot read faster, and each report is a message
SAVE_SECONDS = 15.0  # the most work that a kill costs
LEAST_RATE = 1 / 4  # of the learning rate asked for: two divergences are mended, as a job has three attempts


@dataclass(frozen=True)
class Settings:
    """How to learn. `micro_batch` rows are computed at once, whatever the schedule's batch."""

    learning_rate: float
    weight_decay: float
    micro_batch: int
    save_steps: int
    seed: int
    clip: float = 1.0
    save_seconds: float = SAVE_SECONDS


@dataclass
class History:
    """What happened so far; plain JSON in a checkpoint. Losses are nats per supervised token."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    micro_batch: int = 0
    notes: list[str] = field(default_factory=list)
    rates: list[tuple[int, float]] = field(default_factory=list)
    """From which step on which share of the learning rate was used; empty: all of it."""

    def rate(self, step: int) -> float:
        """Return the share of the learning rate that was in force at a step."""
        return next((share for since, share in reversed(self.rates) if since <= step), 1.0)

    def held_out_at(self, step: int) -> float | None:
        return next((point["loss"] for point in self.held_out if point["step"] == step), None)


class Loop:
    """One training run over `rows`, kept in `folder`.

    Args:
        identity: names everything that the run's result depends on; a checkpoint with another one is not used.
        report: takes step, steps, loss, tokens, tokens_per_s, eta_s, note; called at most twice a second.
        stop: looked at after each micro-batch; true makes `run` save and raise Stopped.
        store: where checkpoints go for other machines, and come from; None: they stay here.
        later: steps that follow after this run at the same speed, for the ETA.
    """

    def __init__(
        self,
        network: Network,
        rows: Rows,
        held_out: Rows,
        schedule: Schedule,
        settings: Settings,
        folder: Path,
        *,
        identity: str = "",
        report: Callable[..., None] = silent,
        stop: Callable[[], bool] = never,
        now: Callable[[], float] = time.monotonic,
        note: str = "",
        later: int = 0,
        store: CheckpointStore | None = None,
    ) -> None:
        self.network, self.rows, self.held_out = network, rows, held_out
        self.schedule, self.settings, self.folder, self.identity = schedule, settings, folder, identity
        self.report, self.stop, self.now, self.note, self.later, self.store = report, stop, now, note, later, store
        self.fresh = {name: parameter.detach().clone() for name, parameter in network.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            list(network.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.window: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.saved_at = self.reported_at = -math.inf
        self.saved_place: tuple[int, int] | None = None
        self.begin(settings.micro_batch)

    def begin(self, micro_batch: int) -> None:
        """Put everything to where the run begins."""
        self.history = History(micro_batch=micro_batch)
        self.taken = 0  # rows of the current step that are already in the gradients
        self.partial = 0.0  # their share of the step's loss
        self.optimiser.state.clear()
        with torch.no_grad():
            for name, parameter in self.network.parameters.items():
                parameter.copy_(self.fresh[name])
                parameter.grad = None
        torch.manual_seed(self.settings.seed)
        self.step_rng = self.rng()

    def run(self, evaluate_at: set[int]) -> History:
        """Train to the schedule's end, measuring the held-out loss after the named steps (0: before the first).

        Raises:
            Stopped: a stop was asked for; everything is saved.
            Diverged: the loss exploded or is no number, also at a quarter of the learning rate.
            LabError: NO_CAPACITY when one row does not fit into memory.
        """
        self.resume()
        self.saved_at = self.now()
        while True:
            try:
                self.evaluate(evaluate_at)  # before a milestone is saved: its verdict says whether that is a good one
                if self.history.step > 0 and self.saved_place != (self.history.step, 0):
                    self.keep(self.milestone)
                if self.history.step == len(self.schedule.batches):
                    break
                self.step()
            except Exception as error:
                match recovery.action(error):
                    case Action.HALVE:
                        self.shrink(error)
                    case Action.LOWER_RATE:
                        self.rewind(error)
                    case _:
                        raise
        if self.saved_place != (self.history.step, 0):
            self.save()
        if self.store is not None:
            self.store.finish(self.folder)
        return self.history

    @property
    def milestone(self) -> bool:
        """Whether a step that is a multiple of `save_steps` has just been finished; those are saved in every run."""
        return self.taken == 0 < self.history.step and self.history.step % self.settings.save_steps == 0

    def step(self) -> None:
        """Compute the rest of one optimiser step."""
        history, settings = self.history, self.settings
        rows = self.schedule.batches[history.step]
        supervised = max(1, int(self.rows.supervised[rows].sum()))
        self.network.peft.train()
        while self.taken < len(rows):
            started = self.now()
            part = rows[self.taken : self.taken + history.micro_batch]
            batch = self.rows.take(part)
            loss = self.network.loss(batch) / supervised
            loss.backward()
            self.partial += float(loss.detach())
            if not math.isfinite(self.partial):
                raise self.diverged("loss", self.partial)
            self.taken += len(part)
            history.computed += batch.computed
            history.seconds += self.now() - started
            if self.taken < len(rows):
                self.keep(False)
        started = self.now()
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.network.parameters.values()), settings.clip))
        if not math.isfinite(norm):
            raise self.diverged("gradient", norm)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * history.rate(history.step) * self.schedule.scale(history.step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        history.losses.append(self.partial)
        if divergence.exploded(history.losses):
            raise self.diverged("loss", self.partial)
        history.step += 1
        tokens = int(self.rows.lengths[rows].sum())
        history.tokens += tokens
        history.seconds += self.now() - started
        self.window.append((history.seconds, history.tokens))
        self.taken, self.partial = 0, 0.0
        self.step_rng = self.rng()
        self.show()

    def shrink(self, error: BaseException) -> None:
        """Begin the step again with half the rows at once.

        Raises:
            LabError: NO_CAPACITY, a single row does not fit.
        """
        history = self.history
        if history.micro_batch == 1:
            raise LabError(
                Code.NO_CAPACITY,
                f"one row of {self.rows.input_ids.shape[1]} tokens does not fit into memory at step {history.step}.",
                advice=recovery.TABLE[MemoryError].advice, retry=Retry.OTHER_WORKER,
            ) from error  # fmt: skip
        history.micro_batch = math.ceil(history.micro_batch / 2)
        history.notes.append(f"out of memory at step {history.step}: micro-batch is now {history.micro_batch} rows")
        self.optimiser.zero_grad()
        self.taken, self.partial = 0, 0.0
        self.set_rng(self.step_rng)

    def rewind(self, error: Exception) -> None:
        """Go on with half the learning rate: at first from the last good checkpoint, the second time from the beginning.

        A good one is of a milestone, so that it does not depend on when the run was interrupted, and its loss was sound;
        weights that are harmed already may not show it, hence the beginning.

        Raises:
            Exception: the error itself, where the rate was halved often enough.
        """
        failed, rate = self.history, self.history.rate(self.history.step) / 2
        if rate < LEAST_RATE:
            raise error
        good = checkpoint.load(self.folder, pinned=True).checkpoint
        if good is not None and good.meta["identity"] == self.identity and not failed.rates:
            self.take_up(good)
        else:
            self.begin(failed.micro_batch)
        history = self.history
        history.rates = [*failed.rates, (history.step, rate)]
        lower = f"went back to step {history.step}, the learning rate is now {self.settings.learning_rate * rate:g}"
        history.notes = [*failed.notes, f"{str(error).partition(';')[0]}: {lower}"]
        history.seconds, history.computed = failed.seconds, failed.computed  # they were spent
        self.window.clear()
        self.save()

    def diverged(self, what: str, value: float) -> Diverged:
        rate = self.settings.learning_rate * self.history.rate(self.history.step)
        how = "exploded to" if math.isfinite(value) else "became"
        return Diverged(
            Code.INTERNAL,
            f"the {what} {how} {value:.3g} at step {self.history.step}; the last good checkpoint is kept.",
            advice=f"Lower parameters.learning_rate (it was {rate:g}).",
            field="parameters.learning_rate",
            step=self.history.step,
        )

    @torch.no_grad()
    def evaluate(self, at: set[int]) -> None:
        """Measure the held-out loss, if the current step is one of `at` and was not measured yet.

        Raises:
            Diverged: it shows that what the base knew is lost.
        """
        if self.history.step not in at or self.history.held_out_at(self.history.step) is not None:
            return
        self.network.peft.eval()
        nats, size = 0.0, max(1, self.history.micro_batch)
        for start in range(0, len(self.held_out), size):
            batch = self.held_out.take(range(start, min(start + size, len(self.held_out))))
            nats += float(self.network.loss(batch))
        loss = nats / int(self.held_out.supervised.sum())
        before = self.history.held_out_at(0)
        if not math.isfinite(loss) or (before is not None and divergence.ruined(loss, before)):
            raise self.diverged("held-out loss", loss)
        self.history.held_out.append({"step": self.history.step, "loss": loss})

    def keep(self, due: bool) -> None:
        """Save when due or 15 seconds after the last time; stop when asked to."""
        stopping = self.stop()
        if stopping or due or self.now() - self.saved_at >= self.settings.save_seconds:
            self.save()
        if stopping:
            if self.store is not None:
                self.store.finish(self.folder)
            raise Stopped

    def save(self) -> None:
        tensors: dict[str, Tensor] = {"rng.now": self.rng(), "rng.step": self.step_rng}
        for name, parameter in self.network.parameters.items():
            tensors[f"adapter.{name}"] = parameter
            for slot, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{slot}.{name}"] = value
            if self.taken and parameter.grad is not None:
                tensors[f"gradient.{name}"] = parameter.grad
        meta = {
            "identity": self.identity, "history": vars(self.history), "taken": self.taken, "partial": self.partial,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        sound = self.milestone and divergence.sound(self.history.losses)
        checkpoint.save(self.folder, tensors, meta, pinned=sound)
        self.saved_at, self.saved_place = self.now(), (self.history.step, self.taken)
        if self.store is not None:
            self.store.offer(self.folder)

    def resume(self) -> None:
        """Take up the newest sound checkpoint of this very run, if there is one."""
        fetched = [] if self.store is None else self.store.pull(self.folder)
        found = checkpoint.load(self.folder)
        saved = found.checkpoint
        if saved is not None and saved.meta["identity"] == self.identity:
            self.take_up(saved)
            self.saved_place = (self.history.step, self.taken)
            threads = saved.meta.get("threads", torch.get_num_threads())
            if threads != torch.get_num_threads():  # sums are split among them
                fetched.append(f"{torch.get_num_threads()} threads instead of {threads}: the last bits may differ")
            if fetched:
                fetched.append(f"training went on at step {self.history.step}")
        elif saved is not None:
            self.history.notes.append("the checkpoint found belongs to other data or parameters; training began anew")
        self.history.notes += [*fetched, *found.damaged]

    def take_up(self, saved: checkpoint.Checkpoint) -> None:
        self.history = History(**saved.meta["history"])
        self.taken, self.partial = saved.meta["taken"], saved.meta["partial"]
        self.restore(saved.tensors)

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.optimiser.state.clear()
        for name, parameter in self.network.parameters.items():
            parameter.copy_(tensors[f"adapter.{name}"])
            state: dict[str, Any] = {}
            for slot in ("step", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(f"optimiser.{slot}.{name}")) is not None:
                    state[slot] = value.to(parameter.device)
            if state:
                self.optimiser.state[parameter] = state
            gradient = tensors.get(f"gradient.{name}")
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.step_rng = tensors["rng.step"]
        self.set_rng(tensors["rng.now"])

    def rng(self) -> Tensor:
        """Return the state of the generator that dropout draws from."""
        return torch.cuda.get_rng_state() if self.network.device.type == "cuda" else torch.get_rng_state()

    def set_rng(self, state: Tensor) -> None:
        if self.network.device.type == "cuda":
            torch.cuda.set_rng_state(state)
        else:
            torch.set_rng_state(state)

    def show(self) -> None:
        """Report where the run stands, at most twice a second."""
        if self.now() - self.reported_at < REPORT_SECONDS:
            return
        self.reported_at = self.now()
        history = self.history
        rate = eta = None
        if len(self.window) > 1 and (seconds := self.window[-1][0] - self.window[0][0]) > 0:
            rate = (self.window[-1][1] - self.window[0][1]) / seconds
            left = len(self.schedule.batches) - history.step + self.later
            eta = left * seconds / (len(self.window) - 1)
        self.report(
            step=history.step, steps=len(self.schedule.batches), loss=history.losses[-1], tokens=history.tokens,
            tokens_per_s=rate, eta_s=eta, note=self.note or (history.notes[-1] if history.notes else ""),
        )  # fmt: skip
