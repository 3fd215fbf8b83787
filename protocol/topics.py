"""The topics of a lab: one table, from which agents subscribe and documents are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "meetara/v1"


@dataclass(frozen=True)
class Topic:
    """One row of the topic table. `expiry` is in seconds; None means the deadline of the message, or never."""

    name: str
    template: str
    publisher: str
    qos: Literal[0, 1]
    retain: bool
    expiry: int | None
    payload: str


TABLE: tuple[Topic, ...] = (
    Topic("call", "call/{role}/{method}", "any", 1, False, None, "a method's params"),
    Topic("direct", "direct/{role}/{agent}/{method}", "conductor, operator", 1, False, None, "a method's params"),
    Topic("reply", "reply/{client}", "callee", 1, False, None, "Reply"),
    Topic("job_event", "job/{job}/event", "conductor", 1, False, 86_400, "JobEvent"),
    Topic("job_state", "job/{job}/state", "conductor, router", 1, True, 7 * 86_400, "JobSnapshot"),
    Topic("job_progress", "job/{job}/progress", "lease owner", 0, True, 60, "Progress"),
    Topic("card", "agent/{role}/{agent}/card", "agent", 1, True, None, "Card"),
    Topic("presence", "agent/{role}/{agent}/presence", "agent", 1, True, None, "Presence"),
    Topic("provider_status", "provider/{provider}/status", "gpu_orchestrator", 1, True, None, "ProviderStatus"),
    Topic("cost_alert", "cost/alert", "cost_monitor", 1, True, None, "BudgetAlert"),
    Topic("cost_emergency", "cost/emergency", "cost_monitor", 1, True, None, "BudgetAlert"),
    Topic("dead", "dead/{role}", "bus", 1, False, 30 * 86_400, "DeadLetter"),
)

BY_NAME = {topic.name: topic for topic in TABLE}


@dataclass(frozen=True)
class Topics:
    """Full topic names of one lab."""

    lab: str = "lab"

    def of(self, name: str, **levels: str) -> str:
        """Return the full topic of a table row; give `+` for a level to make a filter.

        Raises:
            KeyError: no such row, or a level is missing.
        """
        return f"{PREFIX}/{self.lab}/{BY_NAME[name].template.format(**levels)}"

    def shared(self, role: str) -> str:
        """Return the shared subscription on which the workers of a role listen."""
        return f"$share/{role}/{self.of('call', role=role, method='+')}"

    def levels(self, topic: str) -> list[str]:
        """Return the levels after the lab's prefix.

        Raises:
            ValueError: the topic is not this lab's.
        """
        prefix = f"{PREFIX}/{self.lab}/"
        if not topic.startswith(prefix):
            raise ValueError(f"{topic} is not a topic of the lab {self.lab!r}")
        return topic.removeprefix(prefix).split("/")
