"""Which of llama.cpp's pre-tokenizers a tokenizer.json means, told from its structure.

llama.cpp's converter knows a byte-level BPE by a hash of the ids of one fixed text, so that a vocabulary of one's own,
or a known one with added tokens, is unknown to it though it cuts text like one that it knows. What llama.cpp needs is
only how text is cut before merging (src/llama-vocab.cpp, llm_tokenizer_bpe), and that stands in tokenizer.json.

Each row of `KNOWN` was compared with llama.cpp itself, id by id (tests/agents/gguf_factory/test_pretokenizer.py).
Pure: knows no files and no llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel with use_regex cuts by (tokenizers, pre_tokenizers/byte_level.rs)."""

_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = rf"{_SUFFIXES}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_SUFFIXES}|{_WORD}|\p{{N}}|{_TAIL}"
QWEN35 = (
    rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UFAKZEKA = rf"{_WORD}|\p{{N}}|{_TAIL}"
SEED_CODER = rf"{_SUFFIXES}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
MINICPM5 = rf"{_SUFFIXES}|{_WORD}|\p{{N}}+|{_TAIL}"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥぀-ゟ゠-ヿ]+"
JAIS2 = (
    rf"{_SUFFIXES}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    + "".join(rf"\s{{{count}}}(?!\S)|" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"\s{1,2}(?!\S)|\s{1}"
)
EXAONE_MOE = (
    rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_SUFFIXES}?|{_BEFORE}{_UPPER}+{_LOWER}*{_SUFFIXES}?|\p{{N}}{{1,3}}|{_SLASHES}"
TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHES}"
SPACES = "▁ for spaces"
"""Not a regex: SentencePiece's way, written as BPE with byte fallback (Gemma's tokenizer.json)."""


@dataclass(frozen=True)
class Known:
    """A way of cutting text that llama.cpp has under a name. `merging` and `whole` are its names for vocabularies whose
    words are always merged, and for those that take a whole word which is a token (`ignore_merges`)."""

    steps: tuple[str, ...]
    merging: str | None
    whole: str | None
    family: str


KNOWN: tuple[Known, ...] = (
    Known((LLAMA3,), "smaug-bpe", "llama-bpe", "Llama 3"),
    Known((QWEN2,), "qwen2", None, "Qwen 2 and 3"),
    Known((QWEN35,), "qwen35", None, "Qwen 3.5"),
    Known((GPT2,), "gpt-2", None, "GPT-2, Phi-2, OLMo"),
    Known((r"\p{N}", GPT2), "smollm", None, "SmolLM, StarCoder, Granite"),
    Known((r"\p{N}{1,3}", CJK, DEEPSEEK3), "deepseek-v3", None, "DeepSeek V3"),
    Known((r"\p{N}{1,3}", MINICPM5), None, "minicpm5", "MiniCPM 5"),
    Known((UFAKZEKA,), "ufakzeka", None, "ufakzeka"),
    Known((SEED_CODER,), "seed-coder", None, "Seed-Coder"),
    Known((BAILING,), "bailingmoe", None, "Ling"),
    Known((BLOOM,), "bloom", None, "BLOOM"),
    Known((BLOOM, r"\p{N}"), "viking", None, "Viking"),
    Known((JAIS2,), "jais-2", None, "Jais 2"),
    Known((EXAONE_MOE,), "exaone-moe", None, "EXAONE MoE"),
    Known((r"[^\n]+|[\n]+", QWEN2), "laguna", None, "Laguna"),
    Known((r"\p{N}+", r"(?=(\d{3})+(?!\d))"), "superbpe", None, "SuperBPE"),
    Known((GPT4O,), "gpt-4o", None, "GPT-4o, Llama 4"),
    Known((TEKKEN,), None, "tekken", "Mistral Nemo"),
    Known((SPACES,), "gemma4", None, "Gemma without tokenizer.model"),
)  # fmt: skip

NEARLY = {name: "combining marks, and letters of title case" for name in ("gpt-4o", "tekken")}
"""Rows whose regex llama.cpp has only nearly; 6 of 100 random strings that mix scripts get other ids."""

UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD")


class UnknownStructure(ValueError):
    """A tokenizer.json whose way of cutting text is in no row. The message says which part, and what is known."""


@dataclass(frozen=True)
class Structure:
    """What a tokenizer.json says about cutting text.

    `steps` are regular expressions applied one after another; `whole` is the BPE's ignore_merges; `form` is a Unicode
    normal form that is applied before, which llama.cpp does not do.
    """

    steps: tuple[str, ...]
    whole: bool
    form: str | None = None


def structure(tokenizer: Mapping[str, Any]) -> Structure:
    """Read the structure out of the content of a tokenizer.json.

    Raises:
        UnknownStructure: it is no BPE, or it has a part that llama.cpp has nothing for.
    """
    model = tokenizer.get("model") or {}
    if (kind := model.get("type", "BPE")) != "BPE":
        raise UnknownStructure(f"its model is {kind}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnknownStructure(f"its model sets {name} to {model[name]!r}")
    whole = bool(model.get("ignore_merges", False))
    form, spaces = _normaliser(tokenizer.get("normalizer"))
    if spaces:
        if not model.get("byte_fallback"):
            raise UnknownStructure("it writes ▁ for spaces without byte_fallback")
        return Structure((SPACES,), whole, form)
    steps, byte_level = _steps(tokenizer.get("pre_tokenizer"))
    if not byte_level:
        raise UnknownStructure(f"its pre_tokenizer is {_kinds(tokenizer.get('pre_tokenizer'))}, without ByteLevel")
    return Structure(steps, whole, form)


def name(found: Structure, *, merges_suffice: bool = False) -> str:
    """Return llama.cpp's name for a structure.

    Args:
        found: the structure.
        merges_suffice: every token of the vocabulary is also what merging makes of its text, so that it does not
            matter whether whole words are looked up first.

    Raises:
        UnknownStructure: with the regular expressions and the known families.
    """
    row = next((row for row in KNOWN if row.steps == found.steps), None)
    if row is None:
        cuts = " then ".join(found.steps) or "nothing"
        families = "; ".join(row.family for row in KNOWN)
        raise UnknownStructure(f"it cuts text by {cuts}; known are those of: {families}")
    exact, other = (row.whole, row.merging) if found.whole else (row.merging, row.whole)
    if exact or (other and merges_suffice):
        return str(exact or other)
    has = "whole words first" if found.whole else "merging alone"
    raise UnknownStructure(f"it cuts text as {row.family} but has ignore_merges {found.whole}; llama.cpp lacks {has}")


def _normaliser(part: Mapping[str, Any] | None) -> tuple[str | None, bool]:
    """Return the Unicode form, and whether spaces become ▁."""
    if not part:
        return None, False
    kind = part.get("type")
    if kind == "Sequence":
        found = [_normaliser(inner) for inner in part.get("normalizers", [])]
        forms = [form for form, _ in found if form]
        if len(forms) > 1:
            raise UnknownStructure(f"its normalizer applies {' and '.join(forms)}")
        return (forms[0] if forms else None), any(spaces for _, spaces in found)
    if kind in UNICODE_FORMS:
        return str(kind), False
    if kind == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == "▁":
        return None, True
    raise UnknownStructure(f"its normalizer is {kind}")


def _steps(part: Mapping[str, Any] | None) -> tuple[tuple[str, ...], bool]:
    """Return the regular expressions of a pre_tokenizer in order, and whether bytes are mapped to letters."""
    if not part:
        return (), False
    kind = part.get("type")
    if kind == "Sequence":
        found = [_steps(inner) for inner in part.get("pretokenizers", [])]
        return tuple(step for steps, _ in found for step in steps), any(level for _, level in found)
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            raise UnknownStructure("its ByteLevel puts a space before every text (add_prefix_space)")
        return ((GPT2,) if part.get("use_regex", True) else ()), True
    if kind == "Digits":
        return ((r"\p{N}" if part.get("individual_digits") else r"\p{N}+"),), False
    if kind == "Split":
        pattern = (part.get("pattern") or {}).get("Regex")
        # a regex that matches everything cuts alike when its matches are isolated and when only they are kept
        alike = (part.get("behavior"), bool(part.get("invert"))) in (("Isolated", False), ("Removed", True))
        if pattern is None or not alike:
            raise UnknownStructure(f"its pre_tokenizer splits by {part.get('pattern')} with {part.get('behavior')}")
        return (_same(pattern),), False
    raise UnknownStructure(f"its pre_tokenizer has a {kind}")


def _same(pattern: str) -> str:
    """Return the spelling that `KNOWN` uses for a pattern that says the same."""
    return SPELLINGS.get(pattern, pattern)


_CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPELLINGS = {
    **{regex.replace(_SUFFIXES, _CASES): regex for regex in (LLAMA3, QWEN2, QWEN35, SEED_CODER, MINICPM5)},
}


def _kinds(part: Mapping[str, Any] | None) -> str:
    if not part:
        return "missing"
    inner = part.get("pretokenizers")
    return " + ".join(str(item.get("type")) for item in inner) if inner else str(part.get("type"))
