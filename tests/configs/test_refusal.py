"""A bad value is refused with file, key and reason; broken syntax with line and column."""

import json
from pathlib import Path

import pytest
import yaml

import configs
from configs import Settings
from configs.source import SHIPPED
from protocol import Code, LabError


def load_with(folder: Path, name: str, text: str) -> configs.Configs:
    (folder / name).write_text(text, encoding="utf-8")
    return configs.load(Settings.read(configs=folder))


def changed(name: str, path: str, value: object) -> str:
    """Return a shipped file's text with one value replaced."""
    text = (SHIPPED / name).read_text(encoding="utf-8")
    content = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
    *parents, last = path.split(".")
    place = content
    for part in parents:
        place = place.setdefault(part, {}) if place.get(part) is not None else place.__setitem__(part, {}) or place[part]
    place[last] = value
    return json.dumps(content) if name.endswith("json") else yaml.safe_dump(content, sort_keys=False)


MAPPING = "cloud-optimized-domain-mapping.yaml"
BAD = [
    ("budget_settings.json", "monthly_usd", -1, "monthly_usd", "greater than or equal to 0"),
    ("budget_settings.json", "monthly_usd", "50", "monthly_usd", "valid number"),
    ("budget_settings.json", "monthy_usd", 50, "monthy_usd", "not permitted"),
    ("budget_settings.json", "alert_percents", [80, 50], "alert_percents", "rising"),
    ("budget_settings.json", "optimise_percent", 99, "(top level)", "must not be above freeze_percent"),
    ("provider_configs.json", "local.price_usd_per_hour", -0.1, "local.price_usd_per_hour", "greater than or equal"),
    ("provider_configs.json", "local.slots", 0, "local.slots", "greater than or equal to 1"),
    ("proven_parameters.json", "lora_r", 0, "lora_r", "greater than or equal to 1"),
    ("proven_parameters.json", "sequence_length", 2048, "sequence_length", "less than or equal to 1024"),
    ("proven_parameters.json", "max_steps", None, "(top level)", "would not end"),
    ("tiers.yaml", "tiers.fast.gates.quality", {"level": "fail", "threshold": 1}, "tiers.fast.gates.quality", "no gate"),
    ("tiers.yaml", "tiers.fast.gates.load_ms", {"level": "warn"}, "tiers.fast.gates.load_ms", "a threshold is needed"),
    ("tiers.yaml", "adapter_gates.size", {"level": "off"}, "adapter_gates.size", "no gate"),
    ("tiers.yaml", "gates.f16_kl.level", "maybe", "gates.f16_kl.level", "'fail', 'warn' or 'off'"),
    ("tiers.yaml", "tiers.fast.parameters.lora_rank", 8, "tiers.fast.parameters.lora_rank", "no training parameter"),
    ("tiers.yaml", "tiers.fast.parameters.lora_r", "8", "tiers.fast.parameters.lora_r", "valid integer"),
    ("tiers.yaml", "tiers.fast.budget_usd", [5, 3], "tiers.fast.budget_usd", "usual <= most"),
    (MAPPING, "categories.business.domains.sales.tier", "huge", "categories.business.domains.sales.tier", "none of the tiers"),
    (MAPPING, "categories.business.domains.sales.voice", "loud", "categories.business.domains.sales.voice", "none of the voices"),
    (MAPPING, "categories.business.domains.sleep", {}, "categories.business.domains.sleep", "already in healthcare"),
    (MAPPING, "custom.gardening", {"category": "green"}, "custom.gardening.category", "none of the categories"),
    (MAPPING, "custom.Garden-Ing", {"category": "business"}, "custom.Garden-Ing.name", "match pattern"),
    (MAPPING, "voices", ["creative"], "voices", "stand in voices.yaml now"),
    ("voices.yaml", "default", "loud", "default", "none of the voices meditative"),
    ("voices.yaml", "emotions.joy", "loud", "emotions.joy", "none of the voices meditative"),
    ("voices.yaml", "voices.creative.pitch", 100, "voices.creative.pitch", "less than or equal to 99"),
    ("voices.yaml", "voices.creative.volume", 0, "voices.creative.volume", "greater than or equal to 1"),
    ("voices.yaml", "voices.creative.words_per_minute", "fast", "voices.creative.words_per_minute", "valid integer"),
    ("voices.yaml", "voices.creative.speed", 1, "voices.creative.speed", "not permitted"),
    ("voices.yaml", "emotion_above", 1.5, "emotion_above", "less than or equal to 1"),
    ("lab.yaml", "default_tier", "huge", "default_tier", "none of the tiers"),
    ("lab.yaml", "port", 99999, "port", "65535"),
    ("lab.yaml", "lab", "a/b", "lab", "match pattern"),
    ("lab.yaml", "prot", 1883, "prot", "no such setting"),
]


@pytest.mark.parametrize(("name", "path", "value", "key", "reason"), BAD, ids=[f"{b[0]}:{b[1]}={b[2]}" for b in BAD])
def test_a_bad_value_is_refused_with_file_key_and_reason(tmp_path, name, path, value, key, reason):
    with pytest.raises(LabError) as caught:
        load_with(tmp_path, name, changed(name, path, value))
    error = caught.value
    assert error.code is Code.CONFIGURATION
    assert error.data["file"] == str(tmp_path / name) and error.data["file"] in error.message
    assert error.data["field"] == key and f"{key}:" in error.message
    assert reason in error.message
    assert error.advice


@pytest.mark.parametrize(
    ("name", "text", "line", "column"),
    [
        ("budget_settings.json", '{"monthly_usd": 50,\n "weekly_usd": }', 2, 16),
        ("budget_settings.json", '{"monthly_usd": 50,\n "monthly_usd": 60}', 2, 2),
        ("tiers.yaml", "gates: {}\ntiers: [\n", 3, 1),
        ("tiers.yaml", "gates: {}\ntiers: {}\ngates: {}\n", 3, 1),
        ("lab.yaml", "lab: a\x00b\n", 1, 7),
    ],
)
def test_broken_syntax_is_refused_with_line_and_column(tmp_path, name, text, line, column):
    with pytest.raises(LabError) as caught:
        load_with(tmp_path, name, text)
    error = caught.value
    assert error.code is Code.CONFIGURATION
    assert (error.data["line"], error.data["column"]) == (line, column)
    assert f"line {line}, column {column}" in error.message and str(tmp_path / name) in error.message


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    with pytest.raises(LabError, match="holds no keys"):
        load_with(tmp_path, "tiers.yaml", text)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "lab.yaml").write_bytes(b"lab: \xff\n")
    with pytest.raises(LabError, match=r"not UTF-8.*byte 5"):
        configs.load(Settings.read(configs=tmp_path))


def test_a_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(LabError, match="does not exist") as caught:
        Settings.read(configs=tmp_path / "none")
    assert caught.value.code is Code.CONFIGURATION
