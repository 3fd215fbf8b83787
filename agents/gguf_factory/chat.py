"""From messages to token ids by the base's own chat template, with the answers marked that are to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from protocol import Code, LabError


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that is used here; `light.LightTokenizer` has it too."""

    eos_token_id: int | None

    def apply_chat_template(
        self, messages: Any, /, *, tokenize: bool = ..., add_generation_prompt: bool = ...
    ) -> Any: ...

    def encode(self, text: str, /, *, add_special_tokens: bool = ...) -> list[int]: ...


@dataclass(frozen=True)
class Sample:
    """Token ids of one conversation; `supervised[i]` is true where id i is to be learned."""

    ids: list[int]
    supervised: list[bool]
    truncated: bool = False

    @property
    def learnable(self) -> bool:
        """Whether anything is left to learn; the first token has nothing before it to be predicted from."""
        return any(self.supervised[1:])


def load(folder: Path) -> Any:
    """Load the base's tokenizer with transformers.

    Raises:
        LabError: BAD_DATA with field `base`, transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LabError(
            Code.BAD_DATA, f"The tokenizer in {folder} cannot be loaded: {error}.",
            advice="Copy or download the base again.", field="base", file=str(folder),
        ) from error  # fmt: skip


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, prompt: bool = False) -> str:
    """Return the conversation as the model sees it; `prompt` opens the answer that is to follow.

    Raises:
        LabError: BAD_DATA with field `base`, the template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        raise _template(f"refuses a conversation: {error}", "Leave out what it refuses, such as a system turn.") from error
    return text


def encode(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Return ids and which of them are to be learned: each answer and the token that ends its turn.

    Each answer is encoded apart from what stands before it, as it will be when the model has to write it.

    Raises:
        LabError: BAD_DATA with field `base`, the template changes earlier turns when later ones come (use `samples`),
            or does not end an answer with the eos token.
    """
    ids: list[int] = []
    supervised: list[bool] = []
    done = ""
    for index, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:index], prompt=True)
        after = render(tokenizer, messages[: index + 1])
        if not before.startswith(done) or not after.startswith(before):
            raise _template(
                "does not keep the beginning of a conversation unchanged when a turn is added",
                "So it cannot be told which tokens are the answer; choose a base with a plain template.",
            )
        question = tokenizer.encode(before[len(done) :], add_special_tokens=False)
        answer = tokenizer.encode(after[len(before) :], add_special_tokens=False)
        if tokenizer.eos_token_id not in answer:
            raise _template("does not end an answer with eos_token", "The model would never learn to stop.")
        # some templates put a line end behind eos: it belongs to the next turn and is not the model's to write
        learned = len(answer) - answer[::-1].index(tokenizer.eos_token_id)
        ids += question + answer
        supervised += [False] * len(question) + [True] * learned + [False] * (len(answer) - learned)
        done = after
    return ids, supervised


def samples(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], length: int) -> list[Sample]:
    """Return a conversation as samples of at most `length` tokens, without those that teach nothing.

    One sample, or one for each answer where the template rewrites earlier turns (Qwen3 drops earlier thinking). A
    sample that is too long loses its end, and no false end is learned.

    Raises:
        LabError: as `encode`, for a conversation with a single answer.
    """
    answers = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    try:
        whole = [encode(tokenizer, messages)]
    except LabError:
        if len(answers) == 1:
            raise
        whole = [_last(tokenizer, messages[: index + 1]) for index in answers]
    cut = [Sample(ids[:length], supervised[:length], len(ids) > length) for ids, supervised in whole]
    return [sample for sample in cut if sample.learnable]


def _last(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Encode with only the last answer to be learned; the context is rendered as it will be at that point."""
    before = render(tokenizer, messages[:-1], prompt=True)
    after = render(tokenizer, messages)
    if not after.startswith(before):
        raise _template("does not begin an answer as it prompts for one", "Choose a base with a plain template.")
    question = tokenizer.encode(before, add_special_tokens=False)
    answer = tokenizer.encode(after[len(before) :], add_special_tokens=False)
    if tokenizer.eos_token_id not in answer:
        raise _template("does not end an answer with eos_token", "The model would never learn to stop.")
    learned = len(answer) - answer[::-1].index(tokenizer.eos_token_id)
    return question + answer, [False] * len(question) + [True] * learned + [False] * (len(answer) - learned)


def _template(what: str, advice: str) -> LabError:
    return LabError(Code.BAD_DATA, f"The base's chat template {what}.", advice=advice, field="base")
