"""The gates: measured values against the tier's rules. Pure; measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from configs import GATES, GateRule
from protocol import Code, LabError
from protocol.job import Gate

ADVICE = {
    "integrity": "The file was damaged after it was made, or made from another model: copy it again, or run the job again.",
    "tokenizer_ids": "Choose a base whose tokenizer llama.cpp knows, or mend the tokenizer's special tokens.",
    "chat_template": "Mend chat_template.jinja of the base: it must end each answer with eos_token and render alike everywhere.",
    "f16_kl": "The conversion is wrong: run `meetara doctor`, and check that the base's architecture is supported.",
    "quant_fallbacks": "Choose a base whose row widths are multiples of 256, or quantise to Q8_0.",
    "quant_kl": "Choose a quantisation with more bits, such as Q5_K_M or Q6_K.",
    "quality_percent": "Train longer (parameters.max_epochs, max_tokens), with more rows, or a higher learning_rate.",
    "forgetting_percent": "Lower parameters.learning_rate or max_epochs, or add general rows to the data set.",
    "overfit_percent": "Train shorter (parameters.max_epochs), or with more and more varied rows.",
    "pairing_percent": "Check that each answer in the data set belongs to its question; else train longer or add rows.",
    "stops_percent": "Train longer, and check that the answers in the data set are whole.",
    "file_bytes": "Choose a quantisation with fewer bits or a smaller base.",
    "load_ms": "Choose a smaller base, or measure again on a quieter machine.",
    "private_mb": "Choose a smaller base.",
    "lesson_percent": "The rows teach form rather than content: check that each answer belongs to its question, or add rows.",
}
"""What to change when a gate was missed."""


@dataclass(frozen=True)
class Measured:
    """A gate's value, or None with the reason in `detail`.

    `given` is false where a value is None by definition: this system cannot tell it, or what it needs is not there to
    be had, such as the training of a file that was made elsewhere.
    """

    value: float | None
    detail: str = ""
    given: bool = True


def judge(measured: Mapping[str, Measured], rules: Mapping[str, GateRule]) -> dict[str, Gate]:
    """Return every gate of the rules in order.

    One without a value has `ok` None; where its level is `fail` and the value could have been had, False: what was to
    be proven was not.
    """
    gates = {}
    for name in GATES:
        if name not in rules:
            continue
        rule = rules[name]
        found = measured.get(name, Measured(None, "off" if rule.level == "off" else "not measured"))
        value, detail, broken = found.value, found.detail, found.value is not None and not math.isfinite(found.value)
        if broken:  # JSON has no word for it
            value, detail = None, "; ".join(filter(None, [f"the measured value is {value}", detail]))
        gate = rule.judge(name, value, detail)
        closed = value is None and found.given and rule.level == "fail"
        gates[name] = gate.model_copy(update={"ok": False}) if broken or closed else gate
    return gates


def missed(gates: Mapping[str, Gate], level: str = "fail") -> list[str]:
    """Return the names of the gates of a level whose value is on the wrong side."""
    return [name for name, gate in gates.items() if gate.level == level and gate.ok is False]


def verdict(gates: Mapping[str, Gate]) -> LabError | None:
    """Return the error of the first missed gate that fails a job, or None. Its data holds all gates."""
    names = missed(gates)
    if not names:
        return None
    sentences = [_sentence(name, gates[name]) for name in names]
    first = names[0]
    return LabError(
        Code.GATE_MISSED,
        "; ".join(sentences) + ".",
        advice=" ".join(ADVICE[name] for name in names),
        gate=first, value=gates[first].value, threshold=gates[first].threshold,
        gates={name: gate.model_dump(mode="json") for name, gate in gates.items()},
    )  # fmt: skip


def _sentence(name: str, gate: Gate) -> str:
    detail = f" ({gate.detail})" if gate.detail else ""
    if gate.value is None:
        return f"the gate {name} could not be measured{detail}"
    return f"the gate {name} was missed: {gate.value:.6g}, must be {GATES[name]} {gate.threshold:.6g}{detail}"
