"""Stage validate: measure every gate of the tier on the finished file, write them down, then judge.

A gate with level `off` is not measured. A missed `fail` gate fails the job after all were measured; the files stay.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import configs
from agents.gguf_factory import chat, child, convert, fidelity, gates, llama, lora, quantise
from agents.gguf_factory.chat import Sample
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job, StageResult, Stopped
from agents.gguf_factory.llama import Sampling
from agents.gguf_factory.threads import polite
from configs import GateRule
from protocol.job import Gate

# Bounds of what is measured: they keep the stage under half a minute on two cores with 12 M parameters.
ROWS, TOKENS = 80, 12_000  # held-out conversations and tokens for the perplexity of answers
KL_TOKENS = 1_500
GENERAL_TOKENS, WINDOW = 8_000, 512
QUESTIONS, ANSWER_TOKENS = 40, 512
SAMPLES, SAMPLE_TOKENS = 2, 256
LENGTH = 1024  # most tokens of one conversation
SEQUENCES = 4  # answers drawn at a time in each of two threads
SEED = 20_000  # the i-th question is drawn with SEED + i, so that two runs give the same answers
GENERAL = configs.tiers.PROJECT / "data" / "general.txt"
DOCUMENT = "<|doc|>"
WORKERS = 2


@dataclass
class Validation:
    """What the gates of one job are measured on, and what was measured so far."""

    job: Job
    rules: Mapping[str, GateRule]
    measured: dict[str, Measured] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def wanted(self, *names: str) -> bool:
        return any(name in self.rules and self.rules[name].level != "off" for name in names)

    @cached_property
    def product(self) -> Path:
        return self.job.path("quantise", quantise.file_name(self.job))

    @cached_property
    def exact(self) -> Path:
        return self.job.path("convert", convert.FILE)

    @cached_property
    def tokenizer(self) -> Any:
        return chat.load(self.job.path("merge", "model"))

    @cached_property
    def length(self) -> int:
        values = read_header(self.exact).values
        return min(LENGTH, int(values[f"{values['general.architecture']}.context_length"]))

    @cached_property
    def conversations(self) -> list[list[dict[str, str]]]:
        lines = self.job.path("data", "held_out.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["messages"] for line in lines if line.strip()][:ROWS]

    @cached_property
    def samples(self) -> list[Sample]:
        found: list[Sample] = []
        tokens = 0
        for messages in self.conversations:
            for sample in chat.samples(self.tokenizer, messages, self.length):
                if found and tokens + len(sample.ids) > TOKENS:
                    return found
                found.append(sample)
                tokens += len(sample.ids)
        return found

    @cached_property
    def questions(self) -> list[tuple[str, list[int]]]:
        """The first question of each conversation, and the ids of its prompt."""
        found = []
        for messages in self.conversations[:QUESTIONS]:
            first = next((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), len(messages))
            if first == 0:
                continue
            text = chat.render(self.tokenizer, messages[:first], prompt=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            if len(ids) <= self.length // 2:
                found.append((messages[first - 1]["content"], ids))
        return found

    @contextmanager
    def clock(self, *names: str) -> Iterator[None]:
        """Time a measurement and note it under each gate's name; says what is going on, and stops where asked."""
        self.check_stop()
        self.job.progress(note=f"measuring {', '.join(names)}")
        start = time.perf_counter()
        yield
        for name in names:
            self.seconds[name] = round(time.perf_counter() - start, 3)

    def check_stop(self) -> None:
        if self.job.stop():
            raise Stopped("validate was stopped")


def run(job: Job, rules: Mapping[str, GateRule] | None = None, general: Path = GENERAL) -> StageResult:
    """Measure the gates of the job's tier and write validate/gates.json.

    Args:
        job: the job, with the stages up to quantise finished.
        rules: gate name to rule; default: the tier's, from configs.
        general: text for the forgetting gate, documents separated by a line `<|doc|>`.

    Raises:
        LabError: GATE_MISSED; TOOLCHAIN, a file cannot be read.
        Stopped: a stop was asked for.
    """
    rules = rules if rules is not None else configs.load().tiers[job.run.route.tier].gates
    state = Validation(job, rules)
    read_header(state.product)
    steps: tuple[Callable[[], None], ...] = (
        lambda: _files(state), lambda: _fidelity(state), lambda: _perplexity(state, general),
        lambda: _answers(state), lambda: _footprint(state),
    )  # fmt: skip
    for step in steps:
        state.check_stop()
        step()
    judged = gates.judge(state.measured, rules)
    path = job.path("validate", "gates.json")
    _write(path, judged, state)
    if error := gates.verdict(judged):
        error.data |= {"file": str(path), "results": {**state.results, "kept": str(state.product)}}
        raise error
    return StageResult(files=[path], results={**state.results, "gate_seconds": state.seconds}, gates=judged)


def _files(state: Validation) -> None:
    """Gates that need nothing but the file and the training's manifest."""
    header = read_header(state.product)
    kind = str(state.job.parameters.get("quantisation", quantise.DEFAULT))
    state.measured["file_bytes"] = Measured(float(state.product.stat().st_size))
    state.measured["quant_fallbacks"] = Measured(
        quantise.fallback_percent(header, kind), f"{header.bits_per_weight:.2f} bits per weight"
    )
    state.results |= {"bits_per_weight": header.bits_per_weight, "file_bytes": state.product.stat().st_size}
    try:
        lesson = state.job.read_manifest("train")["results"].get("lesson")
    except FileNotFoundError:
        lesson = None
    state.measured["lesson_percent"] = (
        Measured(float(lesson["percent"]))
        if lesson
        else Measured(None, "no training on shuffled answers to compare with")
    )


def _fidelity(state: Validation) -> None:
    threads = llama.threads_for(state.exact, os.cpu_count() or 1)
    with llama.load(state.exact, n_ctx=state.length, threads=threads, exact=True) as exact:
        with state.clock("tokenizer_ids"):
            renders = [chat.render(state.tokenizer, messages) for messages in state.conversations]
            state.measured["tokenizer_ids"] = fidelity.tokenizer_ids(state.tokenizer, exact, renders)
        with state.clock("chat_template"):
            state.measured["chat_template"] = fidelity.chat_template(state.tokenizer, exact, state.conversations)
        if not state.wanted("f16_kl", "quant_kl"):
            return
        with (
            state.clock("f16_kl", "quant_kl"),
            llama.load(state.product, n_ctx=state.length, threads=threads) as product,
        ):
            network = lora.load_base(state.job.path("merge", "model")).eval()
            with polite():
                first, second, tokens = fidelity.mean_divergences(network, exact, product, _some(state))
        state.measured["f16_kl"] = Measured(first, f"{tokens} tokens")
        state.measured["quant_kl"] = Measured(second, f"{tokens} tokens")


def _some(state: Validation) -> Iterator[list[int]]:
    """Yield held-out samples up to KL_TOKENS tokens."""
    tokens = 0
    for sample in state.samples:
        state.check_stop()
        if tokens and tokens + len(sample.ids) > KL_TOKENS:
            return
        tokens += len(sample.ids)
        yield sample.ids


def _perplexity(state: Validation, general: Path) -> None:
    """Quality on held-out answers, forgetting on general text: the base and the product, one thread each."""
    if not state.wanted("quality_percent", "forgetting_percent"):
        return
    base = convert.convert_base(state.job.base, state.job.home, stop=state.job.stop)
    answers = [(sample.ids, sample.supervised) for sample in state.samples]
    with state.clock("quality_percent"):
        before, after = _both(state, (base, state.product), answers)
        rows, tokens = len(answers), sum(sum(mask[1:]) for _, mask in answers)
    state.measured["quality_percent"] = Measured(100 * before / after, f"{rows} conversations, {tokens} answer tokens")
    state.results |= {
        "base_perplexity": before, "tuned_perplexity": after, "held_out_measured_rows": rows,
        "held_out_measured_tokens": tokens,
    }  # fmt: skip
    if not state.wanted("forgetting_percent"):
        return
    with state.clock("forgetting_percent"):
        if not general.is_file():
            state.measured["forgetting_percent"] = Measured(None, f"no general text at {general}")
            return
        windows = spread(general.read_text(encoding="utf-8"), state.tokenizer, min(WINDOW, state.length))
        before, after = _both(state, (base, state.product), [(ids, [True] * len(ids)) for ids in windows])
    tokens = sum(len(ids) - 1 for ids in windows)
    state.measured["forgetting_percent"] = Measured(100 * (after / before - 1), f"{tokens} tokens of {general.name}")
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


def _both(
    state: Validation, files: tuple[Path, Path], samples: Sequence[tuple[list[int], list[bool]]]
) -> tuple[float, float]:
    """Return the perplexities of two files on the same tokens, measured side by side."""
    cores = max(1, (os.cpu_count() or 1) // WORKERS)
    with ThreadPoolExecutor(WORKERS) as pool:
        first, second = pool.map(lambda path: perplexity(state, path, samples, cores), files)
    return first, second


def perplexity(state: Validation, path: Path, samples: Sequence[tuple[list[int], list[bool]]], cores: int) -> float:
    """Return exp of the mean negative log-likelihood (nats) of the masked tokens."""
    total, count = 0.0, 0
    with llama.load(path, n_ctx=state.length, threads=llama.threads_for(path, cores)) as model:
        for ids, mask in samples:
            state.check_stop()
            found, tokens = model.log_likelihood(ids, mask)
            total, count = total + found, count + tokens
    return math.exp(-total / count) if count else math.nan


def _answers(state: Validation) -> None:
    """Answers of the product to held-out questions: do they stop; two of them beside the base's; tokens per second."""
    questions = state.questions
    if state.wanted("stops_percent"):
        with state.clock("stops_percent"):
            parts = [range(worker, len(questions), WORKERS) for worker in range(WORKERS)]
            with ThreadPoolExecutor(WORKERS) as pool:
                stopped = sum(pool.map(lambda part: _stops(state, part), parts))
        state.measured["stops_percent"] = (
            Measured(100 * stopped / len(questions), f"{len(questions)} questions") if questions
            else Measured(None, "no held-out question fits the context")
        )  # fmt: skip
    with state.clock("samples"):
        base = convert.convert_base(state.job.base, state.job.home, stop=state.job.stop)
        tuned, rate = _sample(state, state.product)
        plain, _ = _sample(state, base)
    state.results["generation_tokens_per_s"] = rate
    state.results["answers"] = [
        {"question": question, "base": theirs, "tuned": ours}
        for (question, _), theirs, ours in zip(questions[:SAMPLES], plain, tuned, strict=True)
    ]


def _stops(state: Validation, part: range) -> int:
    if not part:
        return 0
    room = _room(state)
    stopped = 0
    threads = llama.threads_for(state.product, max(1, (os.cpu_count() or 1) // WORKERS))
    with llama.load(state.product, n_ctx=room * SEQUENCES, sequences=SEQUENCES, n_batch=128, threads=threads) as model:
        for start in range(0, len(part), SEQUENCES):
            state.check_stop()
            group = part[start : start + SEQUENCES]
            answers = model.generate_many(
                [state.questions[index][1] for index in group], sampling=Sampling(),
                seeds=[SEED + index for index in group], max_tokens=ANSWER_TOKENS, stop=state.job.stop,
            )  # fmt: skip
            stopped += sum(answer.stopped for answer in answers)
    state.check_stop()
    return stopped


def _room(state: Validation) -> int:
    """Return the context of one sequence: a multiple of 256, to which llama.cpp would round it."""
    return -(-min(state.length, state.length // 2 + ANSWER_TOKENS) // 256) * 256


def _sample(state: Validation, path: Path) -> tuple[list[str], float | None]:
    """Return the answers to the first questions, drawn one by one, and the tokens per second of doing so."""
    texts, tokens, seconds = [], 0, 0.0
    with llama.load(path, n_ctx=_room(state), threads=llama.threads_for(path, os.cpu_count() or 1)) as model:
        for index, (_, ids) in enumerate(state.questions[:SAMPLES]):
            state.check_stop()
            start = time.perf_counter()
            answer = model.generate(ids, seed=SEED + index, max_tokens=SAMPLE_TOKENS, stop=state.job.stop)
            seconds += time.perf_counter() - start
            tokens += len(answer.ids)
            texts.append(model.text(answer.ids).strip())
    return texts, tokens / seconds if tokens else None


def _footprint(state: Validation) -> None:
    """Load time and private memory, in a fresh process and alone: other work would be measured with it."""
    if not state.wanted("load_ms", "private_mb"):
        return
    with state.clock("load_ms", "private_mb"):
        output = child.run(
            child.module("agents.gguf_factory.footprint", state.product),
            output=state.job.path("validate", "footprint.log"), stop=state.job.stop, what="measuring the footprint",
        )  # fmt: skip
    facts = json.loads(output.strip().splitlines()[-1])
    state.measured["load_ms"] = Measured(facts["load_ms"], "best of five, model and a context of 256 tokens")
    state.measured["private_mb"] = (
        Measured(facts["private_mb"], "context of 256 tokens, the file's mapping not counted")
        if facts["private_mb"] is not None else Measured(None, "needs /proc/self/smaps")
    )  # fmt: skip


def _write(path: Path, judged: Mapping[str, Gate], state: Validation) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "gates": {name: gate.model_dump(mode="json") for name, gate in judged.items()},
        "results": state.results, "seconds": state.seconds,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
