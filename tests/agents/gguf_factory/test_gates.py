from __future__ import annotations

import pytest

from agents.gguf_factory import gates
from agents.gguf_factory.gates import ADVICE, Measured
from configs import GATES, GateRule
from protocol import Code


def rule(threshold: float, level: str = "fail") -> GateRule:
    return GateRule.model_validate({"level": level, "threshold": threshold})


@pytest.mark.parametrize(
    ("name", "value", "threshold", "ok"),
    [
        ("quality_percent", 100.99, 101, False), ("quality_percent", 101.0, 101, True),
        ("forgetting_percent", 10.0, 10, True), ("forgetting_percent", 10.01, 10, False),
        ("load_ms", 50.0, 50, False), ("load_ms", 49.9, 50, True),
        ("quality_percent", float("nan"), 101, False),
    ],
)  # fmt: skip
def test_a_value_is_judged_on_its_gates_side(name: str, value: float, threshold: float, ok: bool) -> None:
    judged = gates.judge({name: Measured(value)}, {name: rule(threshold)})
    assert judged[name].ok is ok


def test_a_failing_gate_that_could_have_been_measured_and_was_not_fails_the_job() -> None:
    judged = gates.judge({"forgetting_percent": Measured(None, "no general text")}, {"forgetting_percent": rule(10)})
    assert (judged["forgetting_percent"].value, judged["forgetting_percent"].ok) == (None, False)
    error = gates.verdict(judged)
    assert error is not None and "forgetting_percent could not be measured (no general text)" in error.message
    assert gates.verdict(gates.judge({}, {"stops_percent": rule(95)})) is not None, "nor may one be forgotten"
    warned = gates.judge({}, {"forgetting_percent": rule(10, "warn")})
    assert warned["forgetting_percent"].ok is None


def test_a_value_that_is_no_number_is_missed_and_told_as_null() -> None:
    judged = gates.judge({"quant_kl": Measured(float("inf"), "9 tokens")}, {"quant_kl": rule(0.1, "warn")})
    gate = judged["quant_kl"]
    assert (gate.value, gate.ok, gate.detail) == (None, False, "the measured value is inf; 9 tokens")


def test_a_gate_that_cannot_be_measured_by_definition_is_neither_passed_nor_missed() -> None:
    judged = gates.judge({"private_mb": Measured(None, "needs smaps", given=False)}, {"private_mb": rule(12)})
    assert (judged["private_mb"].value, judged["private_mb"].ok) == (None, None)
    assert judged["private_mb"].detail == "needs smaps"
    assert gates.verdict(judged) is None


def test_only_gates_of_level_fail_fail_a_job() -> None:
    judged = gates.judge({"quant_kl": Measured(9.0)}, {"quant_kl": rule(0.1, "warn")})
    assert judged["quant_kl"].ok is False
    assert gates.missed(judged, "warn") == ["quant_kl"]
    assert gates.verdict(judged) is None


def test_the_error_names_every_missed_gate_with_value_threshold_and_what_to_change() -> None:
    measured = {"quality_percent": Measured(99.5, "80 conversations"), "file_bytes": Measured(9e6)}
    error = gates.verdict(gates.judge(measured, {"quality_percent": rule(101), "file_bytes": rule(8_300_000)}))
    assert error is not None and error.code is Code.GATE_MISSED
    assert "quality_percent was missed: 99.5, must be at least 101 (80 conversations)" in error.message
    assert "file_bytes" in error.message
    assert ADVICE["quality_percent"] in error.advice and ADVICE["file_bytes"] in error.advice
    assert (error.data["gate"], error.data["value"], error.data["threshold"]) == ("quality_percent", 99.5, 101)


def test_every_gate_has_advice_and_keeps_the_order_of_cost() -> None:
    assert set(ADVICE) == set(GATES)
    judged = gates.judge({}, {name: rule(1) for name in reversed(GATES)})
    assert list(judged) == list(GATES)
