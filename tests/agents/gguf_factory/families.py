"""Tiny random bases of the families that people fine-tune, with tokenizers and chat templates of each family's form.

Each builder trains its tokenizer on the project's own text (milliseconds), makes two layers of random weights with the
family's own network (biases, norms of queries and keys, soft-capping, sliding windows), and writes the folder as the
hub has it: tokenizer.json and tokenizer.model where the family has both, generation_config.json with all its end tokens.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.agents.gguf_factory.bases import QA, ROOT

TEMPLATES = Path(__file__).with_name("templates")
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How one family is built, and what a test may expect of it."""

    name: str
    build: Callable[[Path], Path]
    turn_end: str
    system: bool = True


@cache
def corpus() -> tuple[str, ...]:
    """Return the project's own text in lines."""
    rows = [json.loads(line)["messages"] for line in QA.read_text(encoding="utf-8").splitlines()]
    general = (ROOT / "data" / "general.txt").read_text(encoding="utf-8").splitlines()
    return tuple(turn["content"] for row in rows for turn in row) + tuple(general[:200])


def llama2(folder: Path) -> Path:
    """SentencePiece with a dummy prefix, untied head, no pad token."""
    _sentencepiece(folder, ["<unk>", "<s>", "</s>"], add_dummy_prefix=True)
    _config(folder, "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "model_max_length": 1024,
        "clean_up_tokenization_spaces": False, "sp_model_kwargs": {}, "chat_template": _template("llama2"),
        "added_tokens_decoder": _added(["<unk>", "<s>", "</s>"], 0),
    })  # fmt: skip
    _tokenizer_json(folder)
    _weights(folder, "llama", vocab_size=SPM_SIZE, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    return folder


def llama3(folder: Path) -> Path:
    """Byte-level BPE that ignores merges, tied head, three end tokens, no pad token, scaled rotary embeddings."""
    specials = [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>",
        "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    ]  # fmt: skip
    first = _byte_level(folder, LLAMA3, specials, ignore_merges=True, bos="<|begin_of_text|>")
    _config(folder, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072, "chat_template": _template("llama3"), "added_tokens_decoder": _added(specials, first),
    })  # fmt: skip
    ends = [first + 1, first + 6, first + 7]
    _weights(
        folder, "llama", vocab_size=first + len(specials), tie_word_embeddings=True, bos_token_id=first,
        eos_token_id=ends, rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "high_freq_factor": 4.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 256,
        },
    )  # fmt: skip
    return folder


def qwen2(folder: Path) -> Path:
    """Byte-level BPE under NFC, biases on query, key and value, untied head in several files, spare embedding rows."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    first = _byte_level(folder, QWEN2, specials, nfc=True)
    _qwen_settings(folder, "qwen2", specials, first)
    _weights(
        folder, "qwen2", shard="1MB", vocab_size=-(-(first + len(specials)) // 64) * 64, tie_word_embeddings=False,
        bos_token_id=first, eos_token_id=[first + 2, first], sliding_window=None, use_sliding_window=False,
    )  # fmt: skip
    return folder


def qwen3(folder: Path) -> Path:
    """Qwen2's tokenizer with thinking marks, normed queries and keys, heads wider than the model, in bfloat16."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    first = _byte_level(folder, QWEN2, specials, nfc=True, plain=("<think>", "</think>"))
    _qwen_settings(folder, "qwen3", specials, first)
    _weights(
        folder, "qwen3", dtype="bfloat16", vocab_size=-(-(first + len(specials)) // 64) * 64, tie_word_embeddings=True,
        head_dim=96, bos_token_id=first, eos_token_id=[first + 2, first], sliding_window=None, use_sliding_window=False,
    )  # fmt: skip
    return folder


def gemma2(folder: Path) -> Path:
    """SentencePiece without a prefix, soft-capped logits, four norms a layer, windows; an end of turn that is not eos."""
    _gemma_tokenizer(folder, "gemma2")
    _weights(
        folder, "gemma2", vocab_size=SPM_SIZE, bos_token_id=2, eos_token_id=[1, END_OF_TURN], pad_token_id=0,
        sliding_window=64, query_pre_attn_scalar=64, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        hidden_activation="gelu_pytorch_tanh",
    )  # fmt: skip
    return folder


def gemma3(folder: Path) -> Path:
    """Gemma2's tokenizer, a system turn that goes into the first question, normed queries and keys, short windows."""
    _gemma_tokenizer(folder, "gemma3")
    _weights(
        folder, "gemma3_text", vocab_size=SPM_SIZE, bos_token_id=2, eos_token_id=[1, END_OF_TURN], pad_token_id=0,
        sliding_window=32, query_pre_attn_scalar=64, hidden_activation="gelu_pytorch_tanh", num_hidden_layers=6,
        intermediate_size=256,  # six layers, of which the last sees everything: llama.cpp knows no other order
    )  # fmt: skip
    return folder


def granite(folder: Path) -> Path:
    """Scaled logits, residuals and attention: an architecture that is known to all tools, but not to ours."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    first = _byte_level(folder, QWEN2, specials)
    _qwen_settings(folder, "qwen2", specials, first)
    _weights(
        folder, "granite", vocab_size=first + len(specials), tie_word_embeddings=True, bos_token_id=first,
        eos_token_id=first + 2, pad_token_id=first, logits_scaling=8.0, residual_multiplier=0.22, embedding_multiplier=12.0,
        attention_multiplier=0.0156,
    )  # fmt: skip
    return folder


FAMILIES = {
    family.name: family
    for family in (
        Family("llama2", llama2, "</s>"), Family("llama3", llama3, "<|eot_id|>"), Family("qwen2", qwen2, "<|im_end|>"),
        Family("qwen3", qwen3, "<|im_end|>"), Family("gemma2", gemma2, "<end_of_turn>", system=False),
        Family("gemma3", gemma3, "<end_of_turn>"),
    )
}  # fmt: skip

SPM_SIZE = 512
END_OF_TURN = 5  # 107 in the real ones
GEMMA_MARKERS = ["<end_of_turn>", "<start_of_turn>"]


def byte_level(
    texts: Sequence[str], pattern: str, *, size: int = 400, nfc: bool = False, ignore_merges: bool = False
) -> Any:
    """Return a byte-level BPE of the `tokenizers` library, trained on texts that a regular expression cuts."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(
    folder: Path, pattern: str, specials: list[str], *, nfc: bool = False, ignore_merges: bool = False,
    bos: str | None = None, plain: tuple[str, ...] = (),
) -> int:  # fmt: skip
    """Write tokenizer.json and return the id of the first special token."""
    from tokenizers import AddedToken, processors

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level(corpus(), pattern, nfc=nfc, ignore_merges=ignore_merges)
    first: int = tokenizer.get_vocab_size()
    for token in specials:
        added = [AddedToken(token, normalized=False, special=token not in plain)]
        (tokenizer.add_tokens if token in plain else tokenizer.add_special_tokens)(added)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        tokenizer.post_processor = processors.Sequence([
            tokenizer.post_processor,
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, first)]),
        ])  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    return first


def _qwen_settings(folder: Path, name: str, specials: list[str], first: int) -> None:
    _config(folder, "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "errors": "replace",
        "split_special_tokens": False, "model_max_length": 131072, "clean_up_tokenization_spaces": False,
        "additional_special_tokens": specials[1:3], "chat_template": _template(name),
        "added_tokens_decoder": _added(specials, first, plain=("<think>", "</think>")),
    })  # fmt: skip


@cache
def _trained(names: tuple[str, ...], symbols: tuple[str, ...], add_dummy_prefix: bool) -> bytes:
    """Return a SentencePiece model whose controls are `names` in this order, <unk> among them."""
    import sentencepiece

    places = {name: index for index, name in enumerate(names)}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=SPM_SIZE,
        byte_fallback=True, character_coverage=0.999, normalization_rule_name="identity", split_digits=True,
        add_dummy_prefix=add_dummy_prefix, remove_extra_whitespaces=False, unk_id=places["<unk>"],
        bos_id=places.get("<s>", places.get("<bos>", -1)), eos_id=places.get("</s>", places.get("<eos>", -1)),
        pad_id=places.get("<pad>", -1), bos_piece="<s>" if "<s>" in places else "<bos>",
        eos_piece="</s>" if "</s>" in places else "<eos>", pad_piece="<pad>", unk_piece="<unk>",
        user_defined_symbols=list(symbols), minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def _sentencepiece(folder: Path, names: list[str], symbols: Sequence[str] = (), *, add_dummy_prefix: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_trained(tuple(names), tuple(symbols), add_dummy_prefix))


def _gemma_tokenizer(folder: Path, name: str) -> None:
    names = ["<pad>", "<eos>", "<bos>", "<unk>"]
    symbols = ["<mask>", *GEMMA_MARKERS, "\n\n", "▁▁"]
    _sentencepiece(folder, names, symbols, add_dummy_prefix=False)
    _config(folder, "tokenizer_config.json", {
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>",
        "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False, "additional_special_tokens": GEMMA_MARKERS[::-1], "sp_model_kwargs": {},
        "model_max_length": 1_000_000, "use_default_system_prompt": False, "chat_template": _template(name),
        "added_tokens_decoder": _added([*names, *symbols], 0, plain=("<mask>", "\n\n", "▁▁")),
    })  # fmt: skip
    _tokenizer_json(folder)


def _tokenizer_json(folder: Path) -> None:
    """Write the tokenizer.json that the hub has beside tokenizer.model."""
    from agents.gguf_factory import chat

    chat.load(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))


def _added(tokens: Sequence[str], first: int, plain: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    return {
        str(first + place): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token not in plain,
        }
        for place, token in enumerate(tokens)
    }  # fmt: skip


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _config(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _weights(folder: Path, kind: str, *, shard: str = "5GB", dtype: str = "float32", **settings: Any) -> None:
    """Write config.json, generation_config.json and random weights, biases and norms of a model type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SHAPE, **settings})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(0, 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    model.generation_config.save_pretrained(folder)
