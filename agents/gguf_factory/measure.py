"""Measure the gates on a finished file. Judges nothing; a gate with level `off` is not measured."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.gguf_factory import chat, child, convert, fidelity, quantise, tensors
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.generation import Sampling, generate, generate_many
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Stopped, never, silent
from agents.gguf_factory.subject import ModelFile, Subject
from agents.gguf_factory.threads import polite
from configs import GateRule

# Bounds of what is measured: they keep the stage under half a minute on two cores with 12 M parameters.
KL_TOKENS = 1_500
GENERAL_TOKENS, WINDOW = 8_000, 512
ANSWER_TOKENS = 512
SAMPLES, SAMPLE_TOKENS = 2, 256
SEQUENCES = 4  # answers drawn at a time in each of two threads
SEED = 20_000  # the i-th question is drawn with SEED + i, so that two runs give the same answers
DOCUMENT = "<|doc|>"
SHOWN = 3  # faults that a gate's detail names; the first tells the cause
WORKERS = 2
PERPLEXITIES = ("quality_percent", "overfit_percent", "pairing_percent", "forgetting_percent")


@dataclass
class Measurement:
    """What was measured of a subject so far.

    Args:
        subject: the file and what it is compared with.
        rules: gate name to rule; only gates of a level other than `off` are measured.
        folder: where a measuring process may leave its output.
        stop: asked between measurements and about once a second within; true raises `Stopped`.
        progress: takes `note`, what is being measured.
        samples: how many held-out questions base and product answer side by side, for people to read.
    """

    subject: Subject
    rules: Mapping[str, GateRule]
    folder: Path
    stop: Callable[[], bool] = never
    progress: Callable[..., None] = silent
    samples: int = SAMPLES
    measured: dict[str, Measured] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    known: dict[tuple[ModelFile, tuple[int, ...]], tuple[float, int]] = field(default_factory=dict)
    """Log-likelihoods of samples that a gate has read already; another one asks for the same."""

    def wanted(self, *names: str) -> bool:
        return any(name in self.rules and self.rules[name].level != "off" for name in names)

    @contextmanager
    def clock(self, *names: str) -> Iterator[None]:
        """Time a measurement and note it under each gate's name; says what is going on, and stops where asked."""
        self.check_stop()
        self.progress(note=f"measuring {', '.join(names)}")
        start = time.perf_counter()
        yield
        for name in names:
            self.seconds[name] = round(time.perf_counter() - start, 3)

    def check_stop(self) -> None:
        if self.stop():
            raise Stopped("validate was stopped")

    def run(self) -> None:
        """Measure every wanted gate, cheap ones first.

        Raises:
            LabError: TOOLCHAIN, the file cannot be read.
            Stopped: a stop was asked for.
        """
        read_header(self.subject.product.path)
        for step in (_files, _fidelity, _perplexity, _answers, _footprint):
            self.check_stop()
            step(self)


def _files(state: Measurement) -> None:
    """Gates that need nothing but the files and what the training told."""
    subject = state.subject
    header = read_header(subject.product.path)
    if state.wanted("integrity"):
        with state.clock("integrity"):
            state.measured["integrity"] = _integrity(subject)
    state.measured["file_bytes"] = Measured(float(subject.product.bytes))
    bits = f"{header.bits_per_weight:.2f} bits per weight"
    state.measured["quant_fallbacks"] = (
        Measured(quantise.fallback_percent(header, subject.kind), bits) if subject.kind
        else Measured(None, f"the file does not say which quantisation it has; {bits}", given=False)
    )  # fmt: skip
    state.measured["lesson_percent"] = subject.lesson
    state.results |= {"bits_per_weight": header.bits_per_weight, "file_bytes": subject.product.bytes}


def _integrity(subject: Subject) -> Measured:
    """Count the tensors that cannot be right, and one more where the file is not the one that was made."""
    path, adapter = subject.product.path, subject.product.adapter
    wrong = []
    if subject.sha256 and (found := convert.file_sha256(subject.product.file)) != subject.sha256:
        wrong.append(f"the file has the sha256 {found[:12]}…, its manifest says {subject.sha256[:12]}…")
    twin = subject.exact.path if subject.exact else None
    base = None if twin else subject.base().path
    unsound = tensors.unsound(path, twin, base) | (tensors.unsound(adapter, None, None) if adapter else {})
    wrong += [f"{name} {why}" for name, why in unsound.items()]
    against = "its F16 file" if twin else "the base"
    detail = f"compared with {against}" + ("" if subject.sha256 else ", no sha256 to compare with")
    return Measured(float(len(wrong)), "; ".join([detail, *wrong[:SHOWN]]))


def _fidelity(state: Measurement) -> None:
    subject, cores = state.subject, os.cpu_count() or 1
    with subject.product.open(n_ctx=subject.length, cores=cores) as product:
        with state.clock("tokenizer_ids"):
            renders = [chat.render(subject.tokenizer, messages) for messages in subject.conversations]
            state.measured["tokenizer_ids"] = fidelity.tokenizer_ids(subject.tokenizer, product, renders)
        with state.clock("chat_template"):
            state.measured["chat_template"] = fidelity.chat_template(subject.tokenizer, product, subject.conversations)
        if not state.wanted("f16_kl", "quant_kl"):
            return
        if subject.exact is None:
            found = Measured(None, "no F16 file and no torch weights of the tuned model were given", given=False)
            state.measured["f16_kl"] = state.measured["quant_kl"] = found
            return
        with (
            state.clock("f16_kl", "quant_kl"),
            subject.exact.open(n_ctx=subject.length, cores=cores, exact=True) as exact,
        ):
            network = subject.network() if subject.network else None
            sizes = {"torch": network.config.get_text_config().vocab_size} if network is not None else {}
            sizes |= {"F16": exact.vocabulary_size, "the file": product.vocabulary_size}
            if subject.foreign or len(set(sizes.values())) > 1:
                other = Measured(None, subject.foreign or f"numbers of tokens differ: {sizes}")
                state.measured["f16_kl"] = state.measured["quant_kl"] = other
                return
            with polite():
                first, second, tokens = fidelity.mean_divergences(network, exact, product, _some(state))
    state.measured["f16_kl"] = (
        Measured(first, f"{tokens} tokens") if subject.network
        else Measured(None, "no torch weights of the tuned model were given", given=False)
    )  # fmt: skip
    state.measured["quant_kl"] = Measured(second, f"{tokens} tokens")


def _some(state: Measurement) -> Iterator[list[int]]:
    """Yield held-out samples up to KL_TOKENS tokens."""
    tokens = 0
    for sample in state.subject.samples:
        state.check_stop()
        if tokens and tokens + len(sample.ids) > KL_TOKENS:
            return
        tokens += len(sample.ids)
        yield sample.ids


def _perplexity(state: Measurement) -> None:
    """Base and product, one thread each, on held-out and trained answers, on wrong questions, and on general text."""
    if not state.wanted(*PERPLEXITIES):
        return
    if why := state.subject.foreign:
        state.measured |= {name: Measured(None, why) for name in PERPLEXITIES}
        return
    _quality(state)
    if state.wanted("overfit_percent"):
        _overfit(state)
    if state.wanted("pairing_percent"):
        _pairing(state)
    if state.wanted("forgetting_percent"):
        _forgetting(state)


def _quality(state: Measurement) -> None:
    if not state.wanted("quality_percent", "overfit_percent"):
        return
    answers = [(sample.ids, sample.supervised) for sample in state.subject.samples]
    with state.clock("quality_percent"):
        before, after = _both(state, answers)
        rows, tokens = len(answers), sum(sum(mask[1:]) for _, mask in answers)
    state.measured["quality_percent"] = Measured(100 * before / after, f"{rows} conversations, {tokens} answer tokens")
    state.results |= {
        "base_perplexity": before, "tuned_perplexity": after, "held_out_measured_rows": rows,
        "held_out_measured_tokens": tokens,
    }  # fmt: skip


def _overfit(state: Measurement) -> None:
    samples = state.subject.trained_samples
    if not samples:
        state.measured["overfit_percent"] = Measured(None, "no training rows were given", given=False)
        return
    with state.clock("overfit_percent"):
        before, after = _both(state, [(sample.ids, sample.supervised) for sample in samples])
    held_out = state.results["tuned_perplexity"] / state.results["base_perplexity"]
    state.measured["overfit_percent"] = Measured(
        100 * (held_out / (after / before) - 1), f"{len(samples)} training rows"
    )
    state.results |= {"base_trained_perplexity": before, "tuned_trained_perplexity": after}


def _pairing(state: Measurement) -> None:
    own, other = state.subject.pairs
    if not own:
        state.measured["pairing_percent"] = Measured(None, "fewer than two different held-out questions")
        return
    with state.clock("pairing_percent"):
        (base_own, ours_own), (base_other, ours_other) = (
            _both(state, [(sample.ids, sample.supervised) for sample in samples]) for samples in (own, other)
        )
    base, ours = base_other / base_own, ours_other / ours_own
    detail = f"{len(own)} answers, {100 * (ours - 1):.1f} % less likely after another question; by the base {100 * (base - 1):.1f} %"
    state.measured["pairing_percent"] = Measured(100 * ours / base, detail)


def _forgetting(state: Measurement) -> None:
    subject = state.subject
    with state.clock("forgetting_percent"):
        if not subject.general.is_file():
            state.measured["forgetting_percent"] = Measured(None, f"no general text at {subject.general}")
            return
        text = subject.general.read_text(encoding="utf-8")
        windows = spread(text, subject.tokenizer, min(WINDOW, subject.length))
        before, after = _both(state, [(ids, [True] * len(ids)) for ids in windows])
    tokens = sum(len(ids) - 1 for ids in windows)
    detail = f"{tokens} tokens of {subject.general.name}"
    state.measured["forgetting_percent"] = Measured(100 * (after / before - 1), detail)
    state.results |= {"base_general_perplexity": before, "tuned_general_perplexity": after}


def spread(text: str, tokenizer: Any, window: int, most: int = GENERAL_TOKENS) -> list[list[int]]:
    """Return windows of token ids, evenly spread over the documents of a text, together at most about `most` tokens."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    inner = window - len(bos)
    windows = []
    for document in text.split(DOCUMENT):
        ids = tokenizer.encode(document.strip(), add_special_tokens=False)
        windows += [[*bos, *ids[start : start + inner]] for start in range(0, len(ids), inner)]
    windows = [ids for ids in windows if len(ids) > 1 + len(bos)]
    total = sum(map(len, windows))
    if total <= most:
        return windows
    count = max(1, len(windows) * most // total)
    return [windows[index * len(windows) // count] for index in range(count)]


def _both(state: Measurement, samples: Sequence[tuple[list[int], list[bool]]]) -> tuple[float, float]:
    """Return the perplexities of base and product on the same tokens, measured side by side."""
    cores = max(1, (os.cpu_count() or 1) // WORKERS)
    files = (state.subject.base(), state.subject.product)
    with ThreadPoolExecutor(WORKERS) as pool:
        first, second = pool.map(lambda file: perplexity(state, file, samples, cores), files)
    return first, second


def perplexity(
    state: Measurement, file: ModelFile, samples: Sequence[tuple[list[int], list[bool]]], cores: int
) -> float:
    """Return exp of the mean negative log-likelihood (nats) of the masked tokens."""
    total, count = 0.0, 0
    with file.open(n_ctx=state.subject.length, cores=cores) as model:
        for ids, mask in samples:
            state.check_stop()
            key = file, (*ids, *mask)
            if key not in state.known:
                state.known[key] = model.log_likelihood(ids, mask)
            found, tokens = state.known[key]
            total, count = total + found, count + tokens
    return math.exp(-total / count) if count else math.nan


def _answers(state: Measurement) -> None:
    """Answers of the product to held-out questions: do they stop; two of them beside the base's; tokens per second."""
    subject = state.subject
    if subject.foreign:
        state.measured["stops_percent"] = Measured(None, subject.foreign)
        return
    questions = subject.questions
    if state.wanted("stops_percent"):
        with state.clock("stops_percent"):
            parts = [range(worker, len(questions), WORKERS) for worker in range(WORKERS)]
            with ThreadPoolExecutor(WORKERS) as pool:
                stopped = sum(pool.map(lambda part: _stops(state, part), parts))
        state.measured["stops_percent"] = (
            Measured(100 * stopped / len(questions), f"{len(questions)} questions") if questions
            else Measured(None, "no held-out question fits the context")
        )  # fmt: skip
    if not state.samples:
        return
    with state.clock("samples"):
        tuned, rate = _sample(state, subject.product)
        plain, _ = _sample(state, subject.base())
    state.results["generation_tokens_per_s"] = rate
    state.results["answers"] = [
        {"question": question, "base": theirs, "tuned": ours}
        for (question, _), theirs, ours in zip(questions[: state.samples], plain, tuned, strict=True)
    ]


def _stops(state: Measurement, part: range) -> int:
    if not part:
        return 0
    subject, room = state.subject, _room(state)
    stopped = 0
    cores = max(1, (os.cpu_count() or 1) // WORKERS)
    with subject.product.open(n_ctx=room * SEQUENCES, sequences=SEQUENCES, n_batch=128, cores=cores) as model:
        for start in range(0, len(part), SEQUENCES):
            state.check_stop()
            group = part[start : start + SEQUENCES]
            answers = generate_many(
                model, [subject.questions[index][1] for index in group], sampling=Sampling(),
                seeds=[SEED + index for index in group], max_tokens=ANSWER_TOKENS, stop=state.stop,
            )  # fmt: skip
            stopped += sum(answer.stopped for answer in answers)
    state.check_stop()
    return stopped


def _room(state: Measurement) -> int:
    """Return the context of one sequence: a multiple of 256, to which llama.cpp would round it."""
    length = state.subject.length
    return -(-min(length, length // 2 + ANSWER_TOKENS) // 256) * 256


def _sample(state: Measurement, file: ModelFile) -> tuple[list[str], float | None]:
    """Return the answers to the first questions, drawn one by one, and the tokens per second of doing so."""
    texts, tokens, seconds = [], 0, 0.0
    with file.open(n_ctx=_room(state), cores=os.cpu_count() or 1) as model:
        for index, (_, ids) in enumerate(state.subject.questions[: state.samples]):
            state.check_stop()
            start = time.perf_counter()
            answer = generate(model, ids, seed=SEED + index, max_tokens=SAMPLE_TOKENS, stop=state.stop)
            seconds += time.perf_counter() - start
            tokens += len(answer.ids)
            texts.append(model.text(answer.ids).strip())
    return texts, tokens / seconds if tokens else None


def _footprint(state: Measurement) -> None:
    """Load time and private memory, in a fresh process and alone: other work would be measured with it."""
    if not state.wanted("load_ms", "private_mb"):
        return
    product = state.subject.product
    files = [product.path, product.adapter] if product.adapter else [product.path]
    with state.clock("load_ms", "private_mb"):
        output = child.run(
            child.module("agents.gguf_factory.footprint", *files),
            output=state.folder / "footprint.log", stop=state.stop, what="measuring the footprint",
        )  # fmt: skip
    facts = json.loads(output.strip().splitlines()[-1])
    if product.adapter:
        state.results |= {"adapter_load_ms": facts["load_ms"], "adapter_first_decode_ms": facts["first_decode_ms"]}
        state.measured["load_ms"] = Measured(
            facts["load_ms"], "best of five, the adapter into a process that has the base"
        )
        state.measured["private_mb"] = Measured(None, "most of it is the base's")
        return
    state.measured["load_ms"] = Measured(facts["load_ms"], "best of five, model and a context of 256 tokens")
    state.measured["private_mb"] = (
        Measured(facts["private_mb"], "context of 256 tokens, the file's mapping not counted")
        if facts["private_mb"] is not None else Measured(None, "needs /proc/self/smaps", given=False)
    )  # fmt: skip
