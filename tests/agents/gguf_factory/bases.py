"""A base model of random weights with the starter's tokenizer, small enough to be made in each test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[3]
STARTER = ROOT / "models" / "starter"
QA = ROOT / "data" / "time_management.jsonl"
QA_EVAL = ROOT / "data" / "time_management_eval.jsonl"


def llama_config(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8192,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 6, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    return {**config, **changes}


def make_base(folder: Path, **changes: Any) -> Path:
    """Write a tiny Llama in transformers' format."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(STARTER / name, folder / name)
    config = llama_config(**changes)
    (folder / "config.json").write_text(json.dumps(config))
    width, forward = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (8192, width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (width, width), f"{at}self_attn.k_proj.weight": (kv, width),
            f"{at}self_attn.v_proj.weight": (kv, width), f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}mlp.gate_proj.weight": (forward, width), f"{at}mlp.up_proj.weight": (forward, width),
            f"{at}mlp.down_proj.weight": (width, forward), f"{at}input_layernorm.weight": (width,),
            f"{at}post_attention_layernorm.weight": (width,),
        }  # fmt: skip
    generator = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else generator.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    return folder
