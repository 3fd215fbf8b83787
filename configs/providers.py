"""What machines cost and how many jobs they take: provider_configs.json."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from pydantic import BaseModel, ConfigDict, Field

from configs.source import Source

FILE = "provider_configs.json"


class Provider(BaseModel):
    """One provider. `slots` None: one per `threads_per_slot` cores of the machine. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    slots: int | None = Field(ge=1, le=1024)
    threads_per_slot: int = Field(ge=1, le=1024)
    price_usd_per_hour: float = Field(ge=0, lt=10_000)
    provisioning_seconds: float = Field(ge=0)
    grace_seconds: float = Field(ge=0)

    @property
    def price_micros_per_hour(self) -> int:
        """The price in micro-dollars per hour, rounded up."""
        return int((Decimal(str(self.price_usd_per_hour)) * 1_000_000).to_integral_value(ROUND_CEILING))

    def slots_for(self, cores: int) -> int:
        """Return how many jobs a machine with this many cores trains at once; at least one."""
        return self.slots if self.slots is not None else max(1, cores // self.threads_per_slot)


class Providers(BaseModel):
    """All providers by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    local: Provider


def read(source: Source) -> Providers:
    """Read provider_configs.json.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    return source.check(Providers)
