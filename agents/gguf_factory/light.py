"""A tokenizer for planning: counts tokens as transformers' would, without the seconds its import takes.

The data stage uses transformers' own; a test holds the two equal on the starter base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from jinja2 import TemplateError

from agents.gguf_factory import template
from agents.gguf_factory.base import Base
from protocol import Code, LabError

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class LightTokenizer:
    """SentencePiece or `tokenizers`, and jinja as transformers sets it up."""

    def __init__(self, base: Base) -> None:
        """Load the tokenizer of a base.

        Raises:
            LabError: BAD_DATA with field `base`, a file of it cannot be read.
        """
        self.specials = {name: token for name in SPECIAL_NAMES if (token := base.token(name))}
        try:
            self.template = template.environment().from_string(base.template)
        except TemplateError as error:
            raise _unreadable(base, f"its chat template is broken: {error}") from error
        self._encode, self.size = _sentencepiece(base, self.specials) if _is_sentencepiece(base) else _fast(base)
        eos = self.encode(self.specials["eos_token"])
        if len(eos) != 1:
            raise _unreadable(base, f"eos_token {self.specials['eos_token']} is not one token")
        self.eos_token_id: int | None = eos[0]
        self.turn_ends = base.end_ids

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], /, *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        return self.template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self.specials
        )

    def encode(self, text: str, /, *, add_special_tokens: bool = False) -> list[int]:
        return self._encode(text)


def _is_sentencepiece(base: Base) -> bool:
    return not (base.folder / "tokenizer.json").is_file()


def _fast(base: Base) -> tuple[Callable[[str], list[int]], int]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception and nothing finer
        raise _unreadable(base, f"tokenizer.json: {error}") from error
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab_size()


def _sentencepiece(base: Base, specials: Mapping[str, str]) -> tuple[Callable[[str], list[int]], int]:
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_file=str(base.folder / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        raise _unreadable(base, f"tokenizer.model: {error}") from error
    extra = base.tokenizer_config.get("additional_special_tokens") or []
    listed = (base.tokenizer_config.get("added_tokens_decoder") or {}).items()
    ids: dict[str, int] = {str(entry["content"]): int(number) for number, entry in listed}
    for token in [*specials.values(), *(item["content"] if isinstance(item, dict) else item for item in extra)]:
        if token and token not in ids:
            known = pieces.piece_to_id(token)
            new = known == pieces.unk_id() and token != pieces.id_to_piece(known)
            ids[token] = max([pieces.get_piece_size() - 1, *ids.values()]) + 1 if new else known
    size = max([pieces.get_piece_size() - 1, *ids.values()]) + 1
    marker = re.compile("(" + "|".join(re.escape(token) for token in sorted(ids, key=len, reverse=True)) + ")")

    def encode(text: str) -> list[int]:
        result: list[int] = []
        for part in marker.split(text):
            if part in ids:
                result.append(ids[part])
            elif part:
                result += pieces.encode(part)
        return result

    return encode, size


def _unreadable(base: Base, why: str) -> LabError:
    return LabError(
        Code.BAD_DATA, f"The tokenizer in {base.folder} cannot be used: {why}.",
        advice="Copy or download the base again.", field="base", file=str(base.folder),
    )  # fmt: skip
