"""Write the pre-trained starter base as a model folder that transformers and llama.cpp read.

    python -m starter.export --run starter/run --out models/starter

The network is compared with transformers' Llama in fp32 before anything is written; the weights are cast to bf16 once.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from starter.corpus import ASSISTANT, END, USER
from starter.model import Llama, Samples
from starter.pretrain import load

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
TOLERANCE = 1e-3  # logits, fp32: rounding gives about 1e-5, a wrong rope or permutation more than 1
TEXT = "A good night begins in the afternoon. Coffee after two o'clock keeps many people awake."


@dataclass(frozen=True)
class Exported:
    """What was written: where, layers, weights (embeddings counted once), steps, largest difference of logits."""

    folder: Path
    layers: int
    parameters: int
    step: int
    difference: float


def config(model: Llama, end: int) -> LlamaConfig:
    """Return transformers' configuration of the network; `end` is the id of the turn's end."""
    shape = model.shape
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=len(model.model.layers),
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=end,
        pad_token_id=0,
    )


@torch.no_grad()
def difference(ours: Llama, theirs: LlamaForCausalLM, tokens: list[int]) -> float:
    """Return the largest absolute difference of both networks' logits on a text."""
    row = torch.tensor(tokens)
    logits: Tensor = ours.hidden(row, Samples(row, tokens[0], len(row))) @ ours.model.embed_tokens.weight.t()
    return float((logits - theirs(input_ids=row[None]).logits[0]).abs().max())


def export(run: Path, out: Path, tokenizer: Path) -> Exported:
    """Write config.json, generation_config.json, model.safetensors (bf16) and the tokenizer's files to `out`.

    Raises:
        FileNotFoundError: `run` holds no checkpoint, or `tokenizer` lacks a file.
        ValueError: the tokenizer does not belong to the network, or transformers' logits differ from ours.
    """
    loaded = load(run)
    if loaded is None:
        raise FileNotFoundError(f"{run / 'checkpoint.safetensors'} does not exist; run python -m starter.pretrain first")
    ours, _, meta = loaded
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    if processor.vocab_size() != ours.shape.vocabulary:
        raise ValueError(f"{tokenizer} has {processor.vocab_size()} tokens, the network {ours.shape.vocabulary}")
    end = processor.piece_to_id(END)
    settings = config(ours, end)
    theirs = LlamaForCausalLM(settings).eval()
    weights = ours.state_dict()
    report = theirs.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, strict=False)
    if report.unexpected_keys or report.missing_keys:
        raise ValueError(f"weights do not match: missing {report.missing_keys}, unexpected {report.unexpected_keys}")
    text = processor.encode(TEXT)
    ids = [1, processor.piece_to_id(USER), *text, end, processor.piece_to_id(ASSISTANT), *text, end]
    worst = difference(ours, theirs, ids)
    if not worst < TOLERANCE:
        raise ValueError(f"transformers' logits differ from the network's by {worst:.2g}, more than {TOLERANCE}")
    out.mkdir(parents=True, exist_ok=True)
    theirs.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=0)
    theirs.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # the writer makes it readable by its owner alone
    for name in TOKENIZER_FILES:
        if (out / name).resolve() != (tokenizer / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    return Exported(out, len(ours.model.layers), parameters, int(meta["step"]), worst)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("starter/run"), help="folder with checkpoint.safetensors")
    parser.add_argument("--out", type=Path, default=Path("models/starter"))
    parser.add_argument("--tokenizer", type=Path, default=Path("models/starter"), help="folder with tokenizer.model")
    options = parser.parse_args()
    done = export(options.run, options.out, options.tokenizer)
    print(
        f"{done.folder}: {done.layers} layers, {done.parameters:,} weights after {done.step} steps; "
        f"logits differ by at most {done.difference:.1e}"
    )


if __name__ == "__main__":
    main()
