"""The head of a model card in the form that model hubs read: YAML between two lines of dashes.

The fields are those of the hub's specification (github.com/huggingface/hub-docs, modelcard.md). A field whose value the hub
could not resolve, such as a base that is a folder here, is left out: the text of the card names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

UNKNOWN = "unknown"
"""The hub's own word for a licence that nobody has named."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_DATA = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
HEAD = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
RELATION = {"edge": "finetune", "adapter": "adapter"}
"""What the file is to its base. A merged file is a fine-tuned model that was quantised, not a quantised copy of its base."""
METRICS = {
    "tuned_perplexity": ("perplexity", "Perplexity of held-out answers, this file"),
    "base_perplexity": ("perplexity", "Perplexity of held-out answers, base"),
    "tuned_general_perplexity": ("perplexity", "Perplexity of general text, this file"),
}
"""Measured values of the stage validate that have a metric on the hub: its id, and what is shown."""


def front_matter(manifest: Mapping[str, Any]) -> str:
    """Return the head of a file's card, dashes included.

    Args:
        manifest: what `publish.manifest` made.
    """
    base, request, profile = manifest["base"]["name"], manifest["request"], manifest["request"].get("profile", "edge")
    head: dict[str, Any] = {**licence(manifest.get("licences") or {})}
    if language := (manifest.get("languages") or []):
        head["language"] = language
    head |= {"library_name": "gguf", "pipeline_tag": "text-generation"}
    if HUB_NAME.fullmatch(base):
        head |= {"base_model": base, "base_model_relation": RELATION[profile]}
    data = [found[1] for found in map(HUB_DATA.match, _uris(request)) if found]
    if data:
        head["datasets"] = list(dict.fromkeys(data))
    quantisation = manifest["parameters"].get("quantisation")
    head["quantized_by"] = "meetara-lab"
    head["tags"] = ["gguf", "llama.cpp", "lora", manifest["domain"], *([quantisation] if quantisation else [])]
    if results := _results(manifest, data):
        head["model-index"] = [{"name": Path(manifest["file"]["name"]).stem, "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)}---"


def licence(licences: Mapping[str, str | None]) -> dict[str, str]:
    """Return the fields of a licence: the one that base and data share; `other` with both names; or unknown.

    What was made from two things may be used only as both allow, so one that is unknown makes the whole unknown.
    """
    base, data = licences.get("base"), licences.get("data")
    if base is None or data is None:
        return {"license": UNKNOWN}
    if base == data:
        return {"license": base}
    return {"license": "other", "license_name": f"{base}-and-{data}", "license_link": "README.md"}


def of_base(folder: Path) -> dict[str, Any]:
    """Return licence and languages that a base's own card names: {"licence": str | None, "languages": list[str]}."""
    try:
        found = HEAD.match((folder / "README.md").read_text(encoding="utf-8"))
        head = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        head = None  # no card, or one that nobody can read: nothing is known
    if not isinstance(head, dict):
        return {"licence": None, "languages": []}
    name, languages = head.get("license"), head.get("language") or []
    name = (head.get("license_name") if name == "other" else name) or None
    listed = [languages] if isinstance(languages, str) else languages if isinstance(languages, list) else []
    return {
        "licence": str(name).lower() if name and name != UNKNOWN else None, "languages": [str(item) for item in listed]
    }  # fmt: skip


def _uris(request: Mapping[str, Any]) -> list[str]:
    return [request["dataset"], *([request["eval_dataset"]] if request.get("eval_dataset") else [])]


def _results(manifest: Mapping[str, Any], data: list[str]) -> list[dict[str, Any]]:
    validated = manifest["results"].get("validate", {})
    metrics = [
        {"type": kind, "value": float(f"{validated[name]:.6g}"), "name": shown}
        for name, (kind, shown) in METRICS.items() if isinstance(validated.get(name), int | float)
    ]  # fmt: skip
    if not metrics:
        return []
    dataset = {"type": data[-1] if data else manifest["domain"], "name": f"{manifest['domain']}, held-out rows"}
    return [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}]
