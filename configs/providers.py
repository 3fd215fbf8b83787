"""What machines cost and how many jobs they take: provider_configs.json."""

from __future__ import annotations

from datetime import date
from decimal import ROUND_CEILING, Decimal

from pydantic import BaseModel, ConfigDict, Field

from configs.source import Source

FILE = "provider_configs.json"


class Provider(BaseModel):
    """This machine. `slots` None: one per `threads_per_slot` cores of the machine. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    slots: int | None = Field(ge=1, le=1024)
    threads_per_slot: int = Field(ge=1, le=1024)
    price_usd_per_hour: float = Field(ge=0, lt=10_000)
    provisioning_seconds: float = Field(ge=0)
    grace_seconds: float = Field(ge=0)

    @property
    def price_micros_per_hour(self) -> int:
        """The price in micro-dollars per hour, rounded up."""
        return micros(self.price_usd_per_hour)

    def slots_for(self, cores: int) -> int:
        """Return how many jobs a machine with this many cores trains at once; at least one."""
        return self.slots if self.slots is not None else max(1, cores // self.threads_per_slot)


class Rented(BaseModel):
    """What holds for every rented machine.

    Attributes:
        provisioning_seconds: from the launch until the work begins: boot, image, base model.
        grace_seconds: what the reservation holds for the end: last checkpoint, upload, until it is gone.
        boot_seconds: how long the worker of a launched machine may take to come; then another machine is rented.
        idle_seconds: how long a machine that nobody needs is kept for the next job of its kind.
        live_minutes: how long a provider's own word about a price counts.
        catalogue_days: how long a catalogue counts.
        configs_days: how long a price counts that a person has looked up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    provisioning_seconds: float = Field(default=600, ge=0)
    grace_seconds: float = Field(default=120, ge=0)
    boot_seconds: float = Field(default=900, gt=0)
    idle_seconds: float = Field(default=60, ge=0)
    live_minutes: float = Field(default=10, gt=0)
    catalogue_days: float = Field(default=14, gt=0)
    configs_days: float = Field(default=90, gt=0)


class Colab(BaseModel):
    """Google Colab, which sells compute units; it has no interface that tells prices, so a person looks them up.

    Attributes:
        usd_per_unit: None: not known, so it is never chosen.
        looked_up: the day on which a person saw both prices.
        units_per_hour: compute units by GPU, as Colab's own panel of resources shows them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    usd_per_unit: float | None = Field(default=None, gt=0, lt=1000)
    looked_up: date | None = Field(default=None, strict=False)
    units_per_hour: dict[str, float | None] = Field(default_factory=dict)


class Providers(BaseModel):
    """All providers by name, and what holds for those whose machines are rented."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    local: Provider
    rented: Rented = Rented()
    colab: Colab = Colab()


def micros(usd: float) -> int:
    """Return dollars as micro-dollars, rounded up."""
    return int((Decimal(str(usd)) * 1_000_000).to_integral_value(ROUND_CEILING))


def read(source: Source) -> Providers:
    """Read provider_configs.json.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    return source.check(Providers)
