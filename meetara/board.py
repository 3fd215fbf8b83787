"""What a person who watches a lab wants to know at a glance, gathered from its news. Pure: no screen, no network, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from meetara import show
from meetara.news import Link, News
from protocol import JobSnapshot, Progress, State
from protocol.job import FINAL
from protocol.machine import Card, Presence, ProviderStatus
from protocol.money import BudgetAlert, BudgetReport

WORKING = frozenset({State.TRAINING, State.EXPORTING, State.VALIDATING})
"""States in which a machine works on the job; between its lease and its first stage a job is provisioning and has one."""
COURSE = 256
"""Losses kept of a running job: eight for each mark of the widest sparkline; beyond it neighbours are averaged."""
MARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Event:
    """Something worth a line of its own. `tone` is good, bad, warning or plain."""

    at: datetime
    text: str
    tone: str = "plain"


@dataclass
class Board:
    """The lab as far as it was heard of."""

    jobs: dict[str, JobSnapshot] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    course: dict[str, list[float]] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    presences: dict[str, Presence] = field(default_factory=dict)
    providers: dict[str, ProviderStatus] = field(default_factory=dict)
    money: BudgetReport | None = None
    event: Event | None = None
    lost: datetime | None = None

    def take(self, item: News, now: datetime) -> None:
        """Remember an item. Old ones (retained, sent again after a reconnect) change nothing."""
        match item:
            case JobSnapshot():
                self._take_job(item)
            case Progress():
                self._take_progress(item)
            case Card():
                self.cards[item.agent] = item
            case Presence():
                self._take_presence(item, now)
            case ProviderStatus():
                self.providers[item.provider] = item
            case BudgetReport():
                self.money = item
            case BudgetAlert():
                self._tell(_of_alert(item))
            case Link():
                self.lost = None if item.up else now

    def _take_job(self, job: JobSnapshot) -> None:
        known = self.jobs.get(job.job)
        if known is not None and job.at < known.at:
            return
        # what the board never shows is not kept: a lab's week of finished jobs must fit in memory
        self.jobs[job.job] = job.model_copy(update={"results": {}, "gates": {}, "artefacts": []})
        if known is None or known.state is not job.state:
            self._tell(_of_job(job))
        if job.state in FINAL or (known is not None and known.attempt < job.attempt):
            self.progress.pop(job.job, None)
            self.course.pop(job.job, None)

    def _take_progress(self, now: Progress) -> None:
        job, last = self.jobs.get(now.job), self.progress.get(now.job)
        if job is not None and (job.state in FINAL or now.attempt < job.attempt):
            return
        self.progress[now.job] = now
        if now.loss is not None and (last is None or (last.stage, last.step) != (now.stage, now.step)):
            course = self.course.setdefault(now.job, [])
            course.append(now.loss)
            if len(course) > COURSE:
                course[:] = [sum(course[at : at + 2]) / len(course[at : at + 2]) for at in range(0, len(course), 2)]

    def _take_presence(self, presence: Presence, now: datetime) -> None:
        known = self.presences.get(presence.agent)
        self.presences[presence.agent] = presence
        if known is not None and known.online != presence.online:
            back = f"{presence.agent} is back"
            self._tell(Event(presence.at or now, back if presence.online else f"{presence.agent} is gone",
                             "good" if presence.online else "bad"))  # fmt: skip

    def _tell(self, event: Event) -> None:
        if self.event is None or event.at >= self.event.at:
            self.event = event

    # what is shown

    def running(self) -> list[JobSnapshot]:
        """Jobs that a machine works on, in the order of their ids (which is that of their requests)."""
        return sorted((job for job in self.jobs.values() if runs(job)), key=lambda job: job.job)

    def waiting(self) -> list[JobSnapshot]:
        """Jobs that wait, as slots are given: by priority, then the oldest."""
        found = (job for job in self.jobs.values() if job.state not in FINAL and not runs(job))
        return sorted(found, key=lambda job: (-job.priority, job.at, job.job))

    def finished(self) -> list[JobSnapshot]:
        """Jobs that have ended, the newest first."""
        return sorted((job for job in self.jobs.values() if job.state in FINAL), key=lambda job: job.at, reverse=True)

    def agents(self) -> list[str]:
        """Ids of all agents that have said something: factories last, those that are here first."""
        known = self.cards.keys() | self.presences.keys()
        return sorted(known, key=lambda agent: (self.slots(agent) > 0, not self.online(agent), agent))

    def online(self, agent: str) -> bool:
        """Whether an agent says that it is here."""
        return agent in self.presences and self.presences[agent].online

    def slots(self, agent: str) -> int:
        """How many jobs an agent trains at once; 0 for those that train none."""
        return self.cards[agent].slots if agent in self.cards else 0

    def works_on(self, agent: str) -> list[JobSnapshot]:
        """The jobs that a factory holds."""
        return [job for job in self.running() if job.machine == agent]

    def cost_usd(self, job: JobSnapshot) -> float | None:
        """What a job has cost so far."""
        now = self.progress.get(job.job)
        return now.cost_usd if now is not None and now.cost_usd is not None else job.cost_usd

    def of_stage(self, job: JobSnapshot) -> Progress | None:
        """The progress of the stage that runs; None when nothing was heard of it yet."""
        now = self.progress.get(job.job)
        return now if now is not None and (job.stage is None or now.stage is job.stage) else None


def sparkline(values: list[float], width: int) -> str:
    """Draw a course in at most `width` marks, each the mean of its share of the values; "" for fewer than two."""
    if len(values) < 2 or width < 1:
        return ""
    width = min(width, len(values))
    means = []
    for mark in range(width):
        part = values[mark * len(values) // width : (mark + 1) * len(values) // width]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(MARKS[round((mean - low) / span * (len(MARKS) - 1))] for mean in means)


def runs(job: JobSnapshot) -> bool:
    """Whether a machine works on a job."""
    return job.state in WORKING or (job.state is State.PROVISIONING and job.machine is not None)


def _of_job(job: JobSnapshot) -> Event:
    why = f": {job.reason}" if job.reason else ""
    if job.state is State.DONE:
        quality = "" if job.quality_percent is None else f", quality {job.quality_percent:.1f} %"
        return Event(job.at, f"{job.job} is done{quality}", "good")
    if job.state in (State.FAILED, State.REFUSED):
        return Event(job.at, f"{job.job} {'failed' if job.state is State.FAILED else 'was refused'}{why}", "bad")
    if job.state in (State.CANCELLED, State.INTERRUPTED):
        return Event(job.at, f"{job.job} was {job.state.value}{why}", "warning")
    return Event(job.at, f"{job.job} is {job.state.value}")


def _of_alert(alert: BudgetAlert) -> Event:
    used, cap = show.micros(alert.spent_micros + alert.reserved_micros), show.micros(alert.cap_micros)
    text = alert.note or f"{alert.threshold} % of the {alert.period}'s budget is reached: {used} of {cap}"
    return Event(alert.at, text, "warning")
