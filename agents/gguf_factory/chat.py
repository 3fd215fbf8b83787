"""From messages to token ids by the base's own chat template, with the answers marked that are to be learned."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.gguf_factory.base import end_ids
from protocol import Code, LabError

REFUSED_ADVICE = "Leave out what it refuses; a system turn can stand before the first question instead."


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that is used here; `light.LightTokenizer` has it too.

    An attribute `turn_ends` may name further tokens that end an answer; see `ends`.
    """

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
    """Load the base's tokenizer with transformers, and note in `turn_ends` where the base says that answers end.

    SentencePiece puts a space before every text, also where it begins with one or follows a control token, and so do
    llama.cpp and the families' own tokenizer.json; transformers 5 rebuilds Llama's tokenizer without these two cases.

    Raises:
        LabError: BAD_DATA with field `base`, transformers cannot read it.
    """
    from tokenizers import normalizers
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LabError(
            Code.BAD_DATA, f"The tokenizer in {folder} cannot be loaded: {error}.",
            advice="Copy or download the base again.", field="base", file=str(folder),
        ) from error  # fmt: skip
    backend = getattr(tokenizer, "backend_tokenizer", None)
    cut = getattr(backend, "pre_tokenizer", None)
    if backend is not None and isinstance(cut, Metaspace) and cut.prepend_scheme != "never":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    tokenizer.turn_ends = end_ids(folder)
    return tokenizer


def ends(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids at which an answer ends: eos, and what the base's generation_config.json names beside it.

    A list without eos belongs to another tokenizer and is left out.
    """
    eos = tokenizer.eos_token_id
    listed: frozenset[int] = getattr(tokenizer, "turn_ends", frozenset())
    return listed if eos is None or eos in listed else frozenset({eos})


def filler(pad: int | None, stops: frozenset[int]) -> int:
    """Return the id that fills a row behind its last sample: the pad token, or the first id where none or a stop is one.

    What fills is neither seen by a sample nor learned, so that any id will do; only a stop could be taken for an end.
    """
    if pad is not None and pad not in stops:
        return pad
    return next(number for number in itertools.count() if number not in stops)


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, prompt: bool = False) -> str:
    """Return the conversation as the model sees it; `prompt` opens the answer that is to follow.

    Raises:
        LabError: BAD_DATA with field `base`, the template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        refusal = _template(f"refuses a conversation: {error}", REFUSED_ADVICE)
        refusal.data["refused"] = str(error)
        raise refusal from error
    return text


def encode(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Return ids and which of them are to be learned: each answer and the token that ends its turn.

    The ids before an answer are those of the prompt that will ask for it, and the answer's go on from there.

    Raises:
        LabError: BAD_DATA with field `base`, the template changes earlier turns when later ones come (use `samples`),
            or does not end an answer with a token of `ends`.
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
        question = _following(tokenizer, ids, before, len(done))
        answer, marks = _answer(tokenizer, ids + question, after, len(before))
        ids += question + answer
        supervised += [False] * len(question) + marks
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
    tokenizer: Tokenizer,
    system: Sequence[dict[str, str]],
    turns: Sequence[dict[str, str]],
    starts: list[int],
    length: int,
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
    answer, marks = _answer(tokenizer, question, after, len(before))
    return question + answer, [False] * len(question) + marks


def _answer(tokenizer: Tokenizer, before: list[int], text: str, start: int) -> tuple[list[int], list[bool]]:
    """Return the ids of the answer that begins at `start`, and which are learned: all up to the last that ends a turn.

    Some templates put a line end behind it, which belongs to the next turn and is not the model's to write.
    """
    answer = _following(tokenizer, before, text, start)
    stops = ends(tokenizer)
    learned = max((place for place, token in enumerate(answer, 1) if token in stops), default=0)
    if not learned:
        raise _template(
            "does not end an answer with eos_token or another end token of generation_config.json",
            "The model would never learn to stop: name the token that ends a turn in one of them.",
        )
    return answer, [True] * learned + [False] * (len(answer) - learned)


def _following(tokenizer: Tokenizer, before: list[int], text: str, start: int) -> list[int]:
    """Return the ids of `text[start:]` as they follow on `before`, which are the ids of what stands before it.

    Encoded apart only where the border cuts a token: the prompt's ids are given then, and the answer has to fit them.
    """
    whole = tokenizer.encode(text, add_special_tokens=False)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return tokenizer.encode(text[start:], add_special_tokens=False)


def _template(what: str, advice: str) -> LabError:
    return LabError(Code.BAD_DATA, f"The base's chat template {what}.", advice=advice, field="base")
