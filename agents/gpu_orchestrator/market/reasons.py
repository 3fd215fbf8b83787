"""Why machines are not taken, in sentences, and the error where none is. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from agents.gpu_orchestrator.market import estimate, gpus
from agents.gpu_orchestrator.market.gpus import GPUS
from agents.gpu_orchestrator.market.requirements import Requirements
from agents.gpu_orchestrator.market.weighing import Refused, Search
from agents.gpu_orchestrator.market.words import cents, gib, hours, late, named
from protocol import Code, LabError
from protocol.machine import Offer

REASONS = 60
"""Rejected listings that a quote names, cheapest first, of those that anybody asked for. A message has a limit."""
TOLD = 8
"""Reasons that an error's sentence gives; its data has more."""
REST = "…"
"""Stands in a quote's reasons for all machines that it does not name."""


def reasons(wanted: Requirements, search: Search) -> dict[str, str]:
    """Return every own machine's reason, and those of the listings that come nearest; of the rest how many have which."""
    found = dict(search.own)
    near = sorted((refused for refused in search.refused if not refused.far), key=lambda refused: refused.spent or math.inf)
    for refused in near[:REASONS]:
        found[f"{refused.item.provider} {refused.item.id}"] = _sentence(refused, wanted)
    rest = Counter(SHORT.get(refused.reason, "over the limit of money") for refused in near[REASONS:])
    rest.update(_sentence(refused, wanted) for refused in search.refused if refused.far)
    if rest:
        found[REST] = "; ".join(f"{what} ({count} machine{'s' if count > 1 else ''})" for what, count in rest.most_common())
    return found


SHORT = {
    "plan": "the plan says too little", "memory": "too little memory", "disk": "too little disk",
    "speed": "a GPU of unknown speed", "judged": "see `meetara offers --all`", "untrusted": "machines of strangers",
    "economy": "dearer than the median while money is short", "spot": "may be taken away at any time", "deadline": "too slow for the deadline",
}  # fmt: skip
"""What a reason is, for those that are only counted; any other reason is a sentence about money."""


def _sentence(refused: Refused, wanted: Requirements) -> str:
    item, plan = refused.item, wanted.plan
    match refused.reason:
        case "provider":
            return "the request names other providers"
        case "gpu":
            meant = ", ".join(wanted.gpus) or "this lab's own machines, unless the request names providers"
            return f"the tier {wanted.tier} is meant for {meant}"
        case "plan":
            return "the plan does not say what training takes: the factory that made it is of an older version"
        case "memory":
            has = item.gpu_memory_bytes or GPUS[item.gpu].memory_gib * gpus.GIB
            return f"the job needs {gib(estimate.gpu_bytes(plan))} GiB of one GPU's memory, it has {gib(has)} GiB"
        case "disk":
            return f"the job needs {estimate.disk_bytes(plan) / 1e9:.0f} GB of disk, it has {(item.disk_bytes or 0) / 1e9:.0f} GB"
        case "speed":
            return f"nothing is known of the speed of {item.gpu or 'a machine without a GPU'}"
        case "judged":
            would = f"would cost {cents(refused.spent)} (P90), but " if refused.spent > 0 else ""
            return f"{would}{item.rejected or 'its price is not known'}"
        case "untrusted":
            return "a stranger's machine, and the request does not allow untrusted_hosts"
        case "spot":
            return "it may be taken away at any time, and its checkpoints with it: no artefact store is set, or they are to stay there"
        case "economy":
            return "four fifths of the budget are used: only spot machines are taken, and those that cost at most the median"
        case "deadline":
            return late(refused.seconds, wanted)
        case reason:
            return reason


def why(choice: Offer, others: Sequence[Offer], count: int) -> str:
    """Return why a machine was chosen of so many that fit."""
    told = f"the lowest cost at P90, {cents(choice.cost_p90_micros)} in {hours(choice.seconds_p90)}"
    if not others:
        return f"{told}; nothing else fits"
    return f"{told}, of {count} that fit; the next is {named(others[0])} at {cents(others[0].cost_p90_micros)}"


def nothing_fits(wanted: Requirements, search: Search) -> LabError:
    """Return the error for a job that no machine fits; needed money comes before needed time."""
    rejected = reasons(wanted, search)
    alike: dict[str, list[str]] = defaultdict(list)
    for name, reason in rejected.items():
        if name != REST or len(rejected) == 1:
            alike[reason].append(name)
    shown = [
        reason if names == [REST] else f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in list(alike.items())[:TOLD]
    ]  # fmt: skip
    left = len(alike) - len(shown)
    listed = "; ".join([*shown, *([f"and {left} more reasons (`meetara offers --all`)"] if left > 0 else [])]) or "there is none"
    if search.needed_micros is not None:
        error = LabError(
            Code.BUDGET, f"no machine fits the budget: {listed}.",
            advice=f"Allow budget_usd of at least {math.ceil(search.needed_micros / 10_000) / 100:.2f}, or ask for a smaller job.",
            needed_micros=search.needed_micros, cap_micros=wanted.limit_micros, rejected=rejected,
        )  # fmt: skip
        if wanted.limit_is == Requirements.limit_is:
            error.data["field"] = "budget_usd"
        return error
    if search.needed_s is not None:
        return LabError(
            Code.NO_CAPACITY, f"no machine is fast enough: {listed}.",
            advice=f"Allow deadline_hours of at least {math.ceil(search.needed_s / 360) / 10:.1f}, or ask for a smaller job.",
            field="deadline_hours", needed_hours=search.needed_s / 3600, rejected=rejected,
        )  # fmt: skip
    return LabError(
        Code.NO_CAPACITY, f"no machine fits the job: {listed}.",
        advice="Choose a smaller base or batch_size, start a factory on a larger machine, or add a provider (docs/money.md).",
        rejected=rejected,
    )  # fmt: skip
