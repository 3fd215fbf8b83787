"""What the gates are measured on: a finished file, and whatever it is to be compared with. Knows no job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import configs
from agents.gguf_factory import chat, llama
from agents.gguf_factory.chat import Sample
from agents.gguf_factory.formats import Messages
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.llama import Model

GENERAL = configs.tiers.PROJECT / "data" / "general.txt"
LENGTH = 1024  # most tokens of one conversation

# Bounds of what is measured: they keep the stage under half a minute on two cores with 12 M parameters.
ROWS, TOKENS = 80, 12_000  # held-out conversations and tokens for the perplexity of answers
QUESTIONS = 40
TRAINED_TOKENS = 3_000  # of training conversations
PAIRS, PAIR_TOKENS = 40, 3_000  # answers read after their own question and after another's


@dataclass(frozen=True)
class ModelFile:
    """A model as llama.cpp opens it. The one place where the gates open the model under test and its peers.

    Attributes:
        path: the whole model.
        adapter: a LoRA that is used on it; None: the model alone.
    """

    path: Path
    adapter: Path | None = None

    @contextmanager
    def open(
        self, *, n_ctx: int, cores: int, n_batch: int = 512, sequences: int = 1, exact: bool = False
    ) -> Iterator[Model]:
        """Load it for a measurement; `cores` are free for it, the other arguments are those of `llama.load`.

        Raises:
            LabError: TOOLCHAIN, llama.cpp does not take the file; BAD_DATA, the adapter does not fit it.
        """
        threads = llama.threads_for(self.path, cores)
        with llama.load(
            self.path, n_ctx=n_ctx, n_batch=n_batch, sequences=sequences, threads=threads, exact=exact
        ) as model:
            if self.adapter is not None:
                model.use(model.load_adapter(self.adapter))
            yield model

    @property
    def file(self) -> Path:
        """The file that was made: the adapter, or the whole model."""
        return self.adapter or self.path

    @property
    def bytes(self) -> int:
        """Bytes of the product, which the gate `file_bytes` judges."""
        return self.file.stat().st_size


@dataclass
class Subject:
    """A finished file and what it is measured against. What is None or empty was not given.

    Args:
        product: the finished file, or an adapter on its base.
        tokenizer_folder: the base's or the merged model's folder, with which token ids and template must agree.
        base: makes or finds the untouched base as an F16 file, or quantised as an adapter is used on it; called when a gate
            first needs it.
        held_out: conversations that were never trained on.
        train: conversations that were trained on.
        exact: the tuned model in F16, before quantising.
        network: loads the tuned model in torch; called when a gate first needs it.
        kind: the quantisation that was asked for, such as Q4_K_M.
        sha256: of the product as its maker wrote it down.
        lesson: what the training measured against its twin on shuffled answers.
        general: text for the forgetting gate, documents separated by a line `<|doc|>`.
    """

    product: ModelFile
    tokenizer_folder: Path
    base: Callable[[], ModelFile]
    held_out: Sequence[Messages]
    train: Sequence[Messages] = ()
    exact: ModelFile | None = None
    network: Callable[[], Any] | None = None
    kind: str = ""
    sha256: str | None = None
    lesson: Measured = field(default_factory=lambda: Measured(None, "no training to ask", given=False))
    general: Path = GENERAL

    @cached_property
    def tokenizer(self) -> Any:
        return chat.load(self.tokenizer_folder)

    @cached_property
    def length(self) -> int:
        """Most tokens of one conversation: what the product was trained to read, at most LENGTH."""
        values = read_header(self.product.path).values
        return min(LENGTH, int(values.get(f"{values.get('general.architecture')}.context_length", LENGTH)))

    @property
    def conversations(self) -> Sequence[Messages]:
        """The held-out conversations that are measured."""
        return self.held_out[:ROWS]

    @cached_property
    def samples(self) -> list[Sample]:
        """The held-out conversations as token ids, together at most TOKENS."""
        return self._samples(self.conversations, TOKENS)

    @cached_property
    def trained_samples(self) -> list[Sample]:
        """Conversations that were trained on, evenly over all, as token ids, together at most TRAINED_TOKENS."""
        count = min(ROWS, len(self.train))
        return self._samples([self.train[i * len(self.train) // count] for i in range(count)], TRAINED_TOKENS)

    @cached_property
    def pairs(self) -> tuple[list[Sample], list[Sample]]:
        """First held-out answers after their own question, and the same answers after the next row's question."""
        firsts = [turns for messages in self.conversations[:PAIRS] if (turns := _first_exchange(messages))]
        own: list[Sample] = []
        other: list[Sample] = []
        tokens = 0
        for index, turns in enumerate(firsts):
            asked = firsts[(index + 1) % len(firsts)][-2]
            if asked["content"] == turns[-2]["content"]:
                continue
            swapped = [*turns[:-2], asked, turns[-1]]
            pair = [chat.samples(self.tokenizer, messages, self.length) for messages in (turns, swapped)]
            if not all(pair) or any(sample.truncated for samples in pair for sample in samples):
                continue
            tokens += len(pair[0][0].ids)
            if own and tokens > PAIR_TOKENS:
                break
            own += pair[0]
            other += pair[1]
        return own, other

    @cached_property
    def foreign(self) -> str | None:
        """Say why the base's token ids cannot be read by the product, or None where they can."""
        tensors = read_header(self.product.path).tensors
        size = next((tensor.shape[1] for tensor in tensors if tensor.name == "token_embd.weight"), None)
        most = max((max(sample.ids) for sample in self.samples), default=0)
        if size is None or most < size:
            return None
        return f"the file has {size} tokens, but the base's tokenizer gives the id {most}"

    def _samples(self, conversations: Sequence[Messages], most: int) -> list[Sample]:
        found: list[Sample] = []
        tokens = 0
        for messages in conversations:
            for sample in chat.samples(self.tokenizer, messages, self.length):
                if found and tokens + len(sample.ids) > most:
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


def _first_exchange(messages: Messages) -> Messages | None:
    """Return a conversation up to its first answer, or None where no question stands before it."""
    first = next((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), 0)
    return messages[: first + 1] if first and messages[first - 1]["role"] == "user" else None
