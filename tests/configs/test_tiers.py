import json
import math
from pathlib import Path

import pytest

import configs
from configs import GateRule, resolve_base, tiers
from protocol import Code, LabError


@pytest.mark.parametrize(
    ("name", "threshold", "value", "ok"),
    [
        ("quality_percent", 101, 101.0, True), ("quality_percent", 101, 100.9, False), ("forgetting_percent", 10, 10.0, True),
        ("forgetting_percent", 10, 10.1, False), ("load_ms", 50, 50.0, False), ("load_ms", 50, 49.9, True),
        ("lesson_percent", 102, 101.9, False), ("f16_kl", 1e-5, math.nan, False), ("quant_kl", 0.1, None, None),
    ],
)  # fmt: skip
def test_a_gate_compares_on_its_own_side(name, threshold, value, ok):
    gate = GateRule(level="fail", threshold=threshold).judge(name, value)
    assert (gate.ok, gate.threshold, gate.level) == (ok, threshold, "fail")


def test_a_bare_off_in_yaml_is_the_level_off():
    assert GateRule.model_validate({"level": False}).level == "off"


def test_local_bases_become_absolute_and_hub_names_stay(tmp_path):
    (tmp_path / "own").mkdir()
    assert resolve_base("models/x", tmp_path) == str(tmp_path / "models/x")
    assert resolve_base("own", tmp_path) == str(tmp_path / "own")
    assert resolve_base("../y", tmp_path) == str(tmp_path.parent / "y")
    assert resolve_base("/z", tmp_path) == "/z"
    assert resolve_base("Qwen/Qwen3-0.6B", tmp_path) == "Qwen/Qwen3-0.6B"


def test_overrides_are_checked_by_name_and_type():
    proven = configs.load().parameters
    assert proven.overridden({"max_steps": 20, "learning_rate": 1}).max_steps == 20
    with pytest.raises(LabError, match=r"parameters\.learning_rat is no.*Did you mean learning_rate") as caught:
        proven.overridden({"learning_rat": 1})
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, "parameters.learning_rat")
    for wrong in ({"lora_r": "8"}, {"lora_r": 8.5}, {"lora_r": True}, {"learning_rate": 2}, {"quantisation": "Q4"}):
        with pytest.raises(LabError) as caught:
            proven.overridden(wrong)
        assert caught.value.data["field"] == f"parameters.{next(iter(wrong))}"


def test_an_adapter_has_gates_of_its_own_in_every_tier():
    tier = configs.load().tiers["starter"]
    assert tier.gates_of("edge") == tier.gates
    mine = tier.gates_of("adapter")
    assert mine["file_bytes"].threshold == 8_800_000 and mine["private_mb"].level == "off"
    assert {name: rule for name, rule in mine.items() if name not in tier.adapter_gates} == {
        name: rule for name, rule in tier.gates.items() if name not in tier.adapter_gates
    }


def test_a_tiers_terms_make_the_same_tier_on_a_machine_with_other_configs(tmp_path: Path) -> None:
    known = configs.load().tiers["starter"]
    changed = known.model_copy(update={"name": "own", "parameters": known.parameters.overridden({"lora_r": 4}), "cap_usd": 2.0, "usual_usd": 1.0})
    tiers.write(tmp_path, "own", json.loads(json.dumps(tiers.terms(changed))))
    read = configs.load(configs.Settings.read(configs=tmp_path)).tiers
    assert read["own"] == changed
    assert read["starter"] == known, "the shipped ones stay"
