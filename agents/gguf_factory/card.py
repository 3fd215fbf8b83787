"""The model card: what a finished file is, how it was made and what was measured, each fact from its manifest.

In the form of model hubs (README.md with a head that they read). What was not measured is `null`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from agents.gguf_factory.front_matter import UNKNOWN, front_matter

MEANINGS = {
    "integrity": "tensors that cannot be right: no numbers, another shape, far off the unquantised file, or missing",
    "tokenizer_ids": "texts whose token ids differ between transformers and the file",
    "chat_template": "held-out conversations that the file's template renders differently, or whose answers would not end",
    "f16_kl": "mean KL divergence, in nats a token, of the unquantised file from torch on held-out text",
    "quant_fallbacks": "percent of the weights that have another type than was asked for",
    "quant_kl": "mean KL divergence, in nats a token, of this file from the unquantised one on held-out text",
    "quality_percent": "100 × perplexity of the base ÷ perplexity of this file, on answers of held-out conversations",
    "overfit_percent": "how much more was gained on rows that were trained on than on held-out ones, in percent; 0 is best",
    "pairing_percent": "100 × use of the question by this file ÷ by the base; use: perplexity of held-out answers after another row's question ÷ after their own",
    "forgetting_percent": "growth of the perplexity on general text over the base's, in percent; negative is better",
    "stops_percent": "percent of drawn answers to held-out questions that end by themselves",
    "file_bytes": "bytes of the file",
    "load_ms": "milliseconds to load model and a context of 256 tokens in a fresh process, the best of five",
    "private_mb": "10⁶ bytes of memory of that process that no other can share; the file's mapping is not counted",
    "lesson_percent": "100 × held-out perplexity after training on shuffled answers ÷ after training on the true ones",
}
"""What each gate's value is, in a line; docs/factory.md says more."""


def card(manifest: Mapping[str, Any]) -> str:
    """Return README.md for a published file.

    Args:
        manifest: what `publish.manifest` made.
    """
    results = manifest["results"]
    validated, quantised, trained, data = (results.get(name, {}) for name in ("validate", "quantise", "train", "data"))
    file, base_type = manifest["file"], manifest["base"].get("file", {}).get("quantisation", "F16")
    parts = [
        front_matter(manifest),
        f"# {file['name']}",
        introduction(manifest),
        "## How to run it",
        usage(manifest),
        "## Limits",
        limits(manifest),
        "## File",
        table([
            ("bytes", file["bytes"]), ("sha256", f"`{file['sha256']}`"), *belonging(manifest),
            ("bits per weight", validated.get("bits_per_weight")), ("tensor types", quantised.get("types")),
        ]),
        "## Gates",
        gate_table(manifest["gates"]),
        "### What the gates measure",
        definitions(manifest["gates"]),
        "## Measured",
        table([
            (f"perplexity of held-out answers, base ({base_type})", validated.get("base_perplexity")),
            ("perplexity of held-out answers, this file", validated.get("tuned_perplexity")),
            ("held-out answer tokens measured", validated.get("held_out_measured_tokens")),
            (f"perplexity of general text, base ({base_type})", validated.get("base_general_perplexity")),
            ("perplexity of general text, this file", validated.get("tuned_general_perplexity")),
            ("generated tokens per second, one answer at a time", validated.get("generation_tokens_per_s")),
        ]),
        "Perplexity is e to the mean negative log-likelihood of a token, in nats. Held-out rows were never trained on.",
        "## Training",
        *([f"![Loss of training and held-out answers by optimiser step]({manifest['curves']})"] if manifest.get("curves") else []),
        table([
            ("rows", data.get("rows")), ("held-out rows", data.get("held_out_rows")),
            ("share of held-out rows with a 13-word run that stands in training rows", data.get("overlap")),
            ("steps", trained.get("steps")), ("tokens trained", trained.get("tokens")),
            ("tokens per second", trained.get("tokens_per_s")), ("last loss, nats a token", trained.get("loss")),
            ("held-out loss before", trained.get("held_out_loss_before")), ("held-out loss after", trained.get("held_out_loss")),
            ("trained weights", trained.get("adapter_parameters")), ("seconds of all stages", manifest["seconds"]),
        ]),
        "### Parameters",
        table(sorted(manifest["parameters"].items())),
        "## Lineage",
        table([
            ("job", f"`{manifest['job']}`"), ("parent job", None),
            ("base", f"`{manifest['base']['name']}`"), ("base sha256", f"`{manifest['base']['sha256']}`"),
            ("data set", f"`{source(manifest['request']['dataset'])}`"), ("data set sha256", manifest["data"].get("dataset_sha256")),
            ("held-out data set", f"`{source(held_out)}`" if (held_out := manifest["request"].get("eval_dataset")) else None),
            ("held-out data set sha256", manifest["data"].get("eval_dataset_sha256")),
            ("code of the factory, sha256", manifest.get("code_version")),
            ("fingerprint of all of this", manifest.get("fingerprint")),
            *((name, version) for name, version in manifest["versions"].items()),
        ]),
        "## Licence",
        rights(manifest),
        "## Sample answers",
        "To the first held-out questions, neither chosen nor edited.",
        samples(validated.get("answers") or []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def source(uri: str) -> str:
    """Return a data set's address, and of a file here only its name: where it lies on this machine is nobody's business."""
    return unquote(uri).rsplit("/", 1)[-1] if "://" not in uri or uri.startswith("file:") else uri


def introduction(manifest: Mapping[str, Any]) -> str:
    """Say in a sentence what the file is, and of an adapter what it works on."""
    base, domain = manifest["base"], manifest["domain"]
    if shared := base.get("file"):
        return (
            f"An adapter (LoRA) for the domain `{domain}`. It works on one base only: `{base['name']}`, quantised to "
            f"{shared['quantisation']}, which many adapters share."
        )
    return (
        f"A small language model for the domain `{domain}`, fine-tuned by LoRA from `{base['name']}` and quantised to "
        f"{manifest['parameters'].get('quantisation', 'null')}."
    )


def usage(manifest: Mapping[str, Any]) -> str:
    """Say how the file is run: with llama.cpp, and in the lab that made it."""
    name = manifest["file"]["name"]
    adapter = manifest["request"].get("profile") == "adapter"
    model, place = (f"-m BASE.gguf --lora {name}", "base's file") if adapter else (f"-m {name}", "file")
    return (
        f"With [llama.cpp](https://github.com/ggml-org/llama.cpp), or whatever is built on it; the chat template is in the {place}:\n\n"
        f"```\nllama-cli {model} -cnv --temp 0.7\nllama-server {model}\n```\n\n"
        f"In the lab that made it:\n\n```\nmeetara chat {manifest['domain']}\n```"
    )


def limits(manifest: Mapping[str, Any]) -> str:
    """Say what the file is not good for, and which gates it has not passed."""
    lines = [
        f"- A narrow helper: it was trained on {text(manifest['plan'].get('rows'))} rows of one domain and measured on that domain's "
        "held-out rows. Outside it knows what its base knows, or less.",
        "- Its answers were measured for likeness to held-out answers, not for truth. Check what matters.",
    ]
    if manifest.get("safety_critical"):
        lines.append("- The domain is one in which wrong advice does harm. It replaces no professional.")
    for name, gate in manifest["gates"].items():
        if gate["level"] != "off" and gate["ok"] is None:
            lines.append(f"- Not measured: {name}. {gate['detail']}".rstrip())
        elif gate["ok"] is False:
            lines.append(f"- Missed with a warning: {name} is {text(gate['value'])}, the threshold is {text(gate['threshold'])}.")
    return "\n".join(lines)


def rights(manifest: Mapping[str, Any]) -> str:
    """Say which licences base and data have; what nobody has named is unknown, and nothing is guessed."""
    licences = manifest.get("licences") or {}
    lines = [f"- base: {licences.get('base') or UNKNOWN}", f"- data set: {licences.get('data') or UNKNOWN}"]
    if None in (licences.get("base"), licences.get("data")):
        lines.append("\nUnknown is not free: ask whoever owns it before you pass the file on.")
    else:
        lines.append("\nThe file may be used as both allow.")
    return "\n".join(lines)


def definitions(gates: Mapping[str, Any]) -> str:
    """Return a line for each gate that says what its value is."""
    return "\n".join(f'- <a id="{name}"></a>`{name}`: {MEANINGS[name]}' for name in gates if name in MEANINGS)


def belonging(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the rows about the base that an adapter needs, and about the adapter itself; none for a whole model."""
    base, made = manifest["base"], manifest["results"].get("convert", {})
    if "file" not in base:
        return []
    return [
        ("base file sha256", f"`{base['file']['sha256']}`"), ("base file bytes", base["file"]["bytes"]),
        ("base content sha256", f"`{base['content_sha256']}`"),
        ("rank", made.get("rank")), ("alpha", made.get("alpha")), ("layers", manifest["parameters"].get("lora_targets")),
        ("tensors", made.get("tensors")),
    ]  # fmt: skip


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
    lines = ["| gate | value | threshold | verdict | level | detail |", "|---|---|---|---|---|---|"]
    for name, gate in gates.items():
        shown = f"[{name}](#{name})" if name in MEANINGS else name
        lines.append(
            f"| {shown} | {text(gate['value'])} | {text(gate['threshold'])} | {verdict(gate)} | {gate['level']} | {text(gate['detail'])} |"
        )
    return "\n".join(lines)


def verdict(gate: Mapping[str, Any]) -> str:
    """Say how a gate ended; one that was not measured has not passed."""
    return {True: "passed", False: "missed", None: "off" if gate["level"] == "off" else "not measured"}[gate["ok"]]


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
