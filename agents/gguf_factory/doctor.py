"""The doctor: does this machine's llama.cpp, with its converter, really turn a model into a file that says the same?

A random two-layer Llama goes the whole way: convert, quantise, load, compare logits with torch. Nearly all of its time is
the import of torch and transformers, so the converter runs in a fork of the process that has imported them for itself.
"""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from agents.gguf_factory import toolchain
from agents.gguf_factory.launcher import WARM
from configs.tiers import PROJECT
from protocol import LabError

STARTER = PROJECT / "models" / "starter"
KL_LIMIT = 1e-5  # the gate f16_kl's
ROOM = 4096  # bytes; llama.cpp's largest structure of parameters has 160
IDS = (1, 260, 300, 1000, 42, 777, 4000, 8000, 12, 6)


@dataclass(frozen=True)
class Check:
    """One finding: `value` is what was measured, `advice` how to mend it where `ok` is false."""

    name: str
    ok: bool
    value: str
    advice: str = ""


def doctor(tokenizer: Path = STARTER) -> list[Check]:
    """Check llama-cpp-python, its structures, its quantiser, the converter, and a small round trip; five seconds of a core."""
    return [
        _guarded("llama_cpp", _library), _guarded("structures", _structures), _guarded("quantiser", _quantiser),
        _guarded("converter", _converter), _guarded("round_trip", lambda: _round_trip(tokenizer)),
    ]  # fmt: skip


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except LabError as error:
        return Check(name, False, error.message, error.advice)
    except (ImportError, OSError, AttributeError, RuntimeError, ValueError) as error:
        return Check(name, False, f"{type(error).__name__}: {error}", "Run `make setup` again.")


def _library() -> Check:
    import llama_cpp

    version = toolchain.installed_version() or llama_cpp.__version__
    advice = f"The converter belongs to {toolchain.VERSION}: install llama-cpp-python=={toolchain.VERSION}."
    return Check("llama_cpp", version == toolchain.VERSION, version, "" if version == toolchain.VERSION else advice)


def _structures() -> Check:
    """Compare the size of each structure that is passed by value with what the library really writes of it.

    A function that returns a structure is given its place as a hidden first argument (System V ABI for x86-64), so its
    default parameters can be written over a pattern. Elsewhere the defaults alone tell (see `_quantiser`).
    """
    import llama_cpp
    from llama_cpp import llama_cpp as binding

    pairs = {
        "llama_model_params": "llama_model_default_params", "llama_context_params": "llama_context_default_params",
        "llama_model_quantize_params": "llama_model_quantize_default_params",
    }  # fmt: skip
    library = ctypes.CDLL(binding._lib._name)  # a handle of its own: the binding's functions keep their types
    measurable = platform.machine() in ("x86_64", "AMD64") and sys.platform != "win32"
    told: list[str] = []
    wrong: list[str] = []
    for name, function in pairs.items():
        structure = getattr(llama_cpp, name)
        size = ctypes.sizeof(structure)
        if not measurable:
            told.append(f"{name} {size} (not measured here)")
            continue
        written = _written(library[function])
        padded = -(-written // ctypes.alignment(structure)) * ctypes.alignment(structure)
        (told if padded == size else wrong).append(f"{name} {size}" + ("" if padded == size else f", really {padded}"))
    advice = "The Python wrapper and the library differ: reinstall llama-cpp-python." if wrong else ""
    return Check("structures", not wrong, ", ".join(wrong or told) + " bytes", advice)


def _written(function: Any) -> int:
    """Return how many bytes a function writes that returns a structure of at most `ROOM` bytes."""
    function.restype, function.argtypes = None, [ctypes.c_void_p]
    end = 0
    for pattern in (0x55, 0xAA):  # a byte that happens to be one is not the other
        room = (ctypes.c_ubyte * ROOM)(*[pattern] * ROOM)
        function(room)
        end = max([end, *(place + 1 for place, value in enumerate(room) if value != pattern)])
    return end


def _quantiser() -> Check:
    """Look whether the structure's fields lie where the library has them: a shifted one would give other defaults."""
    import llama_cpp

    if not callable(getattr(llama_cpp, "llama_model_quantize", None)):
        return Check("quantiser", False, "llama_model_quantize is missing", "Install the pinned llama-cpp-python.")
    found = llama_cpp.llama_model_quantize_default_params()
    # llama.cpp's defaults: all threads, Q8_0 (Q5_1 in older versions), no type forced, quantise the output too
    sane = (
        found.nthread == 0
        and found.ftype in (7, 9)
        and found.quantize_output_tensor
        and not (found.allow_requantize or found.only_copy or found.pure or found.keep_split or found.dry_run)
        and not found.imatrix
    )
    value = (
        f"defaults: nthread {found.nthread}, ftype {found.ftype}, quantize_output_tensor {found.quantize_output_tensor}"
    )
    advice = "" if sane else "The Python wrapper and the library differ: reinstall llama-cpp-python."
    return Check("quantiser", sane, value, advice)


def _converter() -> Check:
    return Check("converter", True, f"{toolchain.check()} ({toolchain.LIST_SHA256[:16]})")


def _round_trip(tokenizer: Path) -> Check:
    start = time.perf_counter()
    program = toolchain.converter()
    forks = WARM and "torch" not in sys.modules  # who has computed with torch already cannot be forked any more
    from transformers.models.llama import LlamaForCausalLM

    from agents.gguf_factory import child, convert, fidelity, llama, quantise

    with tempfile.TemporaryDirectory(prefix="meetara-doctor-") as name:
        folder = Path(name)
        write_tiny(folder / "model", tokenizer)
        with child.forking() if forks else nullcontext():
            convert.convert(folder / "model", folder / "f16.gguf", program=program)
            quantise.quantise(folder / "f16.gguf", folder / "q4.gguf", "Q4_K_M", None)
        network = LlamaForCausalLM.from_pretrained(folder / "model").eval()
        with (
            llama.load(folder / "f16.gguf", n_ctx=256, exact=True) as exact,
            llama.load(folder / "q4.gguf", n_ctx=256) as product,
        ):
            first, second, _ = fidelity.mean_divergences(network, exact, product, [list(IDS)])
    assert first is not None and second is not None
    ok = first <= KL_LIMIT and second < 1
    value = f"KL torch to F16 {first:.1e}, F16 to Q4_K_M {second:.1e}, {time.perf_counter() - start:.1f} s"
    return Check("round_trip", ok, value, "" if ok else "Reinstall llama-cpp-python and run `make setup` again.")


def write_tiny(folder: Path, tokenizer: Path, *, layers: int = 2, seed: int = 0) -> None:
    """Write a random Llama (width 256, tied embedding) with another model's tokenizer, in transformers' format.

    Raises:
        FileNotFoundError: the tokenizer's files are missing.
    """
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary, width, inner, kv = 8192, 256, 768, 128
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.02, (rows, columns)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(vocabulary, width), "model.norm.weight": np.ones(width, np.float32)}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }  # fmt: skip
        for module, (rows, columns) in shapes.items():
            tensors[f"model.layers.{layer}.{module}.weight"] = matrix(rows, columns)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(width, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": int(settings.get("model_max_length", 1024)), "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 6, "pad_token_id": 0, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, folder / name)
