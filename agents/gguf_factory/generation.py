"""Draw answers of a loaded model: one as a stream, or many at a time. Knows no jobs and no gates."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import llama_cpp

from agents.gguf_factory.llama import Model
from protocol import Code, LabError


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; the defaults are the lab's generation defaults."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    repeat_penalty: float = 1.1
    penalty_window: int = 64  # tokens that the penalty looks back on; llama.cpp's own default


@dataclass(frozen=True)
class Generated:
    """An answer. `stopped` is true when the model ended it, false when a limit did."""

    ids: list[int]
    stopped: bool


DEFAULTS = Sampling()


def generate(
    model: Model, prompt: Sequence[int], *, sampling: Sampling = DEFAULTS, seed: int, max_tokens: int,
    stop: Callable[[], bool] = lambda: False,
) -> Generated:  # fmt: skip
    """Draw one answer; see `generate_many`."""
    return next(generate_many(model, [prompt], sampling=sampling, seeds=[seed], max_tokens=max_tokens, stop=stop))


def stream(
    model: Model, prompt: Sequence[int], *, sampling: Sampling = DEFAULTS, seed: int, max_tokens: int,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[int, None, bool]:  # fmt: skip
    """Yield the ids of one answer as they are drawn; the same ids as `generate` gives, without the end token.

    Args:
        prompt: ids of the prompt.
        sampling, seed: how to draw.
        max_tokens: most tokens of the answer; the context may end it earlier.
        stop: asked before each token; true ends the answer.

    Returns:
        (of the generator) true when the model ended the answer, false when a limit or `stop` did.

    Raises:
        LabError: the prompt does not fit the context.
    """
    if not 0 < len(prompt) < model.n_ctx:
        raise LabError(Code.INTERNAL, f"a prompt of {len(prompt)} tokens does not fit {model.n_ctx}.")
    model.clear()
    sampler = _sampler(model, sampling, seed)
    try:
        model.feed(prompt, 0)
        row, position = -1, len(prompt)
        for _ in range(max_tokens):
            if stop():
                return False
            token = model.sample(sampler, row)
            if model.ends(token):
                return True
            yield token
            if position >= model.n_ctx:
                return False
            model.decode([(token, position, 0)], [True])
            row, position = 0, position + 1
        return False
    finally:
        llama_cpp.llama_sampler_free(sampler)


def generate_many(
    model: Model, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seeds: Sequence[int], max_tokens: int,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Generated]:  # fmt: skip
    """Draw an answer to each prompt, as many at a time as the context has sequences; yields in order.

    Args:
        prompts: ids of each prompt.
        sampling: how to draw; temperature 0 takes the likeliest token.
        seeds: one a prompt; an answer depends on its own seed, not on its neighbours'.
        max_tokens: most tokens of an answer; the context's share of a sequence may end it earlier.
        stop: asked before each token; true ends all answers where they are.
    """
    for start in range(0, len(prompts), model.sequences):
        group = slice(start, start + model.sequences)
        yield from _generate_group(model, prompts[group], sampling, seeds[group], max_tokens, stop)


def _generate_group(
    model: Model, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], max_tokens: int,
    stop: Callable[[], bool],
) -> list[Generated]:  # fmt: skip
    room = model.n_ctx // model.sequences
    model.clear()
    samplers = [_sampler(model, sampling, seed) for seed in seeds]
    answers: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    try:
        running: dict[int, int] = {}
        for sequence, prompt in enumerate(prompts):
            if not 0 < len(prompt) < room:
                raise LabError(Code.INTERNAL, f"a prompt of {len(prompt)} tokens does not fit {room}.")
            model.feed(prompt, sequence)
            running[sequence] = model.sample(samplers[sequence], -1)
        while running and not stop():
            entries: list[tuple[int, int, int]] = []
            for sequence, token in list(running.items()):
                if model.ends(token):
                    stopped[sequence] = True
                    del running[sequence]
                    continue
                answers[sequence].append(token)
                position = len(prompts[sequence]) + len(answers[sequence]) - 1
                if len(answers[sequence]) >= max_tokens or position + 1 >= room:
                    del running[sequence]
                    continue
                entries.append((token, position, sequence))
            if entries:
                model.decode(entries, [True] * len(entries))
                for row, (_, _, sequence) in enumerate(entries):
                    running[sequence] = model.sample(samplers[sequence], row)
    finally:
        for sampler in samplers:
            llama_cpp.llama_sampler_free(sampler)
    return [Generated(ids, end) for ids, end in zip(answers, stopped, strict=True)]


def _sampler(model: Model, sampling: Sampling, seed: int) -> object:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    add = llama_cpp.llama_sampler_chain_add
    penalties = llama_cpp.llama_sampler_init_penalties(
        model.vocabulary_size, sampling.penalty_window, sampling.repeat_penalty, 0.0, 0.0
    )
    add(chain, penalties)
    if sampling.temperature <= 0:
        add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    add(chain, llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
    add(chain, llama_cpp.llama_sampler_init_dist(seed))
    return chain
