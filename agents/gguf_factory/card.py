"""The model card: plain facts of one finished file, each from a manifest. What was not measured is `null`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def card(manifest: Mapping[str, Any]) -> str:
    """Return README.md for a published file.

    Args:
        manifest: what `publish.manifest` made.
    """
    results = manifest["results"]
    validated, quantised, trained, data = (results.get(name, {}) for name in ("validate", "quantise", "train", "data"))
    file = manifest["file"]
    parts = [
        f"# {file['name']}",
        f"A small language model for the domain `{manifest['domain']}`, fine-tuned by LoRA from "
        f"`{manifest['base']['name']}` and quantised to {manifest['parameters'].get('quantisation', 'null')}.",
        "## File",
        table([
            ("bytes", file["bytes"]), ("sha256", f"`{file['sha256']}`"),
            ("bits per weight", validated.get("bits_per_weight")), ("tensor types", quantised.get("types")),
        ]),
        "## Gates",
        gate_table(manifest["gates"]),
        "## Measured",
        table([
            ("perplexity of held-out answers, base (F16)", validated.get("base_perplexity")),
            ("perplexity of held-out answers, this file", validated.get("tuned_perplexity")),
            ("held-out answer tokens measured", validated.get("held_out_measured_tokens")),
            ("perplexity of general text, base (F16)", validated.get("base_general_perplexity")),
            ("perplexity of general text, this file", validated.get("tuned_general_perplexity")),
            ("generated tokens per second, one answer at a time", validated.get("generation_tokens_per_s")),
        ]),
        "## Training",
        table([
            ("rows", data.get("rows")), ("held-out rows", data.get("held_out_rows")),
            ("share of held-out rows with a 13-word run that stands in training rows", data.get("overlap")),
            ("steps", trained.get("steps")), ("tokens trained", trained.get("tokens")),
            ("tokens per second", trained.get("tokens_per_s")), ("last loss, nats a token", trained.get("loss")),
            ("held-out loss before", trained.get("held_out_loss_before")), ("held-out loss after", trained.get("held_out_loss")),
            ("trained weights", trained.get("adapter_parameters")), ("seconds of all stages", manifest["seconds"]),
        ]),
        "## Parameters",
        table(sorted(manifest["parameters"].items())),
        "## Made from",
        table([
            ("base", f"`{manifest['base']['name']}`"), ("base sha256", f"`{manifest['base']['sha256']}`"),
            ("data set", f"`{manifest['request']['dataset']}`"), ("data set sha256", manifest["data"].get("dataset_sha256")),
            ("held-out data set", manifest["request"].get("eval_dataset")),
            *((name, version) for name, version in manifest["versions"].items()),
        ]),
        "## Sample answers",
        samples(validated.get("answers") or []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def text(value: Any) -> str:
    """Write a value for a table cell."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(item)}" for name, item in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Return a two-column table."""
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {text(value)} |" for name, value in rows)])


def gate_table(gates: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of gates."""
    lines = ["| gate | value | threshold | passed | level | detail |", "|---|---|---|---|---|---|"]
    for name, gate in gates.items():
        passed = {True: "yes", False: "no", None: "null"}[gate["ok"]]
        lines.append(
            f"| {name} | {text(gate['value'])} | {text(gate['threshold'])} | {passed} | {gate['level']} | {text(gate['detail'])} |"
        )
    return "\n".join(lines)


def samples(answers: Sequence[Mapping[str, str]]) -> str:
    """Return sample answers as quotations; untouched and unchosen: the first held-out questions."""
    if not answers:
        return "null"
    parts = []
    for answer in answers:
        parts += [f"**{answer['question']}**", _quoted("base", answer["base"]), _quoted("this file", answer["tuned"])]
    return "\n\n".join(parts)


def _quoted(who: str, words: str) -> str:
    return "\n".join(f"> {line}" for line in f"*{who}:* {words}".splitlines())
