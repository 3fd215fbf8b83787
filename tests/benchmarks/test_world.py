"""The world around a measured conductor brings every job to its end, so that transitions are counted rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.conductor.agent import ConductorAgent
from benchmarks.transitions import Recorder, _incoming
from benchmarks.world import HAPPENINGS, World
from bus import BrokerAddress, Wiring
from protocol.job import Stage


async def test_a_job_has_as_many_transitions_as_are_counted(tmp_path: Path) -> None:
    agent = ConductorAgent(Wiring("conductor-1", tmp_path, BrokerAddress("127.0.0.1", 1)))
    agent.store.connection.execute("PRAGMA synchronous = OFF")  # no power cuts here
    world, line = World(), Recorder()
    waiting = [world.submit("j")]
    while waiting:
        agent.take_in([_incoming(said) for said in waiting])
        line.published.clear()
        while await agent.send_due(line):
            pass
        waiting = [said for topic, body in line.published for said in world.hears(topic, body)]
    moved = {"routed", "planned", "quoted", "reserved", "leased", "stage_started", "stage_done", "done"}
    facts = [event.type for event in agent.store.events("j")]
    assert world.done == 1 and facts[-1] == "done"
    assert sum(fact in moved for fact in facts) == HAPPENINGS == 5 + 2 * len(Stage) + 1
    agent.store.close()


@pytest.mark.parametrize("name", ["calls", "transitions", "first_step", "offers", "cluster"])
def test_every_benchmark_tells_what_it_does(name: str) -> None:
    import importlib

    benchmark = importlib.import_module(f"benchmarks.{name}")
    assert benchmark.ROUNDS > 0 and len(benchmark.TITLE) > 10
    if name != "transitions":  # it names the version of its peer, which is an extra
        assert "{" not in benchmark.method()
