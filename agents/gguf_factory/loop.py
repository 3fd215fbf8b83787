"""The training loop: exact effective batches out of micro-batches, checkpoints, exact resume, recovery from OOM.

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

from agents.gguf_factory import checkpoint
from agents.gguf_factory.job import Stopped, never, silent
from agents.gguf_factory.lora import Network
from agents.gguf_factory.rows import Rows, Schedule
from protocol import Code, LabError, Retry

WINDOW = 20  # steps over which the speed is shown: a few seconds on the starter base
REPORT_SECONDS = 0.5  # a person cannot read faster, and each report is a message
SAVE_SECONDS = 15.0  # the most work that a kill costs
OUT_OF_MEMORY = ("not enough memory", "alloc", "out of memory")  # RuntimeErrors of torch's CPU allocator


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

    def held_out_at(self, step: int) -> float | None:
        return next((point["loss"] for point in self.held_out if point["step"] == step), None)


class Loop:
    """One training run over `rows`, kept in `folder`.

    Args:
        identity: names everything that the run's result depends on; a checkpoint with another one is not used.
        report: takes step, steps, loss, tokens, tokens_per_s, eta_s, note; called at most twice a second.
        stop: looked at after each micro-batch; true makes `run` save and raise Stopped.
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
    ) -> None:
        self.network, self.rows, self.held_out = network, rows, held_out
        self.schedule, self.settings, self.folder, self.identity = schedule, settings, folder, identity
        self.report, self.stop, self.now, self.note, self.later = report, stop, now, note, later
        self.history = History(micro_batch=settings.micro_batch)
        self.taken = 0  # rows of the current step that are already in the gradients
        self.partial = 0.0  # their share of the step's loss
        self.optimiser = torch.optim.AdamW(
            list(network.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.window: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.saved_at = self.reported_at = -math.inf
        self.saved_place: tuple[int, int] | None = None
        torch.manual_seed(settings.seed)
        self.step_rng = self.rng()

    def run(self, evaluate_at: set[int]) -> History:
        """Train to the schedule's end, measuring the held-out loss after the named steps (0: before the first).

        Raises:
            Stopped: a stop was asked for; everything is saved.
            LabError: INTERNAL when the loss is not a number, NO_CAPACITY when one row does not fit into memory.
        """
        self.resume()
        self.saved_at = self.now()
        self.evaluate(evaluate_at)
        while self.history.step < len(self.schedule.batches):
            self.step()
            self.evaluate(evaluate_at)
            self.keep(self.history.step % self.settings.save_steps == 0)
        if self.saved_place != (self.history.step, 0):
            self.save()
        return self.history

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
            try:
                loss = self.network.loss(batch) / supervised
                loss.backward()
            except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                self.shrink(error)
                continue
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
            group["lr"] = settings.learning_rate * self.schedule.scale(history.step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        history.losses.append(self.partial)
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
            BaseException: the error itself, where it is not about memory.
        """
        text = str(error).lower()
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in text for words in OUT_OF_MEMORY):
            raise error
        history = self.history
        if history.micro_batch == 1:
            raise LabError(
                Code.NO_CAPACITY,
                f"one row of {self.rows.input_ids.shape[1]} tokens does not fit into memory at step {history.step}.",
                advice="Lower parameters.seq_len, or choose a smaller base or a machine with more memory.",
                retry=Retry.OTHER_WORKER,
            ) from error
        history.micro_batch = math.ceil(history.micro_batch / 2)
        history.notes.append(f"out of memory at step {history.step}: micro-batch is now {history.micro_batch} rows")
        self.optimiser.zero_grad()
        self.network.dropout.forget()
        self.taken, self.partial = 0, 0.0
        self.set_rng(self.step_rng)

    def diverged(self, what: str, value: float) -> LabError:
        return LabError(
            Code.INTERNAL,
            f"the {what} became {value} at step {self.history.step}; the last checkpoint is kept.",
            advice=f"Lower parameters.learning_rate (it was {self.settings.learning_rate:g}).",
            field="parameters.learning_rate",
            step=self.history.step,
        )

    @torch.no_grad()
    def evaluate(self, at: set[int]) -> None:
        """Measure the held-out loss, if the current step is one of `at` and was not measured yet."""
        if self.history.step not in at or self.history.held_out_at(self.history.step) is not None:
            return
        self.network.peft.eval()
        nats, size = 0.0, max(1, self.history.micro_batch)
        for start in range(0, len(self.held_out), size):
            batch = self.held_out.take(range(start, min(start + size, len(self.held_out))))
            nats += float(self.network.loss(batch))
        loss = nats / int(self.held_out.supervised.sum())
        self.history.held_out.append({"step": self.history.step, "loss": loss})

    def keep(self, due: bool) -> None:
        """Save when due or 15 seconds after the last time; stop when asked to."""
        stopping = self.stop()
        if stopping or due or self.now() - self.saved_at >= self.settings.save_seconds:
            self.save()
        if stopping:
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
        }  # fmt: skip
        checkpoint.save(self.folder, tensors, meta)
        self.saved_at, self.saved_place = self.now(), (self.history.step, self.taken)

    def resume(self) -> None:
        """Take up the newest sound checkpoint of this very run, if there is one."""
        found = checkpoint.load(self.folder)
        saved = found.checkpoint
        if saved is not None and saved.meta["identity"] == self.identity:
            self.history = History(**saved.meta["history"])
            self.taken, self.partial = saved.meta["taken"], saved.meta["partial"]
            self.restore(saved.tensors)
            self.saved_place = (self.history.step, self.taken)
        elif saved is not None:
            self.history.notes.append("the checkpoint found belongs to other data or parameters; training began anew")
        self.history.notes += found.damaged

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
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
