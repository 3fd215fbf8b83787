"""A job while it runs: a live display at a terminal, quiet lines elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from meetara import show
from protocol import JobSnapshot, Progress, State
from protocol.job import FINAL, Stage, stages_of

STAGES = list(Stage)
REFRESH = 4
"""Pictures a second; progress comes twice a second at most."""
QUIET_STEP = 0.1
"""A line per tenth of a stage where no terminal shows a bar."""


class View:
    """What is known about a running job, and how it looks."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.snapshot: JobSnapshot | None = None
        self.progress: Progress | None = None

    def take(self, update: JobSnapshot | Progress) -> None:
        """Remember the newest; progress of an earlier attempt does not count."""
        if isinstance(update, JobSnapshot):
            self.snapshot = update
            if self.progress is not None and self.progress.attempt < update.attempt:
                self.progress = None
        elif self.snapshot is None or update.attempt >= self.snapshot.attempt:
            self.progress = update

    @property
    def stage(self) -> Stage | None:
        """The stage that runs: the later of what the snapshot and the progress say."""
        named = [item.stage for item in (self.snapshot, self.progress) if item is not None and item.stage is not None]
        return max(named, key=STAGES.index, default=None)

    @property
    def state(self) -> str:
        """The job's state in a word."""
        return self.snapshot.state.value if self.snapshot else State.SUBMITTED.value

    def marks(self) -> list[tuple[Stage, str]]:
        """Return each stage with done, failed, runs or waits."""
        stages = stages_of(self.snapshot.profile if self.snapshot else "edge")
        running = stages.index(self.stage) if self.stage in stages else -1
        state = self.snapshot.state if self.snapshot else None
        if state is State.DONE:
            return [(stage, "done") for stage in stages]
        at = "failed" if state in FINAL else "runs"
        return [
            (stage, "done" if index < running else at if index == running else "waits")
            for index, stage in enumerate(stages)
        ]

    def facts(self) -> list[str]:
        """Return the measured numbers of the moment."""
        progress = self.progress
        if progress is None or progress.stage is not self.stage:
            return []
        found = []
        if progress.step is not None:
            found.append(f"step {progress.step}" + (f"/{progress.steps}" if progress.steps else ""))
        if progress.loss is not None:
            found.append(f"loss {progress.loss:.3f}")
        if progress.tokens_per_s is not None:
            found.append(f"{progress.tokens_per_s:,.0f} tokens/s")
        if progress.eta_s is not None:
            found.append(f"{show.duration(progress.eta_s)} left")
        if progress.cost_usd is not None:
            found.append(f"cost {show.dollars(progress.cost_usd)}")
        if progress.note:
            found.append(progress.note)
        return found

    @property
    def share(self) -> float | None:
        """How much of the running stage is done, 0 to 1; None where the stage has no steps."""
        progress = self.progress
        if progress is None or progress.stage is not self.stage or progress.step is None or not progress.steps:
            return None
        return min(1.0, progress.step / progress.steps)

    def __rich__(self) -> RenderableType:
        head = Text.assemble((self.job, "bold"), "  ", self.state)
        if self.snapshot and self.snapshot.attempt > 1:
            head.append(f"  attempt {self.snapshot.attempt}", style="yellow")
        if self.snapshot and self.snapshot.reason:
            head.append(f"\n{self.snapshot.reason}", style="yellow")
        signs = {"done": ("✓", "green"), "failed": ("✗", "red"), "runs": ("▸", "cyan"), "waits": ("·", "dim")}
        stages = Table.grid(padding=(0, 1))
        for stage, mark in self.marks():
            sign, colour = signs[mark]
            stages.add_row(
                Text(sign, style=colour), Text(stage.value, style="dim" if mark == "waits" else ""),
                Text("  ".join(self.facts())) if mark == "runs" else "",
            )  # fmt: skip
        bar = ProgressBar(total=1.0, completed=self.share or 0.0, width=60)
        return Group(head, stages, bar)


class Lines:
    """The same as plain lines: each change of state or stage, and each tenth of a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[str, Stage | None, str | None] | None = None
        self._tenth = 0

    def show(self, view: View) -> None:
        """Print a line when something worth one has changed."""
        now = (view.state, view.stage, view.snapshot.reason if view.snapshot is not None else None)
        tenth = int((view.share or 0.0) / QUIET_STEP + 1e-9)
        if now != self._last:
            self._last, self._tenth = now, 0
            words = [view.job, view.state, *([view.stage.value] if view.stage else [])]
            if view.snapshot is not None and view.snapshot.reason:
                words.append(f"({view.snapshot.reason})")
            self._console.print(Text("  ".join(words)))
        elif tenth > self._tenth:
            self._tenth = tenth
            self._console.print(Text("  ".join([view.job, view.stage.value if view.stage else "", *view.facts()])))


class _Updates(Protocol):
    id: str

    def updates(self) -> AsyncIterator[JobSnapshot | Progress]: ...


async def follow(job: _Updates, console: Console | None) -> JobSnapshot:
    """Show a job until it has ended and return its final snapshot; `console` None: show nothing."""
    view = View(job.id)
    live = (
        Live(view, console=console, refresh_per_second=REFRESH, transient=False)
        if console is not None and console.is_terminal
        else nullcontext()
    )
    lines = Lines(console) if console is not None and not console.is_terminal else None
    with live:
        async for update in job.updates():
            view.take(update)
            if lines is not None:
                lines.show(view)
    assert view.snapshot is not None
    return view.snapshot
