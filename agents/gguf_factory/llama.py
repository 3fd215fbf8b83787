"""A thin wrapper of llama.cpp's C API: tokens, logits, log-likelihoods, adapters. Knows no jobs and no gates.

`llama_cpp.Llama` is not used: with logits_all it is slow and its logits are known to be wrong.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from protocol import Code, LabError

Logits = npt.NDArray[np.float32]

ERROR = 4  # GGML_LOG_LEVEL_ERROR (ggml.h)
_errors: deque[str] = deque(maxlen=4)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, user_data: object) -> None:
    """llama.cpp prints pages at every load; its last errors are kept, as a return value says only that there was one."""
    if level == ERROR:
        _errors.append(text.decode("utf-8", errors="replace").strip())


BASE_SHA256 = "meetara.base.sha256"
"""Key in a base's and in an adapter's file: the content of the base that it is, or belongs to (`adapter.content`)."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA in the memory of one loaded model; made by `Model.load_adapter`.

    Attributes:
        path: the file it was read from.
        values: the file's key-value pairs but its arrays, as text.
    """

    path: Path
    values: dict[str, str]
    handle: Any


class Model:
    """A loaded GGUF with one context, and the adapters that were loaded beside it. Made by `load`."""

    def __init__(self, path: Path, model: object, context: object, n_ctx: int, n_batch: int, sequences: int) -> None:
        self.path = path
        self.adapter: Adapter | None = None
        self._model = model
        self._context = context
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.sequences = sequences
        self.vocabulary_size = int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))

    @property
    def bos(self) -> int:
        return int(llama_cpp.llama_vocab_bos(self._vocabulary))

    @property
    def eos(self) -> int:
        return int(llama_cpp.llama_vocab_eos(self._vocabulary))

    def ends(self, token: int) -> bool:
        """Tell whether llama.cpp stops an answer at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file, or None."""
        text = llama_cpp.llama_model_chat_template(self._model, None)
        return None if text is None else text.decode("utf-8")

    def conversation_template(self) -> str:
        """Return the chat template in the file.

        Raises:
            LabError: BAD_DATA, it has none.
        """
        if (found := self.chat_template) is None:
            raise LabError(
                Code.BAD_DATA, f"{self.path} has no chat template: it is not a chat model.",
                advice="Name a model that was tuned on conversations.", file=str(self.path),
            )  # fmt: skip
        return found

    def value(self, key: str) -> str | None:
        """Return one of the file's key-value pairs as text, or None where it has none."""
        return _text(lambda buffer, size: llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, size))

    def load_adapter(self, path: Path) -> Adapter:
        """Read a LoRA's GGUF into memory beside the model. It changes nothing until `use`.

        Raises:
            LabError: NOT_FOUND, no such file; BAD_DATA, it is no whole LoRA, or one of another base.
        """
        if not path.is_file():
            raise LabError(Code.NOT_FOUND, f"there is no file {path}.", file=str(path))
        _errors.clear()
        handle = llama_cpp.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not handle:
            why = _errors[-1].rpartition("failed to apply lora adapter: ")[2] if _errors else "no reason given"
            raise LabError(
                Code.BAD_DATA, f"{path} does not fit {self.path} as an adapter: {why}.",
                advice="Load it on the base that it was trained on; its manifest names that.", file=str(path),
            )  # fmt: skip
        adapter = Adapter(path, _values(handle), handle)
        ours, theirs = self.value(BASE_SHA256), adapter.values.get(BASE_SHA256)
        if ours and theirs and ours != theirs:
            llama_cpp.llama_adapter_lora_free(handle)
            raise LabError(
                Code.BAD_DATA,
                f"{path} was trained on another base ({theirs[:16]}) than {self.path} is ({ours[:16]}), though of the same shape.",
                advice="Load it on the base that it was trained on; its manifest names that.", file=str(path),
                wanted=theirs, found=ours,
            )  # fmt: skip
        return adapter

    def use(self, adapter: Adapter | None) -> None:
        """Answer with a loaded adapter from now on; None: as the base alone. What was read before is forgotten."""
        if adapter is None:
            status = llama_cpp.llama_set_adapters_lora(self._context, None, 0, None)
        else:
            one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
            status = llama_cpp.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))
        if status != 0:
            raise LabError(Code.TOOLCHAIN, f"llama_set_adapters_lora returned {status}.", advice="Run meetara doctor.")
        self.adapter = adapter
        self.clear()

    def drop(self, adapter: Adapter) -> None:
        """Free a loaded adapter's memory; the one in use is taken out of use first."""
        if self.adapter is adapter:
            self.use(None)
        llama_cpp.llama_adapter_lora_free(adapter.handle)

    def tokenize(self, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: any text.
            special: read control tokens written in the text, such as <|user|>, as one token.
            bos: let llama.cpp add what the file says belongs before a text.
        """
        data = text.encode("utf-8")
        room = len(data) + 2  # a token is at least one byte; one more for each of bos and eos
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), ids, room, bos, special)
        if count < 0:
            raise LabError(Code.INTERNAL, f"a text of {len(data)} bytes has {-count} tokens.")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Return a token's bytes, control tokens as written in a template."""
        buffer = ctypes.create_string_buffer(512)
        count = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, 512, 0, True)
        return buffer.raw[: max(count, 0)]

    def text(self, ids: Sequence[int]) -> str:
        """Turn ids into text; broken UTF-8 is replaced."""
        return b"".join(self.piece(token) for token in ids).decode("utf-8", errors="replace")

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after every one of the ids, [len(ids), vocabulary].

        Raises:
            LabError: the ids do not fit the context.
        """
        parts = [part.copy() for part in self._prefill(ids)]
        return np.concatenate(parts)

    def read(self, ids: Sequence[int]) -> None:
        """Read ids and forget what came of it; `load`'s `watch` sees it all.

        Raises:
            LabError: the ids do not fit the context, or the watch ended the computation.
        """
        for _ in self._prefill(ids):
            pass

    def log_likelihood(self, ids: Sequence[int], mask: Sequence[bool]) -> tuple[float, int]:
        """Return the sum of log p (nats) of the ids whose mask is true, and how many those are; the first never counts.

        Raises:
            LabError: the ids do not fit the context.
        """
        total, count, done = 0.0, 0, 0
        wanted = np.asarray(mask, dtype=bool)
        following = np.asarray(ids)
        for part in self._prefill(ids):
            rows = np.flatnonzero(wanted[done + 1 : done + 1 + len(part)])
            if len(rows):
                chosen = part[rows]
                chosen -= chosen.max(axis=1, keepdims=True)
                normaliser = np.log(np.exp(chosen).sum(axis=1, dtype=np.float64))
                total += float((chosen[np.arange(len(rows)), following[done + 1 + rows]] - normaliser).sum())
                count += len(rows)
            done += len(part)
        return total, count

    def _prefill(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits of each chunk of ids; a chunk's array is valid until the next."""
        if not 0 < len(ids) <= self.n_ctx:
            raise LabError(Code.INTERNAL, f"{len(ids)} tokens do not fit a context of {self.n_ctx}.")
        self.clear()
        for start in range(0, len(ids), self.n_batch):
            chunk = ids[start : start + self.n_batch]
            entries = [(token, start + place, 0) for place, token in enumerate(chunk)]
            self.decode(entries, [True] * len(chunk))
            pointer = llama_cpp.llama_get_logits(self._context)
            yield np.ctypeslib.as_array(pointer, shape=(len(chunk), self.vocabulary_size))

    def feed(self, ids: Sequence[int], sequence: int) -> None:
        """Read a prompt into a sequence; only its last row gets logits."""
        for start in range(0, len(ids), self.n_batch):
            chunk = ids[start : start + self.n_batch]
            entries = [(token, start + place, sequence) for place, token in enumerate(chunk)]
            last = start + len(chunk) == len(ids)
            self.decode(entries, [last and place == len(chunk) - 1 for place in range(len(chunk))])

    def decode(self, entries: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> None:
        """Read tokens, each given with its position and sequence; logits are kept of those that are wanted.

        Raises:
            LabError: TOOLCHAIN, llama.cpp refused them.
        """
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, sequence) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = wanted[place]
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise LabError(
                Code.TOOLCHAIN,
                f"llama_decode returned {status} for {len(entries)} tokens.",
                advice="Run meetara doctor.",
            )

    def sample(self, sampler: object, row: int) -> int:
        """Draw a token with a sampler of llama.cpp's from the logits of the last decode; row -1 is the last one."""
        return int(llama_cpp.llama_sampler_sample(sampler, self._context, row))

    def clear(self) -> None:
        """Forget all that was read."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def _text(ask: Callable[[object, int], int]) -> str | None:
    """Return what a function of llama.cpp writes into a buffer, or None where it returns a negative length."""
    size = ask(None, 0)
    if size < 0:
        return None
    buffer = ctypes.create_string_buffer(size + 1)
    ask(buffer, size + 1)
    return buffer.value.decode("utf-8", errors="replace")


def _values(handle: object) -> dict[str, str]:
    """Return an adapter's key-value pairs as text."""
    found = {}
    for index in range(llama_cpp.llama_adapter_meta_count(handle)):
        key = _text(lambda buffer, size, at=index: llama_cpp.llama_adapter_meta_key_by_index(handle, at, buffer, size))  # type: ignore[misc]
        value = _text(lambda buffer, size, at=index: llama_cpp.llama_adapter_meta_val_str_by_index(handle, at, buffer, size))  # type: ignore[misc]
        if key is not None and value is not None:
            found[key] = value
    return found


SMALL = 200_000_000  # bytes; below, one layer's work is shorter than the threads' meeting after it


def threads_for(path: Path, cores: int) -> int:
    """Return how many threads to use on a file when `cores` cores are free: one for small files."""
    return 1 if path.stat().st_size < SMALL else max(1, cores)


@contextmanager
def load(
    path: Path,
    *,
    n_ctx: int,
    n_batch: int = 512,
    sequences: int = 1,
    threads: int = 1,
    repack: bool = True,
    exact: bool = False,
    watch: Callable[[int, bool, object], bool] | None = None,
) -> Iterator[Model]:
    """Load a GGUF by file mapping, on the CPU.

    Args:
        path: the file.
        n_ctx: tokens of the whole context; each sequence gets an equal share.
        n_batch: most tokens of one decode; the context's buffers grow with it (about 4 bytes x vocabulary a token).
        sequences: answers that can be drawn at a time.
        threads: CPU threads. More than one wait for each other by spinning: on a machine that is busy with other work
            two threads were 20 times slower than one (12 M parameters, 2 cores). See `threads_for`.
        repack: let llama.cpp copy quantised weights into a faster layout; costs private memory and load time.
        exact: keep keys and values in 32 bits, for comparisons with torch.
        watch: asked and shown each operation of each decode, as ggml_backend_sched_eval_callback (ggml-backend.h).

    Raises:
        LabError: TOOLCHAIN, llama.cpp does not take the file.
    """
    llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    options.use_extra_bufts = repack
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise LabError(
            Code.TOOLCHAIN,
            f"llama.cpp does not load {path}.",
            advice="The file is missing, truncated or of another kind: run the job's convert stage again.",
            file=str(path),
        )
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = n_ctx
    settings.n_batch = settings.n_ubatch = n_batch
    settings.n_seq_max = sequences
    settings.n_threads = settings.n_threads_batch = threads
    settings.no_perf = True
    if exact:
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
    if watch is not None:
        settings.cb_eval = llama_cpp.ggml_backend_sched_eval_callback(watch)
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        llama_cpp.llama_model_free(model)
        raise LabError(
            Code.TOOLCHAIN,
            f"llama.cpp makes no context of {n_ctx} tokens for {path}.",
            advice="Choose a smaller context, or free memory.",
            file=str(path),
        )
    loaded = Model(path, model, context, n_ctx, n_batch, sequences)
    try:
        yield loaded
    finally:
        loaded.close()
