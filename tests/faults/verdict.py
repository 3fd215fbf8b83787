"""What counts as lost, doubled and stuck: a pure judgement of what is known of a job when everything is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol.job import FINAL, JobEvent, JobSnapshot, Stage, State

ENDINGS = frozenset(state.value for state in FINAL)


@dataclass
class Tally:
    """The counts of a scenario, and a sentence for each. `unmet`: another promise of the scenario was not kept."""

    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    unmet: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, what: str, note: str, times: int = 1) -> None:
        """Count `times` findings of `lost`, `doubled`, `stuck` or `unmet`; none changes nothing."""
        if times > 0:
            setattr(self, what, getattr(self, what) + times)
            self.notes.append(f"{what}: {note}")

    def expect(self, kept: object, note: str) -> None:
        """Count an unmet promise unless it was kept."""
        if not kept:
            self.count("unmet", note)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.stuck or self.unmet)

    def __iadd__(self, other: Tally) -> Tally:
        for name in ("lost", "doubled", "stuck", "unmet"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.notes += other.notes
        return self


@dataclass(frozen=True)
class Evidence:
    """Everything that is known of an accepted job.

    Attributes:
        job: its id.
        events: its facts as the conductor tells them.
        final: its last snapshot; None: it did not end in time.
        ledger: the kinds of its entries in the ledger, in order.
        stored: paths of the model files that the artefact store has of it.
        replies: the replies to its one request, each time that it was asked.
    """

    job: str
    events: Sequence[JobEvent]
    final: JobSnapshot | None
    ledger: Sequence[str] = ()
    stored: Sequence[str] = ()
    replies: Sequence[Any] = ()


def judge(evidence: Evidence) -> Tally:
    """Return what is wrong with a job (docs/faults.md has the definitions in words)."""
    tally, job, events = Tally(), evidence.job, evidence.events
    if not events:
        tally.count("lost", f"{job} was accepted and nothing is known of it")
    missing = set(range(1, (events[-1].seq if events else 0) + 1)) - {event.seq for event in events}
    tally.count("lost", f"{job}: the events {sorted(missing)} are missing", len(missing))
    endings = [event.type for event in events if event.type in ENDINGS]
    if evidence.final is None:
        tally.count("stuck", f"{job} did not end; its last fact is {events[-1].type if events else 'none'}")
    elif not endings:
        tally.count("lost", f"{job} is {evidence.final.state} and no event says so")
    tally.count("doubled", f"{job} ended more than once: {endings}", len(endings) - 1)
    _judge_stages(evidence, tally)
    entries = Counter("reserve" if kind == "reserve" else "end" for kind in evidence.ledger)
    for kind, times in entries.items():
        tally.count("doubled", f"{job}: the ledger has {times} entries of the kind {kind}", times - 1)
    if evidence.final is not None and entries["reserve"] and not entries["end"]:
        tally.count("lost", f"{job} has ended and its reservation has not")
    kinds = Counter(item.kind for item in evidence.final.artefacts) if evidence.final else Counter()
    tally.count("doubled", f"{job} has artefacts {dict(kinds)}", sum(times - 1 for times in kinds.values()))
    tally.count("doubled", f"{job} is stored at {evidence.stored}", len(evidence.stored) - 1)
    if evidence.final is not None and evidence.final.state is State.DONE and not evidence.stored:
        tally.count("lost", f"{job} is done and its file is not in the store")
    different = {str(reply) for reply in evidence.replies}
    tally.count("doubled", f"{job} got different replies: {sorted(different)}", len(different) - 1)
    return tally


def _judge_stages(evidence: Evidence, tally: Tally) -> None:
    since_lease: Counter[str] = Counter()
    ever: set[str] = set()
    for event in evidence.events:
        if event.type == "leased":
            since_lease.clear()
        elif event.type == "stage_done":
            stage = event.data["stage"]
            since_lease[stage] += 1
            ever.add(stage)
            if since_lease[stage] > 1:
                tally.count("doubled", f"{evidence.job} finished {stage} twice in one lease")
    if evidence.final is not None and evidence.final.state is State.DONE:
        untold = [stage.value for stage in Stage if stage.value not in ever]
        tally.count("lost", f"{evidence.job} is done and nobody told of the end of {untold}", len(untold))
