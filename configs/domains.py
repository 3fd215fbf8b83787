"""The domains of the lab, each with all its values: cloud-optimized-domain-mapping.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.source import Source
from protocol import Code, LabError

FILE = "cloud-optimized-domain-mapping.yaml"

Empathy = Literal["low", "moderate", "high", "very_high"]


class Domain(BaseModel):
    """One domain. `voice` is a profile of voices.yaml (aliases are resolved); `quality_floor` is 0-100."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    category: str = Field(min_length=1)
    tier: str
    voice: str
    empathy: Empathy
    quality_floor: float = Field(ge=0, le=100)
    safety_critical: bool


class _Category(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    defaults: dict[str, Any]
    domains: dict[str, dict[str, Any]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    voice_aliases: dict[str, str] = Field(default_factory=dict)
    categories: dict[str, _Category]
    custom: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Domains(Mapping[str, Domain]):
    """All domains by name, in the file's order."""

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self._domains = dict(domains)

    def __getitem__(self, name: str) -> Domain:
        return self._domains[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def find(self, name: str) -> Domain:
        """Return the domain that a request names in its field `domain`.

        Raises:
            LabError: UNKNOWN_DOMAIN with the names that are most like it.
        """
        if name in self:
            return self[name]
        near = self._nearest(name)
        raise LabError(
            Code.UNKNOWN_DOMAIN, f"domain: {name!r} is no domain of this lab.",
            advice=f"Did you mean {' or '.join(near)}?" if near else f"Add it under `custom:` in {FILE}.",
            field="domain", nearest=near,
        )  # fmt: skip

    def _nearest(self, name: str, count: int = 3) -> list[str]:
        wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
        alike = difflib.get_close_matches(wanted, self, n=count, cutoff=0.6)
        parts = [other for other in self if other not in alike and set(wanted.split("_")) & set(other.split("_"))]
        return (alike + parts)[:count]


def read(source: Source, tiers: Mapping[str, object], voices: Mapping[str, object]) -> Domains:
    """Read the mapping; every domain's tier must be one of `tiers`, its voice one of `voices` or an alias of one.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    content = dict(source.content)
    if content.get("custom") is None:
        content.pop("custom", None)  # `custom:` with nothing below it is what remains when a user removes the last entry
    if "voices" in content:
        raise source.wrong("voices", "the voices stand in voices.yaml now", "Remove the key.")
    file = source.check(_File, content)
    for alias, voice in file.voice_aliases.items():
        if voice not in voices:
            raise source.wrong(f"voice_aliases.{alias}", f"{voice!r} is none of the voices {', '.join(voices)}")
    domains: dict[str, Domain] = {}

    def add(name: str, category: str, values: dict[str, Any], key: str) -> None:
        if name in domains:
            raise source.wrong(key, f"the domain stands already in {domains[name].category}")
        domain = source.check(Domain, {"name": name, "category": category, **values}, at=key)
        if domain.tier not in tiers:
            raise source.wrong(f"{key}.tier", f"{domain.tier!r} is none of the tiers {', '.join(tiers)}")
        voice = file.voice_aliases.get(domain.voice, domain.voice)
        if voice not in voices:
            known = ", ".join([*voices, *file.voice_aliases])
            raise source.wrong(f"{key}.voice", f"{domain.voice!r} is none of the voices {known}")
        domains[name] = domain.model_copy(update={"voice": voice})

    for category, part in file.categories.items():
        for name, own in part.domains.items():
            add(name, category, {**part.defaults, **own}, f"categories.{category}.domains.{name}")
    for name, own in file.custom.items():
        values = dict(own)
        category = values.pop("category", None)
        if category not in file.categories:
            known = ", ".join(file.categories)
            raise source.wrong(f"custom.{name}.category", f"{category!r} is none of the categories {known}")
        add(name, str(category), {**file.categories[str(category)].defaults, **values}, f"custom.{name}")
    return Domains(domains)
