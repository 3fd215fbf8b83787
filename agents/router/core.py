"""Routing: pure functions from a request, the configuration and what a text is about to a route."""

from __future__ import annotations

from collections.abc import Callable

from agents.router.words import TRAIN_LIMIT, question
from configs import Configs, Domain, Tier, resolve_base
from protocol import Code, LabError, MCPMessage, TrainRequest
from protocol.ids import valid_job_id
from protocol.job import Route, RoutedRequest, digest
from protocol.voice import TextRoute

Understand = Callable[[str], TextRoute]


def route(request: TrainRequest, configs: Configs, understand: Understand) -> Route:
    """Resolve a request's domain, tier and base.

    Raises:
        LabError: as `find_domain` does; INVALID_PARAMS for an unknown tier or a parameter that is wrong.
    """
    domain = find_domain(request, configs, understand)
    tier = _tier(request, domain.tier, configs)
    # Parameters are refused here, at the caller, rather than after a plan was asked for.
    tier.parameters.overridden(request.parameters)
    if request.quantisation is not None:
        tier.parameters.overridden({"quantisation": request.quantisation}, prefix="")
    return Route(
        domain=domain.name, category=domain.category, tier=tier.name, base=resolve_base(request.base or tier.base),
        voice=domain.voice, empathy=domain.empathy, quality_floor=domain.quality_floor,
        safety_critical=domain.safety_critical, gpus=list(tier.gpu),
    )  # fmt: skip


def find_domain(request: TrainRequest, configs: Configs, understand: Understand) -> Domain:
    """Return the domain that a request names, or, where it names none, the one that its text is about.

    Raises:
        LabError: UNKNOWN_DOMAIN with the nearest names, and for an unclear text the question which of them is meant;
            INVALID_PARAMS with neither domain nor text.
    """
    if request.domain is not None:
        return configs.domains.find(request.domain)
    if request.text is None:
        raise LabError(
            Code.INVALID_PARAMS, "domain: the request names no domain, and no text says what the model is for.",
            advice="Name a domain, or say in `text` what the model is for.", field="domain",
        )  # fmt: skip
    found = understand(request.text)
    if found.primary_domain is None or found.domain_confidence < TRAIN_LIMIT:
        raise LabError(
            Code.UNKNOWN_DOMAIN, "text: it is not clear enough which domain is meant.",
            advice=f"{question(found.nearest)} Name it as `domain`, or say it in other words.", field="text",
            nearest=[match.domain for match in found.nearest],
            confidence=[round(match.confidence, 3) for match in found.nearest],
        )  # fmt: skip
    return configs.domains[found.primary_domain]


def _tier(request: TrainRequest, domain_tier: str, configs: Configs) -> Tier:
    name = request.tier or configs.default_tier or domain_tier
    if name not in configs.tiers:
        raise LabError(
            Code.INVALID_PARAMS, f"tier: {name!r} is no tier of this lab.",
            advice=f"Known tiers are {', '.join(configs.tiers)}.", field="tier", known=list(configs.tiers),
        )  # fmt: skip
    return configs.tiers[name]


def job_id(message: MCPMessage) -> str:
    """Return the id of the job that a message asks for: the client's id, or the message's own where it gave none.

    Raises:
        LabError: INVALID_PARAMS; the client's id cannot name a topic level and a folder.
    """
    if not message.generated_id and not valid_job_id(message.id):
        raise LabError(
            Code.INVALID_PARAMS, f"id: {message.id!r} cannot be a job's id.",
            advice="Use at most 64 letters, digits, '_', '-' or '.', starting with a letter or digit and without '..'.",
            field="id",
        )  # fmt: skip
    return message.id


def routed(message: MCPMessage, request: TrainRequest, configs: Configs, understand: Understand) -> RoutedRequest:
    """Return what goes to the conductor.

    Raises:
        LabError: as `job_id` and `route` do.
    """
    job = job_id(message)
    return RoutedRequest(job=job, digest=digest(request), request=request, route=route(request, configs, understand))
