"""Jobs for tests, planned by the real planner on the tiny base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.gguf_factory import plan
from agents.gguf_factory.job import Job
from protocol.job import PlanRequest, Route, RunRequest, TrainRequest
from tests.agents.gguf_factory.bases import QA


def make_job(home: Path, base: Path, **changes: Any) -> Job:
    """Plan a job and write its job.json."""
    request = TrainRequest(domain="time_management", **{"dataset": str(QA), **changes})
    route = Route(
        domain="time_management", category="productivity", tier="starter", base=str(base), voice="v", empathy="e",
        quality_floor=101.0, safety_critical=False,
    )  # fmt: skip
    found = plan.plan(PlanRequest(job="j1", request=request, route=route), home)
    run = RunRequest(
        job="j1", request=request, route=route, plan=found, lease="l", fence=1, attempt=1, price_micros_per_hour=0
    )
    folder = home / "jobs" / "j1"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(run.model_dump_json())
    return Job(run, folder, home)
