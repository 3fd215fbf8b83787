"""How much may be spent, when to warn and when to stop: budget_settings.json."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs.source import Source

FILE = "budget_settings.json"

Period = Literal["day", "week", "month"]


class Budget(BaseModel):
    """Caps per period in US dollars, and shares of a cap in percent of spent + reserved."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    monthly_usd: float = Field(ge=0, lt=1e9)
    weekly_usd: float = Field(ge=0, lt=1e9)
    daily_usd: float = Field(ge=0, lt=1e9)
    alert_percents: tuple[int, ...] = Field(strict=False)
    optimise_percent: int = Field(ge=1, le=100)
    freeze_percent: int = Field(ge=1, le=100)

    @field_validator("alert_percents")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or any(not 1 <= percent <= 100 for percent in value):
            raise ValueError("it must be rising percents between 1 and 100")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Budget:
        if self.optimise_percent > self.freeze_percent:
            raise ValueError("optimise_percent must not be above freeze_percent")
        return self

    def caps(self) -> dict[Period, int]:
        """Return the cap of each period in micro-dollars, rounded down."""
        usd = {"day": self.daily_usd, "week": self.weekly_usd, "month": self.monthly_usd}
        return {
            period: int((Decimal(str(amount)) * 1_000_000).to_integral_value(ROUND_FLOOR))  # type: ignore[misc]
            for period, amount in usd.items()
        }

    @staticmethod
    def key(period: Period) -> str:
        """Return the key of budget_settings.json that sets a period's cap."""
        return {"day": "daily_usd", "week": "weekly_usd", "month": "monthly_usd"}[period]


def read(source: Source) -> Budget:
    """Read budget_settings.json.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    return source.check(Budget)
