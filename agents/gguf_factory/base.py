"""Where a base model lies and what it is. Reads its folder; loads no weights."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from protocol import Code, LabError

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder: a base that configs/ names as `models/starter` lies in it."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""What the size calculator knows the tensors of; llama.cpp converts more, which nobody has measured here."""


def resolve(name: str) -> Path:
    """Return the folder of a base model, given as a folder or as a hub name that is in the local cache.

    A relative folder is looked for in the working directory, then in the project.

    Raises:
        LabError: NOT_FOUND with field `base`.
    """
    expanded = Path(name).expanduser()
    for folder in (expanded, ROOT / expanded):
        if folder.is_dir():
            return folder.resolve()
    if expanded.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or expanded.exists():
        raise LabError(
            Code.NOT_FOUND,
            f"The base model {name} is not a folder on this machine.",
            advice="Give the folder that holds config.json, the tokenizer and *.safetensors.",
            field="base", file=name,
        )  # fmt: skip
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise LabError(
            Code.NOT_FOUND,
            f"The base model {name} is neither a folder on this machine nor in its model hub cache.",
            advice=f"Fetch it first with `hf download {name}`, or give a folder.",
            field="base",
        ) from error


@dataclass(frozen=True)
class Base:
    """Facts of a base model's folder, each read from a file of it."""

    folder: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    template: str
    shapes: dict[str, tuple[int, ...]]

    @cached_property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        tied = self.tied and "lm_head.weight" in self.shapes and "model.embed_tokens.weight" in self.shapes
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not (tied and name == "lm_head.weight"))

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return bool(self.config.get("tie_word_embeddings", False)) or "lm_head.weight" not in self.shapes

    def token(self, name: str) -> str | None:
        """Return a special token of the tokenizer, such as `eos_token`."""
        value = self.tokenizer_config.get(name)
        return value.get("content") if isinstance(value, dict) else value


def read(folder: Path) -> Base:
    """Read and check a base model's folder.

    Raises:
        LabError: NOT_FOUND or BAD_DATA with field `base`, the file, what is wrong with it and how to mend it.
    """
    config = _json(folder / "config.json", "It says what network the weights belong to.")
    architecture = next(iter(config.get("architectures") or []), "none")
    if architecture not in ARCHITECTURES:
        raise _bad(folder / "config.json", f"names the architecture {architecture}",
                   f"Choose a base of one of these: {', '.join(ARCHITECTURES)}.")  # fmt: skip
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise _missing(folder / "tokenizer.model", "A tokenizer is needed: tokenizer.model or tokenizer.json.")
    tokenizer = _json(folder / "tokenizer_config.json", "It names the special tokens.")
    shapes = weights(folder)
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else tokenizer.get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    base = Base(folder, config, tokenizer, template or "", shapes)
    if not base.template:
        raise _bad(folder, "has no chat template",
                   "Choose an instruction-tuned base, or add a chat_template.jinja to the folder.")  # fmt: skip
    eos, pad = base.token("eos_token"), base.token("pad_token")
    if not eos:
        raise _bad(folder / "tokenizer_config.json", "defines no eos_token",
                   "Without it answers never stop; name the token that ends a turn.")  # fmt: skip
    if eos == pad:
        raise _bad(folder / "tokenizer_config.json", f"uses {eos} both as eos_token and as pad_token",
                   "The end of an answer would be masked as padding; name another pad_token.")  # fmt: skip
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None or embedding[0] != config.get("vocab_size"):
        raise _bad(folder, f"has an embedding of {embedding and embedding[0]} rows but config.json says vocab_size "
                   f"{config.get('vocab_size')}", "The weights and config.json must come from the same model.")  # fmt: skip
    return base


def weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor names and shapes from the headers of the safetensors files.

    Raises:
        LabError: NOT_FOUND without such a file, BAD_DATA where one is cut or of another form.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _missing(folder / "model.safetensors", "Weights are read from safetensors only, never from pickles (.bin).")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > size - 8:
                raise _bad(path, "is not a whole safetensors file", "Copy or download it again.")
            try:
                header = json.loads(file.read(length))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise _bad(path, "is not a whole safetensors file", "Copy or download it again.") from error
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if 8 + length + end != size:
            raise _bad(path, f"is {size} bytes long but its header promises {8 + length + end}", "Copy it again.")
        shapes.update({name: tuple(entry["shape"]) for name, entry in tensors.items()})
    return shapes


def _json(path: Path, why: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path, why) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, f"cannot be read ({error})", "Check the file and its permissions.") from error
    except json.JSONDecodeError as error:
        raise _bad(path, f"is not JSON: {error}", "Copy or download it again.") from error
    if not isinstance(value, dict):
        raise _bad(path, "is not a JSON object", "Copy or download it again.")
    return value


def _missing(path: Path, why: str) -> LabError:
    return LabError(Code.NOT_FOUND, f"The base model lacks {path}.", advice=why, field="base", file=str(path))


def _bad(path: Path, what: str, advice: str) -> LabError:
    return LabError(Code.BAD_DATA, f"The base model's {path} {what}.", advice=advice, field="base", file=str(path))
