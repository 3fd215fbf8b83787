"""Training parameters: the proven ones, and what a tier or a request overrides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from configs.source import Source
from protocol import Code, LabError

FILE = "proven_parameters.json"

Quantisation = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S", "IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M",
    "IQ2_S", "IQ2_XS", "IQ2_XXS",
]  # fmt: skip

NEED_IMATRIX = frozenset({"Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"})
"""Quantisations that llama.cpp refuses to make without an importance matrix (src/llama-quant.cpp)."""


TARGETS = r"^(all-linear|attention|\w+(@\d+)?(,\w+(@\d+)?)*)$"
"""`all-linear`, `attention`, or names of layers such as `q_proj,down_proj`; `down_proj@4` is that of blocks 4 and up."""


class Parameters(BaseModel):
    """How a job trains. Training ends at `max_steps`, `max_epochs` or `max_tokens`, whichever comes first.

    `batch_size` counts rows per optimiser step, `sequence_length` tokens per packed row, `max_tokens` trained tokens over
    all epochs (padding does not count); `save_steps` is the number of optimiser steps between checkpoints.
    `lora_targets` are the linear layers that learn: all, those of attention, or names; `NAME@N` only from block N (from 0) up.
    `imatrix` weighs the rounding by an importance matrix of the domain's own text.
    `control_share` is the share of the steps trained again on shuffled answers for the lesson gate; 0 leaves it out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    batch_size: int = Field(ge=1, le=4096)
    lora_r: int = Field(ge=1, le=512)
    lora_alpha: float = Field(gt=0, le=4096)
    lora_dropout: float = Field(ge=0, lt=1)
    lora_targets: str = Field(default="all-linear", max_length=1000, pattern=TARGETS)
    max_steps: int | None = Field(ge=1)
    max_epochs: float | None = Field(gt=0)
    max_tokens: int | None = Field(ge=1)
    sequence_length: int = Field(ge=16, le=1024)
    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0, le=1)
    save_steps: int = Field(ge=1)
    control_share: float = Field(ge=0, le=1)
    quantisation: Quantisation
    imatrix: bool = True
    seed: int = Field(ge=0, lt=2**32)

    @model_validator(mode="after")
    def _ends(self) -> Parameters:
        if self.max_steps is None and self.max_epochs is None and self.max_tokens is None:
            raise ValueError("max_steps, max_epochs and max_tokens are all null: training would not end")
        if not self.imatrix and self.quantisation in NEED_IMATRIX:
            raise ValueError(f"imatrix is false, but {self.quantisation} cannot be made without an importance matrix")
        return self

    def overridden(self, values: Mapping[str, Any], prefix: str = "parameters") -> Parameters:
        """Return these parameters with a request's own values.

        Args:
            values: parameter name to value.
            prefix: the field that holds them, for the error; "" where they stand at the top.

        Raises:
            LabError: INVALID_PARAMS, naming the field; for an unknown name with the nearest ones.
        """
        at = f"{prefix}." if prefix else ""
        for name in values:
            if name not in type(self).model_fields:
                near = difflib.get_close_matches(name, type(self).model_fields, n=3)
                raise LabError(
                    Code.INVALID_PARAMS, f"{at}{name} is no training parameter.",
                    advice=f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(type(self).model_fields)}.",
                    field=f"{at}{name}",
                )  # fmt: skip
        try:
            return type(self).model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(part for part in (prefix, *map(str, first["loc"])) if part)
            given = f" (it is {first['input']!r})" if first["loc"] else ""
            raise LabError(
                Code.INVALID_PARAMS, f"{field}: {first['msg'].removeprefix('Value error, ')}{given}.",
                advice="Correct the value or leave it out.", field=field,
            ) from error  # fmt: skip


def read(source: Source) -> Parameters:
    """Read proven_parameters.json.

    Raises:
        LabError: CONFIGURATION, naming file, key and reason.
    """
    return source.check(Parameters)
