"""The jobs of a lab as lines of a picture: those that run with their numbers, the others in a word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.board import Board, runs, sparkline
from protocol import JobSnapshot, State
from protocol.job import FINAL, stages_of

STALE_SECONDS = 20.0
"""Progress comes twice a second; numbers that are so old are shown dim."""


MARKS = {
    "runs": ("●", "cyan"), "waits": ("○", "yellow"), "done": ("✓", "green"), "failed": ("✗", "red"),
    "refused": ("✗", "red"), "cancelled": ("–", "yellow"), "interrupted": ("↻", "yellow"),
}  # fmt: skip
WAITS = {
    State.SUBMITTED: "is being planned", State.ROUTED: "is being planned", State.QUOTED: "waits for its budget",
    State.RESERVED: "waits for a machine", State.PROVISIONING: "waits for a machine",
    State.AWAITING_APPROVAL: "waits for approval", State.INTERRUPTED: "interrupted; goes on soon",
}  # fmt: skip
TELLING = (State.ROUTED, State.QUOTED, State.AWAITING_APPROVAL)
"""States in which a job says itself what it waits for."""
PRIORITIES = {2: "high", 3: "critical"}



@dataclass
class JobLines:
    """The jobs of a board as they are drawn now."""

    board: Board
    now: datetime

    def counts(self) -> str:
        """Say how many jobs run, wait and have ended."""
        groups = {"running": self.board.running(), "waiting": self.board.waiting(), "finished": self.board.finished()}
        return " · ".join(f"{len(jobs)} {name}" for name, jobs in groups.items() if jobs)

    def lines(self, width: int, room: int, wide: bool) -> list[RenderableType]:
        """Return what fits into `room` lines of `width` columns: those running first; the rest is counted."""
        running, waiting, finished = self.board.running(), self.board.waiting(), self.board.finished()
        if not running and not waiting and not finished:
            return [
                Text("No jobs yet. Start one from another terminal:"),
                Text("meetara train --domain time_management --data data/time_management.jsonl", style="cyan"),
            ]  # fmt: skip
        lines = 1 if wide else 2
        if wide and running:
            room -= 1  # the column heads
        total = lines * len(running) + len(waiting) + len(finished)
        if total > room:
            room -= 1
        shown_running = running[: max(1, room // lines)] if running else []
        room -= lines * len(shown_running)
        shown_waiting = waiting[: max(0, room)]
        shown_finished = finished[: max(0, room - len(shown_waiting))]
        aligned = [*(shown_running if wide else []), *shown_waiting, *shown_finished]
        names, domains = _width(aligned, "job", 26 if wide else 18), _width(aligned, "domain", 20 if wide else 16)
        parts: list[RenderableType] = []
        if wide and shown_running:
            parts.append(self._table(shown_running, names, domains, 16 if width > 140 else 10))
        elif shown_running:
            parts += [part for job in shown_running for part in self._two_lines(job)]
        if shown_waiting or shown_finished:
            parts.append(self._words([*shown_waiting, *shown_finished], names, domains, wide))
        hidden = [
            f"{len(all_) - len(shown)} {word}"
            for all_, shown, word in (
                (running, shown_running, "running"), (waiting, shown_waiting, "waiting"),
                (finished, shown_finished, "finished"),
            ) if len(all_) > len(shown)
        ]  # fmt: skip
        if hidden:
            told = f"… and {', '.join(hidden)} more; `meetara jobs` lists them"
            parts.append(Text(told, style="dim", no_wrap=True, overflow="ellipsis"))
        return parts

    def _table(self, jobs: Iterable[JobSnapshot], names: int, domains: int, course: int) -> Table:
        table = Table(
            Column("", width=1), Column("job", width=names), Column("domain", width=domains), Column("stage"),
            Column("", ratio=1, overflow="ellipsis"), Column("step", justify="right"), Column("loss"),
            Column("tokens/s", justify="right"), Column("left", justify="right"), Column("cost", justify="right"),
            box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim",
        )  # fmt: skip
        for column in table.columns:
            column.no_wrap = True
        for job in jobs:
            numbers = self._numbers(job)
            table.add_row(
                self._mark(job), Text(show.shortened(job.job, names), style="bold"), Text(show.shortened(job.domain, domains)),
                self._stage(job), self._bar(job), numbers["step"], self._loss(job, numbers, course), numbers["speed"],
                numbers["left"], numbers["cost"],
            )  # fmt: skip
        return table

    def _two_lines(self, job: JobSnapshot) -> list[RenderableType]:
        numbers = self._numbers(job)
        first = Table.grid(
            Column(width=1), Column(no_wrap=True), Column(no_wrap=True), Column(ratio=1), Column(justify="right", no_wrap=True),
            expand=True, padding=(0, 1, 0, 0),
        )  # fmt: skip
        first.add_row(self._mark(job), Text(show.shortened(job.job, 22), style="bold"), self._stage(job), self._bar(job), numbers["step"])
        facts = [Text(show.shortened(job.domain, 18), style="dim")]
        if numbers["loss"]:
            facts.append(Text.assemble("loss ", self._loss(job, numbers, 8)))
        for name, unit in (("speed", " tok/s"), ("left", " left"), ("cost", "")):
            if numbers[name]:
                facts.append(numbers[name].append(unit))
        second = Text("  ").append_text(Text("  ").join(facts))
        second.no_wrap, second.overflow = True, "ellipsis"
        return [first, second]

    def _words(self, jobs: Iterable[JobSnapshot], names: int, domains: int, wide: bool) -> Table:
        """One line for each job that does not run."""
        lines = Table.grid(
            Column(width=1), Column(width=names), Column(width=domains), Column(ratio=1, overflow="ellipsis"),
            Column(justify="right"), Column(justify="right"), expand=True, padding=(0, 2 if wide else 1, 0, 0),
            pad_edge=False,
        )  # fmt: skip
        for column in lines.columns:
            column.no_wrap = True
        for job in jobs:
            lines.add_row(
                self._mark(job), Text(show.shortened(job.job, names)), Text(show.shortened(job.domain, domains), style="dim"),
                self._word(job), self._quality(job), self._numbers(job)["cost"],
            )  # fmt: skip
        return lines

    def _kind(self, job: JobSnapshot) -> str:
        if job.state in FINAL or job.state is State.INTERRUPTED:
            return job.state.value
        return "runs" if runs(job) else "waits"

    def _mark(self, job: JobSnapshot) -> Text:
        mark, colour = MARKS[self._kind(job)]
        return Text(mark, style=colour)

    def _stage(self, job: JobSnapshot) -> Text:
        """A block for each stage, and the name of the one that runs."""
        stages = stages_of(job.profile)
        at = stages.index(job.stage) if job.stage in stages else -1
        return Text.assemble(
            ("▰" * max(at, 0), "green"), ("▰" if at >= 0 else "", "cyan"), ("▱" * (len(stages) - 1 - at), "bright_black"),
            (f" {job.stage.value if job.stage else 'starts':<8}", "cyan"),
        )  # fmt: skip

    def _bar(self, job: JobSnapshot) -> RenderableType:
        """The share of the running stage that is done; where it has no steps, what it says."""
        now = self.board.of_stage(job)
        share = now.step / now.steps if now is not None and now.step is not None and now.steps else None
        if share is None:
            return Text(now.note if now is not None else "", style="dim")
        return ProgressBar(total=1.0, completed=min(1.0, share), complete_style="cyan", finished_style="green")

    def _word(self, job: JobSnapshot) -> Text:
        colour = show.STATE_COLOURS.get(job.state.value, "")
        if job.state in FINAL:
            age = show.ago(max(0.0, (self.now - job.at).total_seconds()))
            reason = "" if job.state is State.DONE or not job.reason else f": {' '.join(job.reason.split())}"
            if job.cached_from:
                reason = f" from the cache: {job.cached_from} made it"
            return Text.assemble((job.state.value, colour), (f" {age}", "dim"), reason)
        urgent = PRIORITIES.get(job.priority)
        waits = job.reason.rstrip(".") if job.state in TELLING and job.reason else WAITS.get(job.state, job.state.value)
        return Text.assemble(waits, (f" · {urgent}" if urgent else "", "bold yellow"))

    def _loss(self, job: JobSnapshot, numbers: dict[str, Text], width: int) -> Text:
        if not numbers["loss"]:
            return Text()
        return Text.assemble(numbers["loss"], " ", (sparkline(self.board.course.get(job.job, []), width), "magenta"))

    def _quality(self, job: JobSnapshot) -> Text:
        if job.quality_percent is None:
            return Text("")
        return Text(f"{job.quality_percent:.1f} %", style="green" if job.state is State.DONE else "")

    def _numbers(self, job: JobSnapshot) -> dict[str, Text]:
        """The measured numbers of the moment; empty where there is none."""
        now = self.board.of_stage(job) if self._kind(job) == "runs" else None
        style = "dim" if now is not None and (self.now - now.at).total_seconds() > STALE_SECONDS else ""
        cost = self.board.cost_usd(job)
        found = {"step": "", "loss": "", "speed": "", "left": "", "cost": "" if cost is None else show.brief(cost)}
        if now is not None:
            if now.step is not None:
                found["step"] = f"{now.step}/{now.steps}" if now.steps else str(now.step)
            if now.loss is not None:
                found["loss"] = f"{now.loss:.3f}"
            if now.tokens_per_s is not None:
                found["speed"] = f"{now.tokens_per_s:,.0f}"
            if now.eta_s is not None:
                found["left"] = show.left(now.eta_s)
        return {name: Text(value, style=style) for name, value in found.items()}


def _width(jobs: Iterable[JobSnapshot], name: str, most: int) -> int:
    return min(most, max((len(getattr(job, name)) for job in jobs), default=0))
