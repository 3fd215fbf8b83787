"""The model card as a hub reads it, and what it says where something is unknown, missed or not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from agents.gguf_factory import card, front_matter
from configs import GATES


def gate(value: float | None = 1.0, ok: bool | None = True, level: str = "fail", detail: str = "") -> dict[str, Any]:
    return {"value": value, "threshold": 1.0, "ok": ok, "level": level, "detail": detail}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "file": {"name": "sleep-Q4_K_M.gguf", "sha256": "0" * 64, "bytes": 7_500_000}, "job": "j1", "domain": "sleep",
        "tier": "starter", "request": {"dataset": "file:///a.jsonl", "profile": "edge"},
        "parameters": {"quantisation": "Q4_K_M", "note": "no: 1\n- [x]"}, "plan": {"rows": 300},
        "base": {"name": "Qwen/Qwen3-0.6B", "sha256": "1" * 64}, "data": {"dataset_sha256": "2" * 64},
        "licences": {"base": "apache-2.0", "data": None}, "languages": ["en"], "safety_critical": False,
        "results": {"validate": {"tuned_perplexity": 12.345678, "base_perplexity": 40.0, "tuned_general_perplexity": None}},
        "gates": {name: gate() for name in GATES}, "seconds": 9.0, "versions": {"torch": "2.13"}, "curves": "curves.svg",
        **changes,
    }  # fmt: skip


def head(facts: dict[str, Any]) -> dict[str, Any]:
    _, found, _ = card.card(facts).split("---\n", 2)
    read: dict[str, Any] = yaml.safe_load(found)
    return read


def test_a_hub_reads_the_head_and_its_results() -> None:
    data = ModelCard(card.card(manifest())).data
    assert (data.library_name, data.pipeline_tag, data.base_model, data.language) == (
        "gguf", "text-generation", "Qwen/Qwen3-0.6B", ["en"]
    )  # fmt: skip
    assert data.to_dict()["base_model_relation"] == "finetune" and data.to_dict()["quantized_by"] == "meetara-lab"
    assert {"gguf", "sleep", "Q4_K_M"} <= set(data.tags)
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("perplexity", 12.3457), ("perplexity", 40.0)
    ], "what was not measured is no result"  # fmt: skip


def test_only_what_a_hub_can_resolve_stands_in_the_head() -> None:
    local = head(manifest(base={"name": "starter", "sha256": "1" * 64}))
    assert "base_model" not in local and "datasets" not in local
    uris = {"dataset": "hf://datasets/somebody/rows@main/a.jsonl", "eval_dataset": "hf://datasets/somebody/rows/b.jsonl"}
    assert head(manifest(request=uris))["datasets"] == ["somebody/rows"]
    assert head(manifest(request={"dataset": "/a", "profile": "adapter"}))["base_model_relation"] == "adapter"


@pytest.mark.parametrize(
    ("base", "data", "expected"),
    [
        ("mit", "mit", {"license": "mit"}), ("mit", None, {"license": "unknown"}), (None, "mit", {"license": "unknown"}),
        ("mit", "cc-by-4.0", {"license": "other", "license_name": "mit-and-cc-by-4.0", "license_link": "README.md"}),
    ],
)  # fmt: skip
def test_the_licence_is_what_both_allow_or_unknown(base: str | None, data: str | None, expected: dict[str, str]) -> None:
    facts = manifest(licences={"base": base, "data": data})
    assert expected.items() <= head(facts).items()
    said = card.rights(facts)
    assert f"- base: {base or 'unknown'}" in said and f"- data set: {data or 'unknown'}" in said
    assert ("Unknown is not free" in said) == (None in (base, data))


def test_a_bases_own_card_gives_licence_and_languages(tmp_path: Path) -> None:
    nothing = {"licence": None, "languages": []}
    assert front_matter.of_base(tmp_path) == nothing
    readme = tmp_path / "README.md"
    for text, expected in (
        ("---\nlicense: Apache-2.0\nlanguage:\n- en\n- de\n---\n# x", {"licence": "apache-2.0", "languages": ["en", "de"]}),
        ("---\nlicense: other\nlicense_name: qwen\nlanguage: zh\n---\n", {"licence": "qwen", "languages": ["zh"]}),
        ("---\nlicense: unknown\n---\n", nothing), ("# no head\n---\nlicense: mit\n---\n", nothing),
        ("---\nlicense: [\n---\n", nothing), ("---\njust words\n---\n", nothing),
    ):  # fmt: skip
        readme.write_text(text)
        assert front_matter.of_base(tmp_path) == expected, text


def test_gates_that_were_missed_or_not_measured_are_told_among_the_limits() -> None:
    facts = manifest(
        safety_critical=True,
        gates={
            "quant_kl": gate(0.3, False, "warn"), "private_mb": gate(None, None, "warn", "needs smaps"),
            "load_ms": gate(None, None, "off"), "quality_percent": gate(120.0),
        },
    )  # fmt: skip
    told = card.limits(facts)
    assert "Missed with a warning: quant_kl is 0.3" in told and "Not measured: private_mb. needs smaps" in told
    assert "load_ms" not in told and "quality_percent" not in told and "replaces no professional" in told
    table = card.gate_table(facts["gates"])
    assert [row.split(" | ")[3] for row in table.splitlines()[2:]] == ["missed", "not measured", "off", "passed"]


def test_every_gate_is_defined_where_its_name_links_to() -> None:
    text = card.card(manifest())
    for name in GATES:
        assert f"[{name}](#{name})" in text and f'<a id="{name}"></a>' in text


def test_where_the_data_lie_on_this_machine_is_not_told() -> None:
    uris = {"dataset": "file:///home/ada/secret%20plan/rows.jsonl", "eval_dataset": "/home/ada/held.jsonl", "profile": "edge"}
    text = card.card(manifest(request=uris))
    assert "| data set | `rows.jsonl` |" in text and "| held-out data set | `held.jsonl` |" in text and "ada" not in text
    assert card.source("hf://datasets/a/b/c.jsonl") == "hf://datasets/a/b/c.jsonl" and card.source("a/b") == "b"


def test_an_adapter_is_run_on_its_base() -> None:
    assert "llama-cli -m BASE.gguf --lora sleep-Q4_K_M.gguf -cnv" in card.usage(manifest(request={"dataset": "/a", "profile": "adapter"}))
    assert "llama-cli -m sleep-Q4_K_M.gguf -cnv" in card.usage(manifest())


def test_the_lineage_names_every_content_and_the_code() -> None:
    text = card.card(manifest(code_version="c" * 64, fingerprint="f" * 64))
    for part in ("1" * 64, "2" * 64, "c" * 64, "f" * 64, "`j1`", "| parent job | null |", "| torch | 2.13 |"):
        assert part in text, part
    assert "](curves.svg)" in text
    assert "curves.svg" not in card.card(manifest(curves=None))
