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
    """Token ids of a conversation or a part of it; `supervised[i]` is true where id i is to be learned.

    `truncated`: the last answer lost its end. `answers` is how many are learned. `continued`: what stands before
    belongs to an earlier sample.
    """

    ids: list[int]
    supervised: list[bool]
    truncated: bool = False
    answers: int = 1
    continued: bool = False

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

    One sample where it fits. A longer conversation is cut between turns and goes on in a further sample, which begins
    with the system turn and, where that fits, the exchange before as context that is not learned again. Only a single
    exchange that is too long loses its end; no false end is learned. Where the template rewrites earlier turns (Qwen3
    drops earlier thinking) each answer is a sample of its own, with as many of the turns before as fit.

    Raises:
        LabError: as `encode`, for a conversation with a single answer.
    """
    system = [turn for turn in messages[:1] if turn["role"] == "system"]
    turns = messages[len(system) :]
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    starts = [0, *(index + 1 for index in answers[:-1])]
    try:
        found = _windows(tokenizer, system, turns, starts, length)
    except LabError:
        if len(answers) == 1:
            raise
        found = _one_by_one(tokenizer, system, turns, starts, answers, length)
    return [sample for sample in found if sample.learnable]


def _windows(
    tokenizer: Tokenizer, system: Sequence[dict[str, str]], turns: Sequence[dict[str, str]], starts: list[int], length: int
) -> list[Sample]:
    found: list[Sample] = []
    first = 0  # the exchange that is to be learned next
    while first < len(starts):
        for context in (1, 0) if first else (0,):
            ids, supervised = encode(tokenizer, [*system, *turns[starts[first - context] :]])
            if not first and len(ids) <= length:
                return [Sample(ids, supervised, answers=len(starts))]
            ends = [at for at, mark in enumerate(supervised, 1) if mark and supervised[at : at + 1] != [True]]
            fitting = sum(end <= length for end in ends) - context
            if fitting > 0:
                break
        if fitting <= 0:
            found.append(Sample(ids[:length], supervised[:length], True, 1, first > 0))
            first += 1
            continue
        learned_from = ends[0] if context else 0
        end = ends[context + fitting - 1]
        marks = [False] * learned_from + supervised[learned_from:end]
        found.append(Sample(ids[:end], marks, False, fitting, first > 0))
        first += fitting
    return found


def _one_by_one(
    tokenizer: Tokenizer,
    system: Sequence[dict[str, str]],
    turns: Sequence[dict[str, str]],
    starts: list[int],
    answers: list[int],
    length: int,
) -> list[Sample]:
    found = []
    for number, answer in enumerate(answers):
        for start in starts[: number + 1]:
            ids, supervised = _last(tokenizer, [*system, *turns[start : answer + 1]])
            if len(ids) <= length:
                break
        found.append(Sample(ids[:length], supervised[:length], len(ids) > length, 1, number > 0))
    return found


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
