"""What a simulated life is made of: who asks for what and when, and what goes wrong. Drawn by hypothesis, so that it shrinks.

The seed decides what nobody would plan: delays of packets, which factory the broker chooses, how long a stage takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

SERVERS = ("router", "conductor", "gpu_orchestrator", "cost_monitor")
FACTORIES = ("factory-1", "factory-2", "factory-3")
PROCESSES = (*SERVERS, *FACTORIES)

MOMENTS = ("now", "before_commit", "after_commit", "acknowledged", "published")
"""Where a process is killed: at once, or when it next comes to one of these places."""


@dataclass(frozen=True)
class Mishap:
    """What one run of a job's process does instead of finishing its stage number `stage`."""

    kind: str  # crash, never, later, other-worker
    stage: int = 0


@dataclass(frozen=True)
class Request:
    """A person wants a model.

    `how`: call (repeated until answered), publish (QoS 1, an id, no response topic) or nameless (not even an id).
    `again`: how many others send the same; `conflict`: somebody else sends another body under the id.
    """

    at: int = 0  # tenths of a second
    how: str = "call"
    priority: int = 1
    again: int = 0
    conflict: bool = False
    cancel: int | None = None  # tenths of a second after `at`
    plannable: str = "yes"  # yes, no, crash
    mishaps: tuple[Mishap, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Something goes wrong `at` tenths of a second after the start, and lasts for `lasts` tenths."""

    at: int
    kind: str
    target: str = ""
    lasts: int = 10
    moment: str = "now"


@dataclass(frozen=True)
class Plan:
    """One life of a lab."""

    seed: int = 0
    requests: tuple[Request, ...] = (Request(),)
    faults: tuple[Fault, ...] = ()
    factories: int = 1
    slots: int = 1
    rough: bool = False  # the network is slow, and everything comes twice now and then
    start: str = "noon"  # noon, midnight (just before a new day), month (just before a new month)
    affordable: int = 9  # so many jobs can be reserved at once


TARGETED = ("kill", "stop", "pause", "cut_up", "cut_down", "lag", "clock_ahead", "clock_back", "locked", "full", "spilled")
GLOBAL = ("broker_kept", "broker_lost", "broker_old", "sleep", "takeover")

_LASTS = st.sampled_from((1, 10, 30, 100, 250, 400, 700))
_MISHAPS = st.builds(Mishap, kind=st.sampled_from(("crash", "never", "later", "other-worker")), stage=st.integers(0, 2))
_REQUESTS = st.builds(
    Request,
    at=st.integers(0, 300),
    how=st.sampled_from(("call", "call", "publish", "nameless")),
    priority=st.integers(1, 3),
    again=st.sampled_from((0, 0, 0, 1)),
    conflict=st.sampled_from((False, False, False, True)),
    cancel=st.none() | st.none() | st.integers(0, 400),
    plannable=st.sampled_from(("yes", "yes", "yes", "yes", "yes", "yes", "no", "crash")),
    mishaps=st.lists(_MISHAPS, max_size=3).map(tuple),
)
_FAULTS = st.one_of(
    st.builds(
        Fault, at=st.integers(0, 450), kind=st.sampled_from(TARGETED), target=st.sampled_from(PROCESSES), lasts=_LASTS,
        moment=st.just("now"),
    ),
    st.builds(
        Fault, at=st.integers(0, 450), kind=st.just("kill"), target=st.sampled_from(PROCESSES), lasts=_LASTS,
        moment=st.sampled_from(MOMENTS),
    ),
    st.builds(Fault, at=st.integers(0, 450), kind=st.sampled_from(GLOBAL), target=st.sampled_from(PROCESSES), lasts=_LASTS),
    st.builds(Fault, at=st.integers(0, 450), kind=st.just("stall"), target=st.sampled_from(FACTORIES), lasts=_LASTS),
)  # fmt: skip


PLANS = st.builds(
    Plan,
    seed=st.integers(0, 2**32 - 1),
    requests=st.lists(_REQUESTS, min_size=1, max_size=3).map(tuple),
    faults=(st.lists(_FAULTS, max_size=6) | st.lists(_FAULTS, min_size=5, max_size=14)).map(tuple),
    factories=st.integers(1, 3),
    slots=st.integers(1, 2),
    rough=st.booleans(),
    start=st.sampled_from(("noon", "noon", "midnight", "month")),
    affordable=st.sampled_from((9, 9, 2, 1)),
)
"""Lives of labs, from quiet to terrible."""
