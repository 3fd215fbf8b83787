"""Dollars become micro-dollars exactly, and never too few."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agents.gpu_orchestrator.providers.amounts import Usd, micros, usd


@pytest.mark.parametrize(
    ("dollars", "per", "amount"),
    [("0.1", 1, 100_000), ("0.1234567", 1, 123_457), ("1e-9", 1, 1), ("0", 1, 0), ("75", 100, 750_000), ("0.15", 720, 209),
     ("0.43999999761581", 1, 440_000), ("1000000000", 1, 10**15), ("-0.5", 1, -500_000),
     ("1.0000000000000000000000000000000000001", 1, 1_000_001)],
)  # fmt: skip
def test_dollars_are_rounded_up(dollars: str, per: int, amount: int) -> None:
    assert micros(Decimal(dollars), per) == amount


@given(st.decimals(min_value=0, max_value=10**6, places=12), st.integers(1, 1000))
def test_an_amount_is_the_least_that_is_enough(dollars: Decimal, per: int) -> None:
    amount = micros(dollars, per)
    numerator, denominator = dollars.as_integer_ratio()
    exact_times = numerator * 1_000_000
    assert (amount - 1) * denominator * per < exact_times <= amount * denominator * per


@given(st.integers(0, 10**12))
def test_micro_dollars_survive_the_way_to_a_vendor_and_back(amount: int) -> None:
    assert micros(json.loads(json.dumps({"price": usd(amount)}), parse_float=Decimal)["price"]) == amount


@pytest.mark.parametrize("value", ["1e999999999", "NaN", "Infinity", "-1e10", "free", None, [], {}])
def test_what_is_no_amount_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Usd).validate_python(Decimal(value) if value == "1e999999999" else value)
