"""What a simulated life is made of: who asks for what and when, and what goes wrong.

A seed makes the plan, evenly, and then decides what nobody would plan: delays of packets, which factory the broker chooses, how
long a stage takes. Hypothesis draws the seed and what is left out of its plan, so that a plan that fails shrinks; its own way of
drawing lists and choices clusters: 1,250 such lives missed what 250 even ones found twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

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
    shared: bool = False  # what it asks for is the same model as every other shared request's
    paid: bool = False  # it is to be trained on a rented machine
    long: bool = False  # its training is predicted to take hours, so that it shares no machine
    pace: float = 0.0  # seconds that one of its 10,000 steps really takes; 0: nobody measures it
    budget_usd: float | None = None
    deadline_hours: float | None = None
    lasts: int = 0  # seconds that its training takes beside those of any


@dataclass(frozen=True)
class Fault:
    """Something goes wrong `at` tenths of a second after the start, and lasts for `lasts` tenths."""

    at: int
    kind: str
    target: str = ""
    lasts: int = 10
    moment: str = "now"


@dataclass(frozen=True)
class Seller:
    """A vendor of machines. Shares of calls and machines with which something goes wrong.

    `capacity`: machines of each type; `boot`: seconds from a launch until the machine runs; `dead`: machines that never come; `lies`: those with half of the memory that was sold.
    """

    vendor: str
    capacity: int = 3
    boot: int = 40
    trouble: float = 0.0
    preempted: float = 0.0
    dead: float = 0.0
    lies: float = 0.0
    billing_factor: int = 1


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
    sellers: tuple[Seller, ...] = ()
    cap_usd: float | None = None  # the budget of a day, a week and a month, instead of what `affordable` says
    trouble: int = 0  # tenths of a second for which the sellers cause it


TARGETED = ("kill", "stop", "pause", "cut_up", "cut_down", "lag", "clock_ahead", "clock_back", "locked", "full", "spilled")
GLOBAL = ("broker_kept", "broker_lost", "broker_old", "sleep")
KINDS = (*TARGETED, "kill", "kill", *GLOBAL, "takeover", "stall")

LASTS = (1, 10, 30, 100, 250, 400, 700)
MOST_FAULTS = 12
MOST_REQUESTS = 3


def drawn(seed: int) -> Plan:
    """Return the plan of a seed: every kind of trouble as likely as the others."""
    dice = Random(seed)
    return Plan(
        seed=seed,
        requests=tuple(_request(dice) for _ in range(dice.randint(1, MOST_REQUESTS))),
        faults=tuple(_fault(dice) for _ in range(dice.randint(0, MOST_FAULTS))),
        factories=dice.randint(1, 3),
        slots=dice.randint(1, 2),
        rough=dice.random() < 0.5,
        start=dice.choice(("noon", "noon", "midnight", "month")),
        affordable=dice.choice((9, 9, 2, 1)),
    )


def _request(dice: Random) -> Request:
    return Request(
        at=dice.randint(0, 250),
        how=dice.choice(("call", "call", "publish", "nameless")),
        priority=dice.randint(1, 3),
        again=dice.choice((0, 0, 0, 1)),
        conflict=dice.random() < 0.25,
        cancel=dice.choice((None, None, dice.randint(0, 400))),
        plannable=dice.choice(("yes",) * 7 + ("no", "crash")),
        mishaps=tuple(
            Mishap(dice.choice(("crash", "never", "later", "other-worker")), dice.randint(0, 2))
            for _ in range(dice.choice((0, 0, 0, 1, 2, 3)))
        ),
        shared=dice.random() < 0.5,
    )  # fmt: skip


def _fault(dice: Random) -> Fault:
    kind = dice.choice(KINDS)
    return Fault(
        at=dice.randint(0, 450),
        kind=kind,
        target="" if kind in GLOBAL else dice.choice(FACTORIES if kind == "stall" else PROCESSES),
        lasts=dice.choice(LASTS),
        moment=dice.choice(MOMENTS) if kind == "kill" else "now",
    )


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    """A seed's plan with something left out: shrinking leaves out more, and makes what stays plain."""

    def kept() -> bool:
        return draw(st.integers(0, 19)) > 0

    plan = drawn(draw(st.integers(0, 2**64 - 1)))
    requests = [
        request if kept() else Request(at=request.at, plannable=request.plannable)
        for request in plan.requests if kept()
    ]  # fmt: skip
    faults = tuple(fault for fault in plan.faults if kept())
    plan = replace(plan, requests=tuple(requests) or (Request(),), faults=faults)
    plain = Plan()
    for name in ("seed", "factories", "slots", "rough", "start", "affordable"):
        if not kept():
            plan = replace(plan, **{name: getattr(plain, name)})
    return plan


PLANS = _plans()
"""Lives of labs, from quiet to terrible."""


def rented(seed: int) -> Plan:
    """Return a plan of a seed in which all jobs run on rented machines, and their vendors cause trouble for five minutes."""
    dice = Random(seed)
    trouble, preempted = dice.choice((0, 0.05, 0.1, 0.2, 0.4)), dice.choice((0, 0.3, 0.6))
    kinds = (
        "kill", "kill", "stop", "pause", "cut_up", "cut_down", "lag", "broker_kept", "broker_lost", "clock_ahead", "clock_back",
        "full", "locked",
    )  # fmt: skip
    faults = []
    for _ in range(dice.choice((0, 2, 5))):
        kind = dice.choice(kinds)
        target = "" if kind in GLOBAL else dice.choice(("gpu_orchestrator", "gpu_orchestrator", "conductor", "cost_monitor"))
        moment = dice.choice(MOMENTS) if kind == "kill" else "now"
        faults.append(Fault(dice.randint(0, 2500), kind, target, dice.choice((10, 30, 100, 250)), moment))
    vendors = dice.sample(("vast", "runpod", "lambda"), dice.randint(1, 3))
    return Plan(
        seed=seed, trouble=3000, faults=tuple(faults),
        requests=tuple(
            Request(
                at=dice.randint(0, 900), paid=True, priority=dice.randint(1, 3),
                cancel=dice.choice((None, None, None, dice.randint(0, 1500))),
            )
            for _ in range(dice.randint(1, 6))
        ),
        sellers=tuple(
            Seller(
                vendor, capacity=dice.choice((1, 3)), trouble=trouble, preempted=preempted, dead=dice.choice((0, 0.2)),
                lies=dice.choice((0, 0.3)),
            )
            for vendor in vendors
        ),
    )  # fmt: skip
