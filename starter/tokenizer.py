"""Train the starter base's SentencePiece tokenizer and write it as a folder that transformers and llama.cpp read alike.

The options are those that gave equal ids in both (see docs/decisions/0002): BPE with byte fallback, identity
normalisation, chat markers as control symbols, no dummy prefix, no whitespace removal.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import sentencepiece

from starter.corpus import ASSISTANT, END, PARTS, SYSTEM, USER, chat_rows, documents

VOCABULARY = 8192
TRAINING_BYTES = 12_000_000  # more text moves the merges little and costs minutes

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def training_lines(data: Path, seed: int) -> list[str]:
    """Return about TRAINING_BYTES of text, each part in proportion to its size."""
    texts = {part: list(documents(data / "general/pretrain", part)) for part in PARTS}
    for part, of_part in texts.items():
        random.Random(f"{seed}:{part}").shuffle(of_part)
    texts["chat"] = ["\n".join(text for _, text in row) for row in chat_rows(data / "domains", seed)]
    total = sum(len(text) for part in texts.values() for text in part)
    lines: list[str] = []
    for of_part in texts.values():
        budget = TRAINING_BYTES * sum(map(len, of_part)) / total
        for text in of_part:
            if budget <= 0:
                break
            budget -= len(text)
            lines += [line for line in text.splitlines() if line]
    return lines


def train(data: Path, out: Path, seed: int, size: int = VOCABULARY) -> None:
    """Train the model and write tokenizer.model, tokenizer_config.json and chat_template.jinja to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(training_lines(data, seed)),
            model_writer=file,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            control_symbols=[SYSTEM, USER, ASSISTANT, END],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=16384,
            num_threads=2,
            minloglevel=1,
        )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_prefix_space": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": END,
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT, END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain and domains")
    parser.add_argument("--out", type=Path, default=Path("models/starter"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.data, options.out, options.seed)


if __name__ == "__main__":
    main()
