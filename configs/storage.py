"""How much room the parts of a home may take: storage.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from configs.source import Source

FILE = "storage.yaml"


class Mtbf(BaseModel):
    """Mean hours between two losses of a machine, by how it is paid."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    spot: float = Field(gt=0)
    on_demand: float = Field(gt=0)


class Storage(BaseModel):
    """Limits in bytes; None: only the disk's free space. `cache_models` and `cache_bytes` bound the cache, 0 turns it off."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    artefacts_bytes: int | None = Field(ge=0)
    models_bytes: int | None = Field(ge=0)
    jobs_bytes: int | None = Field(ge=0)
    cache_models: int = Field(ge=0)
    cache_bytes: int | None = Field(ge=0)
    machine_mtbf_hours: Mtbf = Mtbf(spot=4.0, on_demand=1000.0)

    @field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # people write 200.0e+9


def read(source: Source) -> Storage:
    """Read storage.yaml.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    return source.check(Storage)
