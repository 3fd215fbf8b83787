"""What the conductor asks of a request, before it is a job and after. Pure."""

from __future__ import annotations

from protocol.job import Plan, PlanRequest, Route, TrainRequest
from protocol.machine import QuoteRequest


def plan_request(job: str, request: TrainRequest, route: Route) -> PlanRequest:
    """Return the question whether a request can work; another machine may train it where its tier or its providers say so."""
    named = request.providers
    rented = bool(route.gpus) if named is None else any(name.lower() != "local" for name in named)
    return PlanRequest(job=job, request=request, route=route, elsewhere=rented)


def quote_request(job: str, request: TrainRequest, route: Route, plan: Plan) -> QuoteRequest:
    """Return the question what a planned request takes and costs."""
    return QuoteRequest(
        job=job, tier=route.tier, plan=plan, budget_usd=request.budget_usd, deadline_hours=request.deadline_hours,
        providers=request.providers, untrusted_hosts=request.untrusted_hosts, checkpoints=request.checkpoints,
    )  # fmt: skip
