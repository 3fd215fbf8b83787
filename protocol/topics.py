"""The topics of a lab: one table, from which agents subscribe and documents are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "meetara/v1"

CALLERS, CALLEES, AGENTS = "callers", "callees", "agents"
"""In the table's columns: whoever calls a method, whoever serves it, every agent (below its own role and id)."""
OPERATOR = "operator"
"""The login of the person who owns the lab's home, and of the supervisor."""
USER = "user"
"""A person: nobody's login on loopback, or one made by `meetara user add`."""
PEOPLE = (USER, OPERATOR, "gateway")
"""Who looks at the lab from outside; the gateway does so for people who have no MQTT."""
WATCHERS = (*PEOPLE, "gpu_orchestrator")
"""Who looks at agents; the orchestrator looks at factories only, for their slots."""

STOPPERS = (*PEOPLE, "gpu_orchestrator")
"""Who hears of a freeze: the orchestrator ends what is rented."""


@dataclass(frozen=True)
class Topic:
    """One row of the topic table.

    Attributes:
        publishers: roles, or CALLERS, CALLEES, AGENTS; what that means for each login is said in `protocol.access`.
        readers: the same.
        expiry: seconds; None means the deadline of the message, or never.
    """

    name: str
    template: str
    publishers: tuple[str, ...]
    readers: tuple[str, ...]
    qos: Literal[0, 1]
    retain: bool
    expiry: int | None
    payload: str


TABLE: tuple[Topic, ...] = (
    Topic("call", "call/{role}/{method}", (CALLERS,), (CALLEES,), 1, False, None, "a method's params"),
    Topic("direct", "direct/{role}/{agent}/{method}", (CALLERS,), (CALLEES,), 1, False, None, "a method's params"),
    Topic("reply", "reply/{client}", (CALLEES,), (CALLERS,), 1, False, None, "Reply"),
    Topic("job_event", "job/{job}/event", ("conductor",), PEOPLE, 1, False, 86_400, "JobEvent"),
    Topic("job_state", "job/{job}/state", ("conductor", "router"), PEOPLE, 1, True, 7 * 86_400, "JobSnapshot"),
    Topic("job_progress", "job/{job}/progress", ("gguf_factory",), PEOPLE, 0, True, 60, "Progress"),
    Topic("card", "agent/{role}/{agent}/card", (AGENTS,), WATCHERS, 1, True, None, "Card"),
    Topic("presence", "agent/{role}/{agent}/presence", (AGENTS,), (*WATCHERS, AGENTS), 1, True, None, "Presence"),
    Topic(
        "provider_status", "provider/{provider}/status", ("gpu_orchestrator",), PEOPLE, 1, True, None, "ProviderStatus"
    ),
    Topic("cost_alert", "cost/alert", ("cost_monitor",), PEOPLE, 1, True, None, "BudgetAlert"),
    Topic("cost_emergency", "cost/emergency", ("cost_monitor",), STOPPERS, 1, True, None, "BudgetAlert"),
    Topic("cost_mode", "cost/mode", ("cost_monitor",), (*STOPPERS, "conductor"), 1, True, None, "BudgetMode"),
    Topic("cost_stopped", "cost/stopped", ("gpu_orchestrator",), PEOPLE, 1, True, None, "EmergencyReport"),
    Topic("dead", "dead/{role}", (AGENTS,), PEOPLE, 1, False, 30 * 86_400, "DeadLetter"),
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
