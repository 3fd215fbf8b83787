"""Tiers: base, machine class, cap, parameters and gates: tiers.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs.parameters import Parameters
from configs.source import SHIPPED, Source
from protocol import LabError
from protocol.job import Gate

FILE = "tiers.yaml"
PROJECT = SHIPPED.parent
"""The project's folder: bases such as models/starter count from here."""

GATES: dict[str, Literal["at least", "at most"]] = {
    "integrity": "at most",
    "tokenizer_ids": "at most",
    "chat_template": "at most",
    "f16_kl": "at most",
    "quant_fallbacks": "at most",
    "quant_kl": "at most",
    "quality_percent": "at least",
    "overfit_percent": "at most",
    "pairing_percent": "at least",
    "forgetting_percent": "at most",
    "stops_percent": "at least",
    "file_bytes": "at most",
    "load_ms": "at most",
    "private_mb": "at most",
    "lesson_percent": "at least",
}
"""Every gate, in the order of their cost, and on which side of its threshold a value is good."""

BELOW_ONLY = frozenset({"load_ms"})
"""Gates whose threshold itself is a miss ("load < 50 ms")."""


class GateRule(BaseModel):
    """What a tier demands of one gate. `threshold` may be None only where `level` is off."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    level: Literal["fail", "warn", "off"]
    threshold: float | None = None

    @field_validator("level", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    @model_validator(mode="after")
    def _measurable(self) -> GateRule:
        if self.level != "off" and self.threshold is None:
            raise ValueError(f"the level is {self.level}, so a threshold is needed")
        return self

    def judge(self, name: str, value: float | None, detail: str = "") -> Gate:
        """Compare a measured value (None: not measured) with the threshold.

        Raises:
            KeyError: no gate has this name.
        """
        side = GATES[name]
        ok: bool | None = None
        if value is not None and self.threshold is not None:
            if math.isnan(value):
                ok = False
            elif name in BELOW_ONLY:
                ok = value < self.threshold
            else:
                ok = value >= self.threshold if side == "at least" else value <= self.threshold
        return Gate(value=value, threshold=self.threshold, ok=ok, level=self.level, detail=detail)


class Tier(BaseModel):
    """One tier. `base` is an absolute folder or a hub name; `cap_usd` None means no cap beside the budget's periods."""

    model_config = ConfigDict(frozen=True)

    name: str
    base: str
    gpu: tuple[str, ...]
    usual_usd: float | None
    cap_usd: float | None
    parameters: Parameters
    gates: dict[str, GateRule]
    adapter_gates: dict[str, GateRule] = Field(default_factory=dict)

    def gates_of(self, profile: str) -> dict[str, GateRule]:
        """Return the gates that a product of a profile has to pass."""
        return {**self.gates, **self.adapter_gates} if profile == "adapter" else self.gates


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    base: str = Field(min_length=1)
    gpu: list[str] = Field(default_factory=list)
    budget_usd: list[float] | None = Field(default=None, min_length=2, max_length=2)
    parameters: dict[str, Any] = Field(default_factory=dict)
    gates: dict[str, GateRule] = Field(default_factory=dict)

    @field_validator("budget_usd")
    @classmethod
    def _range(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not 0 <= value[0] <= value[1] < math.inf:
            raise ValueError("it must be [usual, most] with 0 <= usual <= most")
        return value


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    gates: dict[str, GateRule]
    adapter_gates: dict[str, GateRule] = Field(default_factory=dict)
    tiers: dict[str, _Entry] = Field(min_length=1)


def resolve_base(base: str, project: Path = PROJECT) -> str:
    """Return the absolute folder of a local base, or a hub name as it is.

    A name is local when it is absolute, starts with `models/`, `./`, `../` or `~`, or is a folder of the project.
    """
    path = Path(base).expanduser()
    if path.is_absolute():
        return str(path)
    if base.startswith(("models/", "./", "../")) or (project / path).is_dir():
        return str((project / path).resolve())
    return base


def read(source: Source, proven: Parameters) -> dict[str, Tier]:
    """Read the tiers; each holds the proven parameters and all gates with its own overrides applied.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    file = source.check(_File)
    _known(source, "gates", file.gates)
    _known(source, "adapter_gates", file.adapter_gates)
    missing = [name for name in GATES if name not in file.gates]
    if missing:
        raise source.wrong(f"gates.{missing[0]}", "the gate is missing", 'Add it, with level "off" if it is not wanted.')
    tiers: dict[str, Tier] = {}
    for name, entry in file.tiers.items():
        _known(source, f"tiers.{name}.gates", entry.gates)
        prefix = f"tiers.{name}.parameters"
        try:
            parameters = proven.overridden(entry.parameters, prefix)
        except LabError as error:
            key = str(error.data["field"])
            raise source.wrong(key, error.message.removeprefix(key).lstrip(": ").rstrip("."), error.advice) from error
        usual, cap = entry.budget_usd or (None, None)
        tiers[name] = Tier(
            name=name, base=resolve_base(entry.base), gpu=tuple(entry.gpu), usual_usd=usual, cap_usd=cap,
            parameters=parameters, gates={gate: entry.gates.get(gate, file.gates[gate]) for gate in GATES},
            adapter_gates=file.adapter_gates,
        )  # fmt: skip
    return tiers


def terms(tier: Tier) -> dict[str, Any]:
    """Return a tier with all of its values as tiers.yaml would have it, for a machine that has other configs."""
    budget = None if tier.cap_usd is None else [float(tier.usual_usd or 0), float(tier.cap_usd)]
    return {
        "entry": {
            "base": tier.base, "gpu": list(tier.gpu), "budget_usd": budget, "parameters": tier.parameters.model_dump(mode="json"),
            "gates": {name: rule.model_dump() for name, rule in tier.gates.items()},
        },
        "adapter_gates": {name: rule.model_dump() for name, rule in tier.adapter_gates.items()},
    }  # fmt: skip


def write(folder: Path, name: str, told: Mapping[str, Any]) -> None:
    """Write a configs folder's tiers.yaml: the shipped tiers, and one whose terms were told."""
    content = dict(Source.read(FILE).content)
    content["tiers"] = {**content["tiers"], name: told["entry"]}
    content["adapter_gates"] = told["adapter_gates"]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}"
    temporary.write_text(yaml.safe_dump(content), encoding="utf-8")
    temporary.replace(folder / FILE)


def _known(source: Source, at: str, gates: Mapping[str, GateRule]) -> None:
    for name in gates:
        if name not in GATES:
            raise source.wrong(f"{at}.{name}", f"no gate has this name; known are {', '.join(GATES)}")
