"""Send a tiny random model of each architecture that both transformers and llama.cpp's converter know the whole way.

    python -m benchmarks.architectures [NAME…]     # a JSON line each: the step that was reached, KL, ids that differ

Adapter, check of the head, samples kept apart, merge, converter, llama.cpp; each in a process of its own. Sizes are made
up, so a difference may come from what a converter takes for granted of real ones. docs/bases.md has the results.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from agents.gguf_factory import chat, converter, fidelity, llama, lora, support, toolchain
from tests.agents.gguf_factory import families, tiny

LIMIT_S = 120  # of one architecture; some cannot be made small and would be built for minutes
TEXT = "Hello there, what is 1234 and why is the sky so blue today?"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "max_position_embeddings": 512, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512,
    "n_inner": 512, "d_model": 256, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, "ffn_dim": 512, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 256,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32, "v_head_dim": 64, "n_group": 1, "topk_group": 1, "shared_expert_intermediate_size": 256,
    "pad_token_id": None,
}  # fmt: skip
"""Names under which configs keep their sizes; those that a config has are set."""


def architectures() -> list[tuple[str, str]]:
    """Return model type and class of what both know."""
    known = support.converter_architectures(toolchain.check())
    pairs = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    return sorted((kind, name) for kind, names in pairs for name in ([names] if isinstance(names, str) else names) if name in known)


def make(kind: str, name: str, folder: Path, tokenizer: Path) -> None:
    """Write a random model with Llama 3's kind of tokenizer."""
    given = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    sizes = SIZES | {key: given[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    plain = type(AutoConfig.for_model(kind))()
    settings = {key: value for key, value in sizes.items() if hasattr(plain, key)}
    if layers := getattr(plain, "layer_types", None):
        settings["layer_types"] = [layers[0], layers[-1]]
    config = AutoConfig.for_model(kind, **settings)
    config.architectures = [name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    for file in TOKENIZER:
        shutil.copy(tokenizer / file, folder / file)


def go(kind: str, name: str, folder: Path, tokenizer: Path, found: dict[str, Any]) -> None:
    """Take one architecture the whole way, and note in `found` how far it came."""
    found["step"] = "making"
    make(kind, name, folder / "base", tokenizer)
    found["step"] = "adapter"
    network = lora.Network(lora.load_base(folder / "base"), rank=4, alpha=8, dropout=0.0, seed=1)
    batch = tiny.rows(2).take([0])
    network.check_head(batch)
    network.check_apart(batch)
    network.peft.train()
    network.loss(batch).backward()
    with torch.no_grad():
        for parameter in network.parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    found["modules"] = len(network.parameters) // 2
    network.save(folder / "adapter", name)
    found["step"] = "merge"
    tuned: Any = PeftModel.from_pretrained(lora.load_base(folder / "base"), str(folder / "adapter")).eval()
    tuned.merge_and_unload(safe_merge=True).save_pretrained(folder / "merged")
    for file in TOKENIZER:
        shutil.copy(tokenizer / file, folder / "merged" / file)
    found["step"] = "converter"
    convert(folder / "merged", folder / "f16.gguf", folder / "log")
    found["step"] = "llama.cpp"
    tokens = chat.load(folder / "merged")
    with llama.load(folder / "f16.gguf", n_ctx=256, exact=True) as model:
        found["ids"] = int(fidelity.tokenizer_ids(tokens, model, [TEXT]).value or 0)
        sample = tokens.encode(TEXT, add_special_tokens=False)
        network_ = lora.load_base(folder / "merged").eval()
        found["kl"], _, _ = fidelity.mean_divergences(network_, model, None, [sample])
    found["step"] = "done"


def convert(source: Path, target: Path, log: Path) -> None:
    """Convert in a fork, which has torch already; raises RuntimeError with the converter's last line."""
    pid = os.fork()
    if pid == 0:
        code = 1
        file = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            sys.path[:0] = toolchain.environment(toolchain.folder())["PYTHONPATH"].split(os.pathsep)
            converter.main([str(toolchain.folder() / "convert_hf_to_gguf.py"), "llama-bpe", str(source), str(target)])
            code = 0
        except SystemExit as end:
            code = int(bool(end.code))
        except BaseException:  # noqa: BLE001 - the boundary of this process
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    if os.waitpid(pid, 0)[1] or not target.is_file():
        raise RuntimeError(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1][:200])


def apart(kind: str, name: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Do `go` in a process of its own, for some end in native code."""
    read, write = os.pipe()
    pid = os.fork()
    found: dict[str, Any] = {"model_type": kind, "architecture": name}
    if pid == 0:
        signal.alarm(LIMIT_S)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            go(kind, name, folder, tokenizer, found)
        except BaseException as error:  # noqa: BLE001 - whatever a network or a converter raises is the result
            found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return dict(json.loads(text)) if text else {**found, "error": f"ended with status {status}"}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        tokenizer = families.llama3(Path(place) / "tokenizer")
        for kind, name in architectures():
            if not names or name in names:
                folder = Path(place) / name
                print(json.dumps(apart(kind, name, folder, tokenizer)), flush=True)
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
