"""Faults planted into a finished GGUF by changing its bytes, so that no test runs the converter again."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import torch

from agents.gguf_factory.gguf_header import TYPES, Tensor, read_header
from agents.gguf_factory.llama import Model

BLOCKS = {name: (block, size) for name, block, size in TYPES.values()}


def copy(source: Path, folder: Path) -> Path:
    """Return a copy to break."""
    target = folder / f"broken-{source.name}"
    shutil.copyfile(source, target)
    return target


def tensor(path: Path, name: str) -> Tensor:
    return next(tensor for tensor in read_header(path).tensors if tensor.name == name)


def rows(path: Path, name: str) -> np.memmap:
    """Return a tensor's bytes as [rows, bytes of a row], to be changed in place."""
    found = tensor(path, name)
    block, size = BLOCKS[found.type]
    shape = (found.weights // found.shape[0], found.shape[0] // block * size)
    return np.memmap(path, np.uint8, "r+", read_header(path).data_start + found.offset, shape)


def permute_rows(path: Path, name: str) -> None:
    """Reverse a tensor's rows: what a wrong permutation of rotary heads looks like."""
    data = rows(path, name)
    data[:] = data[::-1].copy()
    data.flush()


def shift_rows(path: Path, name: str) -> None:
    """Give each row its neighbour's place: what token ids that are one off look like."""
    data = rows(path, name)
    data[:] = np.roll(data, 1, axis=0)
    data.flush()


def flip(path: Path, name: str, byte: int, mask: int, row: int = 5) -> None:
    """Flip bits of one byte of a row."""
    data = rows(path, name)
    data[row, byte] ^= mask
    data.flush()


def _place(content: bytes | bytearray, key: str) -> int:
    """Return where a key's value type begins."""
    return content.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)


def set_number(path: Path, key: str, value: int) -> None:
    """Change a 32-bit value in a file's header."""
    content = bytearray(path.read_bytes())
    at = _place(content, key) + 4
    content[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(content)


def set_template(path: Path, old: str, new: str) -> None:
    """Replace words of the chat template by as many other characters."""
    assert len(old) == len(new)
    content = bytearray(path.read_bytes())
    at = content.index(old.encode(), _place(content, "tokenizer.chat_template"))
    content[at : at + len(old)] = new.encode()
    path.write_bytes(content)


def reorder_tokens(path: Path, order: list[int]) -> None:
    """Give the token with the number order[i] the number i; the text of all tokens stays as long as it is."""
    content = bytearray(path.read_bytes())
    start = _place(content, "tokenizer.ggml.tokens") + 4 + 4 + 8
    entries = []
    at = start
    for _ in order:
        (length,) = struct.unpack_from("<Q", content, at)
        entries.append(bytes(content[at : at + 8 + length]))
        at += 8 + length
    content[start:at] = b"".join(entries[number] for number in order)
    path.write_bytes(content)


def put_weights(path: Path, model: torch.nn.Module) -> None:
    """Write a Llama's weights into an F16 file of the same shapes, rotary rows in llama.cpp's order."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        parts = name.split(".")
        target = whole.get(name) or f"blk.{parts[2]}.{names['.'.join(parts[3:-1])]}.weight"
        array = value.detach().float().numpy()
        if parts[-2] in heads:
            count, width = heads[parts[-2]], array.shape[1]
            array = array.reshape(count, 2, -1, width).swapaxes(1, 2).reshape(-1, width)
        kind = np.float32 if tensor(path, target).type == "F32" else np.float16
        data = rows(path, target)
        data[:] = np.ascontiguousarray(array.astype(kind)).view(np.uint8).reshape(data.shape)
        data.flush()


def special(model: Model) -> set[int]:
    """Return the ids of control tokens and bytes, which a planted fault leaves alone."""
    return {token for token in range(model.vocabulary_size) if model.piece(token).startswith(b"<")}
