"""What a text is about: the domains that it may belong to, and what the router makes of them. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from configs import Domains
from protocol.voice import DomainMatch, Strategy, TextRoute
from textmodel.crisis import NOTICES, Crisis, crisis

OTHER = "(none)"
"""The model's label for texts that belong to no domain; no domain can have this name."""
LIMIT = 0.3
"""Confidence below which `route.text` asks instead of choosing: the limit of the interface's older clients."""
TRAIN_LIMIT = 0.5
"""Confidence below which a training request is refused with a question: a job is dearer than a question, so it starts only
where the domain is likelier right than wrong. models/router/README.md has what each limit costs."""
NEAREST = 3
"""Domains that are named when it asks."""
AT_ONCE = 3
"""Domains that one text may touch; more is a list, not a request."""
CRISIS_DOMAINS: dict[Crisis, str] = {
    "self_harm": "mental_health", "medical_emergency": "emergency_care", "abuse": "mental_health",
}  # fmt: skip
"""Where words of danger lead, whatever the model says; the confidence is then that of a rule, 1."""
CLAUSE_WORDS = 3
"""Shorter parts of a sentence say too little to be judged alone."""
CLAUSES = re.compile(r"[.;!?\n]+|,?\s+(?:and|but|then|also|plus|after that|afterwards|as well as)\s+", re.IGNORECASE)
IN_ORDER = re.compile(r"\b(then|after that|afterwards|first|finally|before that)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reader:
    """A text model as the router uses it.

    Attributes:
        shares: from a text to the share of each label, which add up to one.
        ranks: rise, fall and offset that turn the share of the likeliest, the second and the third domain into a confidence.
    """

    shares: Callable[[str], Sequence[tuple[str, float]]]
    ranks: Sequence[Sequence[float]]


def confidence(share: float, rank: Sequence[float]) -> float:
    """Return how often a domain with this share is right: sigmoid(rise · ln p - fall · ln(1 - p) + offset).

    Sixty-two near neighbours split their share, so a leader with 0.2 is right far more often than a second with 0.2: each
    rank has its own numbers ("beta calibration", Kull et al. 2017).
    """
    rise, fall, offset = rank
    p = min(max(share, 1e-6), 1 - 1e-6)
    return 1 / (1 + math.exp(-(rise * math.log(p) - fall * math.log(1 - p) + offset)))


def matches(text: str, reader: Reader, domains: Domains) -> list[DomainMatch]:
    """Return the likeliest domains of this lab, best first, at most as many as `reader.ranks`.

    Domains that the model does not know (a user's own) are not among them; those it knows and the lab has not are left out.
    """
    known = sorted(((name, share) for name, share in reader.shares(text) if name in domains), key=lambda pair: -pair[1])
    found: list[DomainMatch] = []
    for (name, share), rank in zip(known, reader.ranks, strict=False):
        most = found[-1].confidence if found else 1.0
        found.append(DomainMatch(domain=name, confidence=min(most, confidence(share, rank))))
    return found


def read(text: str, reader: Reader, domains: Domains, took_ms: Callable[[], float]) -> TextRoute:
    """Return the router's view of a text."""
    nearest = matches(text, reader, domains)[:NEAREST]
    touched = [match for match in nearest[:1] if match.confidence >= LIMIT]
    danger = crisis(text)
    if danger is not None and CRISIS_DOMAINS[danger] in domains:
        touched = [DomainMatch(domain=CRISIS_DOMAINS[danger], confidence=1.0)]
    parts = [part for part in CLAUSES.split(text) if len(part.split()) >= CLAUSE_WORDS]
    for part in parts if len(parts) > 1 and danger is None else []:
        for best in matches(part, reader, domains)[:1]:
            if best.confidence >= LIMIT and best.domain not in {match.domain for match in touched}:
                touched.append(best)
    touched = touched[:AT_ONCE]
    domain = domains[touched[0].domain] if touched else None
    several: Strategy = "multi_domain_sequential" if IN_ORDER.search(text) else "multi_domain_parallel"
    strategy: Strategy = "clarification_needed" if not touched else "single_domain" if len(touched) == 1 else several
    return TextRoute(
        primary_domain=domain.name if domain else None,
        domain_confidence=touched[0].confidence if touched else nearest[0].confidence if nearest else 0.0,
        domain_category=domain.category if domain else None,
        nearest=nearest,
        multi_domains=[match.domain for match in touched[1:]],
        routing_strategy=strategy,
        empathy_level=domain.empathy if domain else None,
        voice=domain.voice if domain else None,
        question=None if touched else question(nearest),
        urgency="normal" if danger is None else "critical",
        notice=None if danger is None else NOTICES[danger],
        processing_time_ms=took_ms(),
    )


def question(nearest: Sequence[DomainMatch]) -> str:
    """Return a plain sentence that asks which of the domains is meant."""
    names = [match.domain.replace("_", " ") for match in nearest]
    if not names:
        return "What is it about? This lab has no domain that is found by words."
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return f"What is it about: {listed}?"
