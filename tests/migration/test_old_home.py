"""Homes of other versions: an older one goes on where it stood, a newer one is refused, and nothing is ever half-done.

`v1/` holds the stores of the first released schema as SQL: a lab that was killed while it trained the job `old-1`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from agents.conductor.agent import ConductorAgent
from agents.cost_monitor.agent import CostMonitorAgent
from agents.cost_monitor.report import open_reservations
from agents.gguf_factory import pipeline
from agents.gguf_factory.agent import FactoryAgent
from agents.gguf_factory.job import Job
from agents.gpu_orchestrator.agent import GpuOrchestratorAgent
from agents.router.agent import RouterAgent
from bus import BaseAgent, BrokerAddress, Wiring
from bus.migration import migrate, versions
from bus.process import utc_now
from bus.store import SCHEMA, Store
from meetara import models
from meetara.home import hold, running
from meetara.screens import doctor
from protocol import Code, LabError, State
from protocol.envelope import MCPMessage
from protocol.format import FORMAT
from protocol.job import RunRequest, Stage
from protocol.machine import LeaseLost

V1 = Path(__file__).parent / "v1"
JOB = "old-1"
FIRST = ConductorAgent.migrations[:1]
SECOND = "ALTER TABLE jobs ADD COLUMN note TEXT; UPDATE jobs SET note = 'from ' || job;"
BROKEN = "CREATE TABLE half (x TEXT); INSERT INTO half VALUES ('x'); SELECT no_such_column FROM half;"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "agents").mkdir()
    for dump in V1.glob("*.sql"):
        connection = sqlite3.connect(tmp_path / "agents" / f"{dump.stem}.db")
        connection.executescript(dump.read_text(encoding="utf-8"))
        connection.close()
    return tmp_path


def woken(agent: type[BaseAgent], home: Path, name: str, later: timedelta = timedelta()) -> BaseAgent:
    return agent(Wiring(name, home, BrokerAddress("127.0.0.1", 1), now=lambda: utc_now() + later))


def outbox(agent: BaseAgent) -> dict[str, MCPMessage]:
    rows = agent.store.connection.execute("SELECT id, message FROM outbox")
    return {row["id"]: MCPMessage.model_validate_json(row["message"]) for row in rows}


def test_the_conductor_goes_on_with_a_job_that_was_training(home: Path) -> None:
    agent = woken(ConductorAgent, home, "conductor-1")
    assert isinstance(agent, ConductorAgent)
    with agent.transaction() as tx:
        record = agent.known(JOB, tx)
        assert (record.state, record.stage) == (State.TRAINING, Stage.TRAIN)
        assert record.snapshot().machine == "gguf_factory-1" and record.lease is not None
        assert [event.seq for event in tx.events(JOB)] == list(range(1, len(tx.events(JOB)) + 1))
        lost = LeaseLost(job=JOB, lease=record.lease.lease, fence=record.fence, machine=record.lease.machine)
        agent.happen(JOB, lost, tx)
    with agent.transaction() as tx:
        assert agent.known(JOB, tx).state in (State.INTERRUPTED, State.PROVISIONING)
        for row in tx.store.due_timers(utc_now() + timedelta(hours=1)):
            agent.timer_handlers[row["name"]](row["key"], {}, tx)
    assert any(message.type == "lease.request" for message in outbox(agent).values()), "it asks for another machine"
    agent.store.close()


def test_factory_orchestrator_router_and_ledger_know_what_they_held(home: Path) -> None:
    factory = woken(FactoryAgent, home, "gguf_factory-1", timedelta(hours=1))
    assert isinstance(factory, FactoryAgent)
    with factory.transaction() as tx:
        held = factory.held(JOB, tx)
        assert isinstance(held, RunRequest) and held.plan.steps == 20
    factory.fire_due()
    assert any(message.type == "lease.renew" and message.data["job"] == JOB for message in outbox(factory).values())
    orchestrator = woken(GpuOrchestratorAgent, home, "gpu_orchestrator-1")
    assert isinstance(orchestrator, GpuOrchestratorAgent)
    with orchestrator.transaction() as tx:
        assert [lease.job for lease in orchestrator._leases(tx).live()] == [JOB]
    router = woken(RouterAgent, home, "router-1")
    row = router.store.find_call(JOB)
    assert row is not None and json.loads(row["reply"])["result"]["job"] == JOB, "the same request gets the same reply"
    ledger = woken(CostMonitorAgent, home, "cost_monitor-1")
    assert isinstance(ledger, CostMonitorAgent)
    with ledger.transaction() as tx:
        assert [item.job for item in open_reservations(tx.connection)] == [JOB]
        assert [entry.kind for entry in ledger._ledger(tx).entries.page(0).entries] == ["reserve"]
    for agent in (factory, orchestrator, router, ledger):
        agent.store.close()


def conductor(home: Path, *more: str) -> Store:
    """The conductor's store as the first released schema has it, and after `more`."""
    return Store(home / "agents" / "conductor-1.db", migrations=(*FIRST, *more))


def test_a_store_is_copied_before_it_is_changed_and_its_rows_stay(home: Path) -> None:
    path = home / "agents" / "conductor-1.db"
    conductor(home).close()
    assert not list((home / "agents").glob("*.bak")), "nothing to do, nothing to keep"
    with conductor(home, SECOND) as store:
        assert store.connection.execute("SELECT job, note FROM jobs").fetchone()[:] == (JOB, f"from {JOB}")
    backup = path.with_name("conductor-1.db.v1.bak")
    assert versions(path) == {"bus": 1, "agent": 2} and versions(backup) == {"bus": 1, "agent": 1}
    copy = sqlite3.connect(backup)
    assert copy.execute("SELECT job FROM jobs").fetchall() == [(JOB,)]
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()
    backup.replace(path)
    with conductor(home) as store:
        assert store.connection.execute("SELECT count(*) FROM events").fetchone()[0] > 5, "the copy is a way back"


def test_a_script_that_fails_leaves_nothing_of_itself_and_those_before_it_stay(home: Path) -> None:
    path = home / "agents" / "conductor-1.db"
    with pytest.raises(sqlite3.OperationalError, match="no_such_column"):
        conductor(home, SECOND, BROKEN)
    assert versions(path) == {"bus": 1, "agent": 2}
    look = sqlite3.connect(path)
    assert look.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    look.close()
    with conductor(home, SECOND, "CREATE TABLE half (x TEXT)"):
        pass
    assert versions(path) == {"bus": 1, "agent": 3}, "the next start goes on"
    assert {backup.name for backup in (home / "agents").glob("*.bak")} == {"conductor-1.db.v1.bak", "conductor-1.db.v1.2.bak"}


def test_without_room_for_the_copy_nothing_is_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("bus.migration.back_up", full)
    with pytest.raises(LabError, match="Free some space") as caught:
        conductor(home, SECOND)
    assert caught.value.code is Code.BUSY
    assert versions(home / "agents" / "conductor-1.db") == {"bus": 1, "agent": 1}


@pytest.mark.parametrize("component", ["bus", "agent"])
def test_a_newer_store_is_refused_with_both_versions_and_left_as_it_is(home: Path, component: str) -> None:
    path = home / "agents" / "conductor-1.db"
    conductor(home).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE versions SET version = 9 WHERE component = ?", (component,))
    connection.close()
    known = {"bus": len(SCHEMA), "agent": 2}[component]
    with pytest.raises(LabError, match=f"version 9 of the {component} tables, this program knows {known}") as caught:
        conductor(home, SECOND)
    assert caught.value.code is Code.CONFIGURATION and "Upgrade" in caught.value.advice
    assert not list((home / "agents").glob("*.bak")) and versions(path)[component] == 9


def test_a_killed_migration_is_done_anew(home: Path) -> None:
    """The killed process's transaction is in the write-ahead log without its commit, so SQLite forgets it."""
    path = home / "agents" / "conductor-1.db"
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.create_function("die", 0, lambda: os.kill(os.getpid(), 9))
        migrate(connection, path, {"bus": SCHEMA, "agent": (*FIRST, f"{SECOND} SELECT die();")})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert versions(path) == {"bus": 1, "agent": 1}
    with conductor(home, SECOND):
        pass
    assert versions(path) == {"bus": 1, "agent": 2}


def test_doctor_tells_the_versions_of_a_home(home: Path) -> None:
    well = doctor.stores(home)
    assert well.ok and "5 stores" in well.value and "version 1" in well.value
    with conductor(home, SECOND):
        pass
    assert "1 copy from before an upgrade" in doctor.stores(home).value
    with sqlite3.connect(home / "agents" / "router-1.db") as connection:
        connection.execute("UPDATE versions SET version = 9 WHERE component = 'bus'")
    connection.close()
    newer = doctor.stores(home)
    assert not newer.ok and "router-1.db has version 9" in newer.value and "Upgrade" in newer.advice
    (home / "agents" / "tts-1.db").write_bytes(b"no database" * 100)
    assert "tts-1.db" in doctor.stores(home).value
    assert doctor.stores(home / "nowhere").ok




def test_a_newer_lab_that_runs_is_not_talked_to(tmp_path: Path) -> None:
    with hold(tmp_path):
        (tmp_path / "run" / "up.json").write_text(json.dumps({"format": FORMAT + 1, "pid": os.getpid(), "where": "elsewhere"}))
        with pytest.raises(LabError, match=f"format {FORMAT + 1}, this program knows {FORMAT}"):
            running(tmp_path)


def test_a_job_that_a_newer_program_worked_on_is_not_done_anew(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / JOB
    (folder / "plan").mkdir(parents=True)
    (folder / "plan" / "manifest.json").write_text(json.dumps({"inputs": {}, "files": {}, "format": FORMAT + 1}))
    job = Job(run=None, folder=folder, home=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(LabError, match="a newer meetara wrote it") as caught:
        pipeline.finished(job, Stage.PLAN, {})
    assert caught.value.code is Code.CONFIGURATION


def test_a_model_of_a_newer_program_is_refused_by_name_and_others_are_found(tmp_path: Path) -> None:
    for digest, domain, version in (("aa", "sleep", FORMAT), ("bb", "music", FORMAT + 1)):
        folder = tmp_path / "artefacts" / digest
        folder.mkdir(parents=True)
        (folder / "m.gguf").write_bytes(b"x")
        facts = {"format": version, "file": {"name": "m.gguf"}, "domain": domain, "job": f"{domain}-1"}
        (folder / "manifest.json").write_text(json.dumps(facts))
    assert models.find("sleep", tmp_path).parent.name == "aa"
    with pytest.raises(LabError, match="newer meetara"):
        models.find("music", tmp_path)
