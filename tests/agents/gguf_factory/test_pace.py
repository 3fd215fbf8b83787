import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.gguf_factory.pace import STEPS, Pace
from protocol.job import Report
from tests.agents.gguf_factory.test_agent import Rig

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def test_a_probe_is_told_once_and_leaves_out_the_first_step() -> None:
    pace = Pace()
    told = [pace.heard(step, NOON + timedelta(seconds=100 if step == 1 else 100 + 2 * (step - 1))) for step in range(1, 60)]
    assert [found for found in told if found] == [(STEPS, 40.0)]
    assert told.index((STEPS, 40.0)) == STEPS


def test_a_training_that_goes_back_begins_its_probe_anew() -> None:
    pace = Pace()
    assert pace.heard(30, NOON) is None and pace.heard(5, NOON + timedelta(seconds=1)) is None
    assert pace.heard(30, NOON + timedelta(seconds=26)) == (25, 25.0)


@pytest.mark.parametrize("provider", ["local", "lambda"])
async def test_only_a_rented_machine_reports_its_probe(tmp_path: Path, provider: str) -> None:
    rig = Rig(tmp_path)
    run = rig.run.model_copy(update={"provider": provider})
    clock = [NOON]
    rig.agent.now = lambda: clock[0]  # type: ignore[method-assign]
    folder = rig.agent.home / "jobs" / run.job
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text("{}")
    began = datetime.fromtimestamp((folder / "job.json").stat().st_mtime, UTC)
    with rig.agent.transaction() as tx:
        tx.connection.execute("UPDATE runs SET request = ?", (run.model_dump_json(),))
    for step in (1, 15, 31, 60):
        clock[0] = began + timedelta(seconds=step)
        rig.agent.heard(run, {"kind": "progress", "stage": "train", "step": step})
    rows = rig.agent.store.connection.execute("SELECT message FROM outbox WHERE method = 'job.report'").fetchall()
    reports = [Report.model_validate(json.loads(row["message"])["data"]) for row in rows]
    if provider == "local":
        assert reports == []
    else:
        (told,) = reports
        assert told.probe is not None
        assert (told.kind, told.probe.steps, told.probe.step) == ("probed", 30, 31)
        assert told.probe.seconds == pytest.approx(30) and told.probe.elapsed_s == pytest.approx(31)
    rig.agent.store.close()
