"""What a user edits, loaded and checked. `load()` gives everything; a bad value is refused with file, key and reason."""

from __future__ import annotations

from dataclasses import dataclass

from configs import budget, domains, parameters, providers, storage, tiers, voices
from configs.budget import Budget
from configs.domains import Domain, Domains
from configs.parameters import Parameters
from configs.providers import Provider, Providers
from configs.settings import FILE as LAB_FILE
from configs.settings import Settings
from configs.source import Source
from configs.storage import Storage
from configs.tiers import GATES, GateRule, Tier, resolve_base
from configs.voices import Voice, Voices

__all__ = [
    "GATES", "Budget", "Configs", "Domain", "Domains", "GateRule", "Parameters", "Provider", "Providers", "Settings",
    "Storage", "Tier", "Voice", "Voices", "load", "resolve_base",
]  # fmt: skip


@dataclass(frozen=True)
class Configs:
    """The whole configuration of a lab, checked."""

    settings: Settings
    domains: Domains
    tiers: dict[str, Tier]
    providers: Providers
    budget: Budget
    parameters: Parameters
    voices: Voices
    storage: Storage

    @property
    def default_tier(self) -> str | None:
        """The tier of requests that name none; None: the domain's tier."""
        return self.settings.default_tier


def load(settings: Settings | None = None) -> Configs:
    """Load and check every file; `settings` None: flags absent, environment and lab.yaml as they are.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    settings = settings or Settings.read()
    folder = settings.configs
    proven = parameters.read(Source.read(parameters.FILE, folder))
    all_tiers = tiers.read(Source.read(tiers.FILE, folder), proven)
    default = settings.default_tier
    if default is not None and default not in all_tiers:
        lab = Source.read(LAB_FILE, folder)
        raise lab.wrong("default_tier", f"{default!r} is none of the tiers {', '.join(all_tiers)}")
    machines = providers.read(Source.read(providers.FILE, folder))
    own: dict[str, object] = {}
    if settings.local_usd_per_hour is not None:
        own["price_usd_per_hour"] = settings.local_usd_per_hour
    if settings.slots is not None:
        own["slots"] = settings.slots
    if own:
        machines = machines.model_copy(update={"local": machines.local.model_copy(update=own)})
    spoken = voices.read(Source.read(voices.FILE, folder))
    return Configs(
        settings=settings,
        domains=domains.read(Source.read(domains.FILE, folder), all_tiers, spoken.voices),
        tiers=all_tiers,
        providers=machines,
        budget=budget.read(Source.read(budget.FILE, folder)),
        parameters=proven,
        voices=spoken,
        storage=storage.read(Source.read(storage.FILE, folder)),
    )
