"""Whether a base can go the whole way, told from its folder before anything is paid. Imports no torch.

What the converter and transformers know is read from their own source text, so that it is never a list of ours that
grows old; importing either costs seconds.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from agents.gguf_factory import pretokenizer, toolchain
from agents.gguf_factory.base import Base
from agents.gguf_factory.pretokenizer import UnknownStructure
from protocol import Code, LabError

PROVEN = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)  # fmt: skip
"""Went from plan to gates here, with tiny random weights and tokenizers of their families' form (docs/bases.md)."""

SENTENCEPIECE_ONLY = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM", "BaichuanForCausalLM")
"""Converted from tokenizer.model alone (the converter's `set_vocab`)."""

STOPS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
"""Tokens at which llama.cpp ends an answer beside eos, by their text (src/llama-vocab.cpp, special_eog_ids)."""

ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
STATEFUL = ("mamba", "rwkv", "recurrent", "ssm", "lfm2", "jamba", "zamba", "falcon_h1", "bamba", "granitemoehybrid")
"""Parts of the model types whose layers carry a state from token to token."""


def check(base: Base) -> list[str]:
    """Check that a base can be trained, merged and converted; return what is known to be uncertain.

    Raises:
        LabError: BAD_DATA with field `base`: what is missing, and what would do. TOOLCHAIN without the converter.
    """
    home = toolchain.check()
    _architecture(base, home)
    notes = [] if base.architecture in PROVEN else [
        f"{base.architecture} has not gone the whole way here yet: the gates will tell whether the file is right."
    ]  # fmt: skip
    if (experts := base.config.get("num_experts") or base.config.get("num_local_experts") or 0) and experts > 1:
        notes.append("The base has experts: the adapter trains its attention, the experts stay as they are.")
    found = _vocabulary(base)
    if found is None and not uses_sentencepiece(base):
        notes.append(
            "The converter knows the tokenizer by its hash alone: whether llama.cpp gives the same ids is told by the "
            "gate tokenizer_ids, after training."
        )
    elif found in pretokenizer.NEARLY:
        notes.append(f"llama.cpp's pre-tokenizer {found} cuts rare letters otherwise: {pretokenizer.NEARLY[found]}.")
    return notes


def pre_name(base: Base) -> str | None:
    """Return llama.cpp's name of the base's pre-tokenizer by its structure; None where it needs none, or has no such."""
    if uses_sentencepiece(base):
        return None
    try:
        return _structural(base)
    except UnknownStructure:
        return None


def uses_sentencepiece(base: Base) -> bool:
    """Tell whether the converter takes tokenizer.model, to which no pre-tokenizer belongs."""
    return (base.folder / "tokenizer.model").is_file()


def check_stop(base: Base, number: int) -> None:
    """Check that llama.cpp ends an answer at the token that ends one in the chat template.

    Raises:
        LabError: BAD_DATA with field `base`.
    """
    text = base.text(number)
    if text is not None and text != base.token("eos_token") and text not in STOPS:
        raise _refuse(
            base.folder / "tokenizer_config.json", f"has the eos_token {base.token('eos_token')}, but its chat template "
            f"ends answers with {text}, at which llama.cpp does not stop",
            f"Make {text} the eos_token: answers would go on for ever.",
        )  # fmt: skip


def _architecture(base: Base, home: Path) -> None:
    name = base.architecture
    file = base.folder / "config.json"
    if not name:
        raise _refuse(file, "names no architecture", "Give `architectures`, as in the base that it was made from.")
    known = converter_architectures(home)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3, 0.5)) or "none is near"
        raise _refuse(
            file, f"names the architecture {name}, which llama.cpp's converter does not know",
            f"It knows {len(known)} (docs/bases.md); the nearest: {near}.", architecture=name,
        )  # fmt: skip
    if nested := [key for key in ("text_config", "vision_config", "audio_config") if key in base.config]:
        raise _refuse(
            file, f"describes a model of more than text ({', '.join(nested)}; {name})",
            "Give a base that is a language model alone; for Gemma 3 that is one with Gemma3ForCausalLM.",
            architecture=name,
        )  # fmt: skip
    if name not in causal_architectures():
        raise _refuse(
            file, f"names the architecture {name}, of which transformers has no causal language model",
            "Encoders, speech models and models with code of their own cannot be trained here.", architecture=name,
        )  # fmt: skip
    if state := _state(base):
        raise _refuse(
            file, f"describes layers that carry a state from token to token ({state}; {name})",
            "Several samples share a row in training, which only attention can keep apart: choose a base with "
            "attention in every layer.", architecture=name,
        )  # fmt: skip
    if method := (base.config.get("quantization_config") or {}).get("quant_method"):
        raise _refuse(
            file, f"says that the weights are quantised ({method})",
            "An adapter is merged into weights of 16 or 32 bits: give the base from which these were made.",
        )  # fmt: skip


def _state(base: Base) -> str | None:
    kind = str(base.config.get("model_type", ""))
    if any(part in kind for part in STATEFUL):
        return kind
    other = set(base.config.get("layer_types") or ()) - ATTENTION
    return ", ".join(sorted(map(str, other))) or None


def _vocabulary(base: Base) -> str | None:
    """Return the pre-tokenizer's name; None where it needs none, or where only the converter's hash knows it."""
    if uses_sentencepiece(base):
        if base.tokenizer_json is None and not isinstance(base.config.get("eos_token_id"), int):
            raise _refuse(
                base.folder / "config.json", f"has eos_token_id {base.config.get('eos_token_id')}, and there is no "
                "tokenizer.json to look the eos_token up in", "Give one id there, that of the eos_token.",
            )  # fmt: skip
        return None
    file = base.folder / "tokenizer.json"
    model = (base.tokenizer_json or {}).get("model") or {}
    if base.architecture in SENTENCEPIECE_ONLY or (model.get("byte_fallback") and base.architecture in _LLAMA):
        raise LabError(
            Code.NOT_FOUND, f"The base model lacks {base.folder / 'tokenizer.model'}, from which llama.cpp's converter "
            f"takes the vocabulary of {base.architecture}.",
            advice="Copy it from the base that this one was made from; transformers 5 does not save it.",
            field="base", file=str(base.folder / "tokenizer.model"),
        )  # fmt: skip
    try:
        return _structural(base)
    except UnknownStructure as error:
        if _by_hash(file) is not None:
            return None
        raise _refuse(
            file, f"has a pre-tokenizer that llama.cpp does not know: {error}",
            "Choose a base whose tokenizer cuts text as one of these; a vocabulary of your own may have any tokens.",
        ) from error  # fmt: skip


_LLAMA = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")


def _structural(base: Base) -> str:
    content = base.tokenizer_json
    if content is None:
        raise UnknownStructure("there is no tokenizer.json")
    found = pretokenizer.structure(content)
    at_best = pretokenizer.name(found, merges_suffice=True)
    try:
        return pretokenizer.name(found)
    except UnknownStructure:
        if _merges_suffice(base.folder / "tokenizer.json"):
            return at_best
        raise


def _merges_suffice(path: Path) -> bool:
    """Tell whether merging makes of every token's text that very token."""
    tokenizer = _loaded(path)
    model: Any = tokenizer.model
    model.ignore_merges = False
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return all(
        [piece.id for piece in model.tokenize(token)] == [number]
        for token, number in tokenizer.get_vocab(with_added_tokens=False).items() if token not in added
    )  # fmt: skip


@cache
def converter_architectures(home: Path) -> frozenset[str]:
    """Return the architectures of text models that the converter in a folder has a class for.

    Raises:
        LabError: TOOLCHAIN, its table is not where it was.
    """
    table = _assigned(home / "conversion" / "__init__.py", "TEXT_MODEL_MAP")
    return frozenset(ast.literal_eval(table))


@cache
def causal_architectures() -> frozenset[str]:
    """Return the classes that transformers' AutoModelForCausalLM can load.

    Raises:
        LabError: TOOLCHAIN, its table is not where it was.
    """
    spec = importlib.util.find_spec("transformers")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise LabError(Code.TOOLCHAIN, "transformers is not installed.", advice="Run `make setup`.")
    table = _assigned(Path(places[0]) / "models" / "auto" / "modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    pairs = ast.literal_eval(table.args[0]) if isinstance(table, ast.Call) else ast.literal_eval(table)
    return frozenset(_flat(value for _, value in dict(pairs).items()))


def _flat(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        else:
            yield from value


def _by_hash(path: Path) -> str | None:
    """Return the name that the converter's own table gives a tokenizer.json, or None."""
    text, table = _hashes(toolchain.folder() / "conversion" / "base.py")
    ids = _loaded(path).encode(text).ids
    return table.get(hashlib.sha256(str(ids).encode()).hexdigest())


def _loaded(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception and nothing finer
        raise _refuse(path, f"cannot be read ({error})", "Copy or download it again.") from error


@cache
def _hashes(path: Path) -> tuple[str, dict[str, str]]:
    """Read the converter's `get_vocab_base_pre`: its text, and hash to name."""
    text, table = "", {}
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.FunctionDef) and node.name == "get_vocab_base_pre":
            for inner in node.body:
                if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == "chktxt":
                    text = ast.literal_eval(inner.value)
                if (
                    isinstance(inner, ast.If)
                    and isinstance(inner.test, ast.Compare)
                    and isinstance(inner.body[0], ast.Assign)
                ):
                    left = ast.unparse(inner.test.left)
                    if left == "chkhsh":
                        table[ast.literal_eval(inner.test.comparators[0])] = ast.literal_eval(inner.body[0].value)
    return text, table


def _assigned(path: Path, name: str) -> Any:
    for node in _parsed(path).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise LabError(Code.TOOLCHAIN, f"{path} has no {name}.", advice="Run `make setup` again.", file=str(path))


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _refuse(path: Path, what: str, advice: str, **data: Any) -> LabError:
    return LabError(
        Code.BAD_DATA, f"The base model's {path} {what}.", advice=advice, field="base", file=str(path), **data
    )
