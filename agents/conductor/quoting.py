"""Quotes without a job: a request is planned and priced as a job's would be, and nothing is kept of it.

What has to be known when an answer comes travels with the call's own context.
"""

from __future__ import annotations

from agents.conductor.questions import plan_request, quote_request
from bus import Answer, Transaction
from protocol.envelope import MCPMessage
from protocol.job import Plan, RoutedRequest
from protocol.machine import Quote


def ask(message: MCPMessage, routed: RoutedRequest, tx: Transaction) -> None:
    """Begin to answer `job.quote`: have the request planned."""
    tx.call(
        "job.plan", plan_request(routed.job, routed.request, routed.route).model_copy(update={"staging": False}), key=f"quote:{message.id}", priority=message.priority,
        deadline=message.deadline, context={"quote": message.id, "routed": routed.model_dump(mode="json")},
    )  # fmt: skip


def answered(answer: Answer, tx: Transaction) -> bool:
    """Go on with a quote that an answer belongs to; False: it belongs to a job."""
    call = answer.context.get("quote")
    if call is None:
        return False
    if answer.error is not None:
        tx.reply(call, answer.error)
    elif isinstance(answer.result, Plan):
        plan = answer.result.model_copy(update={"finished": None})
        routed = RoutedRequest.model_validate(answer.context["routed"])
        asked = tx.message(call)
        finished = answer.result.finished
        tx.call(
            "offer.quote", quote_request(routed.job, routed.request, routed.route, plan).model_copy(update={"dry_run": True}), key=answer.key,
            priority=asked.priority if asked else 1, deadline=asked.deadline if asked else None,
            context={
                "quote": call, "plan": plan.model_dump(mode="json"), "finished_by": finished.job if finished else None,
            },
        )  # fmt: skip
    else:
        assert isinstance(answer.result, Quote)
        told = {"plan": Plan.model_validate(answer.context["plan"]), "finished_by": answer.context["finished_by"]}
        tx.reply(call, answer.result.model_copy(update=told))
    return True
