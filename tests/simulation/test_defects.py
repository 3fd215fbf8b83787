"""The simulation finds what it is there for: each planted defect is found within a few lives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import agents.conductor.decide
import agents.gpu_orchestrator.agent
import bus.agent
import bus.inbox
from agents.conductor.agent import ConductorAgent
from agents.conductor.decision import Decision
from agents.cost_monitor.ledger import Ledger
from bus.lease import Leases
from bus.store import Store
from tests.simulation.plan import Fault, Plan, Request
from tests.simulation.world import Violation, World

SEEDS = 20
"""In so many lives of its plan each defect must show; each takes a fraction of a second."""


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """Reports count whatever their fence."""
    real = agents.conductor.decide.reported

    def reported(decision: Decision, report: Any) -> None:
        if decision.record.lease is not None:
            report = report.model_copy(update={"fence": decision.record.fence, "lease": decision.record.lease.lease})
        real(decision, report)

    patch.setattr(agents.conductor.decide, "reported", reported)


def early_ack(patch: pytest.MonkeyPatch) -> None:
    """Messages are acknowledged before they are safe."""

    async def receive(agent: Any, session: Any) -> None:
        while True:
            batch = await session.receive()
            for incoming in batch:
                session.ack(incoming)
            await agent.until_stored(lambda batch=batch: agent.take_in(batch))

    patch.setattr(bus.agent.BaseAgent, "_receive", receive)


def kept_reservation(patch: pytest.MonkeyPatch) -> None:
    """A job that ends without having cost anything keeps its reservation."""
    real = ConductorAgent.commit

    def commit(agent: ConductorAgent, decision: Decision, tx: Any) -> None:
        calls = [call for call in decision.calls if call.method != "budget.release"]
        real(agent, dataclasses.replace(decision, calls=calls), tx)

    patch.setattr(ConductorAgent, "commit", commit)


def forgotten_reply(patch: pytest.MonkeyPatch) -> None:
    """A repeated call is handled again instead of being answered from the store."""

    def take_again(inbox: Any, row: Any, message: Any, digest: str, incoming: Any, tx: Any, out: Any) -> None:
        tx.connection.execute("UPDATE inbox SET state = 'pending', reply = NULL WHERE id = ?", (row["id"],))

    patch.setattr(bus.inbox.Inbox, "_take_again", take_again)


def silent_callee(patch: pytest.MonkeyPatch) -> None:
    """A repeated call that was answered gets no answer: one that was lost stays lost."""
    patch.setattr(bus.inbox.Inbox, "_take_again", lambda *_: None)


def used_fence(patch: pytest.MonkeyPatch) -> None:
    """A lease gets the fence of the one before it."""
    real = Leases.grant

    def grant(leases: Leases, job: str, lease: str, *arguments: Any, **facts: Any) -> Any:
        leases._connection.execute("UPDATE fences SET fence = fence - 1 WHERE job = ? AND fence > 0", (job,))
        return real(leases, job, lease, *arguments, **facts)

    patch.setattr(Leases, "grant", grant)


def full_machine(patch: pytest.MonkeyPatch) -> None:
    """Slots that are taken count as free."""
    real = agents.gpu_orchestrator.agent.Fleet.machines
    patch.setattr(agents.gpu_orchestrator.agent.Fleet, "machines", lambda fleet, leases: real(fleet, ()))


def spent_twice(patch: pytest.MonkeyPatch) -> None:
    """The ledger does not look at its caps."""
    patch.setattr(Ledger, "_allow", lambda *_: None)


def gap(patch: pytest.MonkeyPatch) -> None:
    """An event leaves out a number."""
    real = Store.append

    def append(store: Store, stream: str, kind: str, data: Any, now: Any) -> int:
        seq = real(store, stream, kind, data, now)
        if kind == "interrupted":
            store.connection.execute("UPDATE events SET seq = seq + 1 WHERE stream = ? AND seq = ?", (stream, seq))
        return seq

    patch.setattr(Store, "append", append)


def left_end(patch: pytest.MonkeyPatch) -> None:
    """A final state can be left."""
    patch.setattr(agents.conductor.record.JobRecord, "final", property(lambda record: False))


def lost_publication(patch: pytest.MonkeyPatch) -> None:
    """A publication is forgotten before it is sent."""
    real = Store.publications

    def publications(store: Store, limit: int) -> Any:
        rows = real(store, limit)
        if rows:
            with store.transaction():
                store.published(rows[-1]["number"])
        return rows

    patch.setattr(Store, "publications", publications)


TWO = (Request(), Request(at=5))
KILLS = tuple(
    Fault(at, "kill", name, 15, moment)
    for at, name, moment in (
        (20, "conductor", "published"), (25, "router", "acknowledged"), (30, "router", "after_commit"), (45, "conductor", "before_commit"),
        (60, "gpu_orchestrator", "acknowledged"), (75, "factory-1", "after_commit"), (90, "conductor", "acknowledged"),
    )
)  # fmt: skip
FACTORY_LOST = Plan(requests=TWO, factories=2, faults=(Fault(80, "kill", "factory-1", 450), Fault(90, "stall", "factory-2", 450)))
DEFECTS: tuple[tuple[Callable[[pytest.MonkeyPatch], None], Plan], ...] = (
    (no_fence, Plan(factories=2, faults=(Fault(60, "cut_up", "factory-1", 400),))),
    (early_ack, Plan(requests=(Request(at=20, how="publish"),), faults=(Fault(19, "kill", "router", 15, "acknowledged"),))),
    (kept_reservation, Plan(requests=(Request(), Request(at=5, cancel=70)))),
    (forgotten_reply, Plan(requests=TWO, faults=KILLS, rough=True)),
    (silent_callee, Plan(requests=TWO, faults=KILLS, rough=True)),
    (used_fence, FACTORY_LOST),
    (full_machine, Plan(requests=(Request(), Request(at=5), Request(at=9)))),
    (spent_twice, Plan(requests=TWO, affordable=1)),
    (gap, FACTORY_LOST),
    (left_end, Plan(requests=(Request(cancel=100),))),
    (lost_publication, Plan(requests=TWO, faults=(Fault(30, "lag", "conductor", 80), Fault(60, "broker_kept", lasts=15)))),
)  # fmt: skip


@pytest.mark.parametrize(("defect", "plan"), DEFECTS, ids=lambda it: getattr(it, "__name__", ""))
def test_planted_defect_is_found(
    defect: Callable[[pytest.MonkeyPatch], None], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(plan).run()  # without the defect all is well
    defect(monkeypatch)
    for seed in range(SEEDS):
        try:
            World(dataclasses.replace(plan, seed=seed)).run()
        except Violation as violation:
            print(f"{defect.__name__}: seed {seed}: {str(violation).splitlines()[0]}")
            return
    pytest.fail(f"{defect.__doc__} Nobody noticed in {SEEDS} lives.")
