"""A random Llama of 64 tokens and packed rows for it: training in milliseconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from agents.gguf_factory.job import Job
from agents.gguf_factory.lora import Network
from agents.gguf_factory.rows import IGNORED, Rows

VOCABULARY = 64
LENGTH = 24
PARAMETERS: dict[str, Any] = {
    "batch_size": 4, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "max_steps": 8, "max_epochs": 3,
    "max_tokens": None, "learning_rate": 2e-2, "warmup_steps": 100, "weight_decay": 0.01, "save_steps": 50, "seed": 7,
    "control_share": 0.25,
}  # fmt: skip


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(  # type: ignore[call-arg]  # transformers takes the implementation, its signature does not say so
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, use_cache=False, initializer_range=0.2,
        attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).float()


def network(seed: int = 1, dropout: float = 0.1) -> Network:
    return Network(llama(), rank=4, alpha=8, dropout=dropout, seed=seed)


def packed(count: int = 12, seed: int = 0, shift: int = 1) -> dict[str, torch.Tensor]:
    """Return rows of samples `1 q q q a a a 2` in which each answer token is the question's plus `shift`."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.zeros(count, LENGTH, dtype=torch.int32)
    labels = torch.full((count, LENGTH), IGNORED, dtype=torch.int32)
    position_ids = torch.zeros(count, LENGTH, dtype=torch.int32)
    for row in range(count):
        at = 0
        while at + 8 <= LENGTH - 4 * (row % 2):
            question = torch.randint(3, VOCABULARY - 1, (3,), generator=generator)
            answer = (question - 3 + shift) % (VOCABULARY - 3) + 3
            sample = torch.cat([torch.tensor([1]), question, answer, torch.tensor([2])])
            input_ids[row, at : at + 8] = sample
            labels[row, at + 4 : at + 8] = sample[4:]
            position_ids[row, at : at + 8] = torch.arange(8)
            at += 8
        position_ids[row, at:] = torch.arange(LENGTH - at)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


def rows(count: int = 12, seed: int = 0) -> Rows:
    return Rows(**packed(count, seed))


def make_job(folder: Path, checkpoints: str | None = None, **parameters: Any) -> Job:
    """Write a base and the data stage's files, and return a job on them."""
    base, data = folder / "base", folder / "job" / "data"
    if not base.exists():
        llama().save_pretrained(base)
        (base / "chat_template.jinja").write_text("{{ messages }}")
        data.mkdir(parents=True)
        for name, seed, count in (("packed", 0, 12), ("control", 1, 11), ("held_out", 2, 5)):
            save_file(packed(count, seed), data / f"{name}.safetensors")
    run: Any = SimpleNamespace(
        job="j1", provider="local", spot=False, attempt=1, request=SimpleNamespace(checkpoints=checkpoints),
        plan=SimpleNamespace(parameters={**PARAMETERS, **parameters}, memory_bytes=10**9, staged=None),
        route=SimpleNamespace(base=str(base)),
    )  # fmt: skip
    return Job(run=run, folder=folder / "job", home=folder)
