"""Measure the exported starter base on held-out text and write its model card.

    python -m starter.card --data ../shared/data --run starter/run --model models/starter

Every number in the card is measured here or read from the run; nothing is copied by hand.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agents.gguf_factory.curves import Line, draw
from agents.gguf_factory.data import RUN_WORDS, runs
from agents.gguf_factory.subject import QUESTIONS
from starter.corpus import PARTS, ROWS_PER_DOMAIN, WITHHELD_DOMAINS, documents, evaluated
from starter.extrapolate import laws
from starter.model import Llama, Shape
from starter.pretrain import bits_per_byte, held_out, load
from starter.quantised import Quantised, measure

ROUNDS = (2, 4)  # of the corpus, for the extrapolation; beyond four the same text teaches less (Muennighoff et al., 2023)
EARLIER = 3_375_104  # tokens that the first version had seen, with whose weights this one began

SOURCES = {
    "encyclopedic_wikipedia_passages": "passages of Wikipedia by way of the self-instruct T0 sample, CC BY-SA",
    "textbooks_openstax": "six OpenStax books at their CC BY 4.0 commits",
    "health_medquad": "MedQuAD, CC BY 4.0",
    "tech_owasp_tldr": "OWASP cheat sheets, CC BY-SA 4.0, and tldr pages, CC BY 4.0",
    "speeches_us_presidents": "state of the union and inaugural addresses, public domain",
    "dialogue_sgd_taskmaster": "Schema-Guided Dialogue, CC BY-SA 4.0, and Taskmaster-4, CC BY 4.0",
    "stories_classic_books": "classic books, public domain",
    "chat": "instruction rows of the permissively licensed domain data sets, with the chat markers",
}


def read_model(folder: Path) -> Llama:
    """Load the exported folder into starter.model.Llama, in fp32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        vocabulary=config["vocab_size"], width=config["hidden_size"], layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"],
        feed_forward=config["intermediate_size"],
    )  # fmt: skip
    model = Llama(shape)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval()


def by_part(model: Llama, data: Path, tokenizer: Path) -> dict[str, float]:
    """Return held-out bits per byte of all documents and of each part."""
    path = data / "general/pretrain_heldout.jsonl"
    parts = [json.loads(line)["part"] for line in path.read_text(encoding="utf-8").splitlines()]
    rows, sizes = held_out(path, tokenizer, None)
    values = {"all": bits_per_byte(model, rows, sizes)}
    for part in sorted(set(parts)):
        chosen = [index for index, name in enumerate(parts) if name == part]
        values[part] = bits_per_byte(model, [rows[i] for i in chosen], [sizes[i] for i in chosen])
    return values


def overlap(data: Path) -> tuple[int, int]:
    """Return how many runs of words of the domains' evaluation answers stand in the pre-training text, and of how many."""
    wanted = evaluated((data / "domains_heldout").glob("*.jsonl"))
    found: set[tuple[str, ...]] = set()
    for part in PARTS:
        for document in documents(data / "general/pretrain", part):
            found |= wanted.intersection(runs(document))
    return len(found), len(wanted)


def picture(curve: list[dict[str, float]]) -> str:
    """Draw held-out bits per byte over tokens as SVG."""
    points = [(point["tokens"] / 1e6, point["bits_per_byte"]) for point in curve]
    title = "Pre-training of the starter base"
    return draw([Line("held-out", points, "#c2562d")], title, y="bits per byte", x="million tokens")


def outlook(meta: dict[str, Any], value: float, corpus: int) -> str:
    """Return the card's section on what reading on would bring.

    Args:
        meta: of a run that has ended.
        value: bits per byte on all held-out documents.
        corpus: tokens of a round of the corpus's text and conversations.

    Raises:
        ValueError: the curve has too few points at the full rate.
    """
    curve, decay = meta["curve"], meta["decay"]
    before = EARLIER if meta["from"] else 0
    last = curve[-1]
    fastest = max((b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]) for a, b in pairwise(curve))
    lines = []
    for law in dict.fromkeys(laws(curve, decay["from"], before)):
        gain = law.bits(before + last["tokens"]) - last["bits_per_byte"]
        more = [value - law.bits(before + last["tokens"]) + law.bits(before + rounds * corpus) for rounds in ROUNDS]
        lines.append(
            f"| {law.floor:.2f} | {law.power:.3f} | {law.error:.4f} | {gain:.3f} | {' | '.join(f'{bits:.2f}' for bits in more)} |"
        )
    hours = [(rounds - 1) * corpus / fastest / 3600 for rounds in ROUNDS]
    return f"""## What reading on would bring

At the full rate the curve follows floor + scale x tokens^-power, fitted from a fifth of the run on, with the tokens of the first weights
counted: without a floor, and with the one that fits best where that is another. The decay at the end gains what it gained here, so after so many rounds all documents would have:

| floor | power | error, bits | gained by the decay | {" | ".join(f"{n} rounds, {h:.0f} hours more" for n, h in zip(ROUNDS, hours, strict=True))} |
|---|---|---|---|{"---|" * len(ROUNDS)}
{chr(10).join(lines)}

This is an extrapolation, not a measurement. The hours are of two cores at the run's fastest ({fastest:,.0f} tokens/s). Up to four rounds of
the same text teach nearly as much as new text (Muennighoff et al., 2023).
"""


def card(
    model: Llama,
    meta: dict[str, Any],
    values: dict[str, float],
    mix: dict[str, int],
    shared: tuple[int, int],
    file: Quantised,
) -> str:
    """Return the model card.

    Args:
        model: the exported network.
        meta: of its run, which has ended.
        values: held-out bits per byte of all documents and of each part.
        mix: tokens of each part of the corpus.
        shared: what `overlap` returns.
        file: the base as it is, quantised.
    """
    shape = model.shape
    total = sum(mix.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = "\n".join(f"| {part} | {value:.3f} |" for part, value in values.items())
    seen = meta["text"] + meta["chat"]
    rounds, chats = meta["text"] / (total - mix["chat"]), meta["chat"] / mix["chat"]
    sources = "\n".join(f"| {part} | {100 * count / total:.1f} % | {SOURCES[part]} |" for part, count in mix.items())
    return f"""---
license: cc-by-sa-4.0
language: en
pipeline_tag: text-generation
---
# Starter base

A Llama of {parameters:,} weights ({shape.layers} layers, width {shape.width}, {shape.heads}/{shape.kv_heads} heads,
vocabulary {shape.vocabulary}), small enough that a merged Q4_K_M file stays below 8.3 MB. It is a base for narrow
fine-tuned helpers, not an assistant: it has seen {seen:,} tokens: {rounds:.2f} rounds of its text and {chats:.1f} of its
conversations. It knows the chat markers and where a turn ends, and very little of the world.

## Measured

As a Q4_K_M file it has {file.bytes:,} bytes. Of its answers to questions of {file.domains} domains' evaluation files, {QUESTIONS} each, {file.stops_percent:.1f} %
end by themselves within 512 tokens (temperature 0.7). Bits per byte on documents that no stage of training has seen (lower is better):

| held-out part | bits per byte |
|---|---|
{rows}

![held-out bits per byte over the tokens seen](curve.svg)

The curve is measured on a fixed part of the same documents; its values are in [curve.json](curve.json).

{outlook(meta, values["all"], total)}
## Made from

| part | share of the corpus | source and licence |
|---|---|---|
{sources}

Instruction rows: at most {ROWS_PER_DOMAIN} of each domain; left out for their licences: {", ".join(sorted(WITHHELD_DOMAINS))}, and
the recipes of the pre-training text.

An answer that shares {RUN_WORDS} words in a row with an answer of the domains' evaluation files is left out too. The text shares {shared[0]} of
the {shared[1]:,} such runs of words that the evaluation answers have.

Muon on the matrices, Adam on the rest, constant rate and then a linear decay; no token sees another document; it began
with {(meta["from"] and f"the weights of the version before, which had seen {EARLIER:,} tokens") or "random weights"}. The scripts
are in `starter/`, how long which rate and which share of conversations was used in `docs/decisions/0006-starter-pretraining.md`.

## Chat template

`<s><|user|>question<|end|><|assistant|>answer<|end|>`, with `<|system|>` before it where wanted; end of turn is `<|end|>`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain_heldout.jsonl")
    parser.add_argument("--run", type=Path, default=Path("starter/run"))
    parser.add_argument("--model", type=Path, default=Path("models/starter"))
    options = parser.parse_args()
    loaded = load(options.run)
    if loaded is None:
        raise SystemExit(f"{options.run} has no checkpoint")
    meta = loaded[2]
    mix = json.loads((options.run / "corpus.json").read_text(encoding="utf-8"))["tokens"]
    model = read_model(options.model)
    with torch.no_grad():
        values = by_part(model, options.data, options.model / "tokenizer.model")
    curve: list[dict[str, float]] = meta["curve"]
    (options.model / "README.md").write_text(card(model, meta, values, mix, overlap(options.data), measure(options.model, options.data)), encoding="utf-8")
    (options.model / "curve.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    (options.model / "curve.svg").write_text(picture(curve), encoding="utf-8")
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
