"""Where a base model lies and what it is. Reads its folder; loads no weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from protocol import Code, LabError

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder: a base that configs/ names as `models/starter` lies in it."""

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""Last names of the input embedding and of the head, by architecture."""


def resolve(name: str) -> Path:
    """Return the folder of a base model, given as a folder or as a hub name that is in the local cache.

    A relative folder is looked for in the working directory, then in the project.

    Raises:
        LabError: NOT_FOUND with field `base`.
    """
    expanded = Path(name).expanduser()
    if (folder := _folder(name)) is not None:
        return folder
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


def is_hub_name(name: str) -> bool:
    """Tell whether a base that can be resolved is named as on a hub, where other machines find it too."""
    return _folder(name) is None


def _folder(name: str) -> Path | None:
    expanded = Path(name).expanduser()
    return next((folder.resolve() for folder in (expanded, ROOT / expanded) if folder.is_dir()), None)


def base_name(base: str) -> str:
    """Return a hub name as it is, and a folder's last name: where it lies on this machine is nobody's business."""
    return Path(base).name if Path(base).is_absolute() else base


@dataclass(frozen=True)
class Base:
    """Facts of a base model's folder, each read from a file of it."""

    folder: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    template: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """The name of the network, such as LlamaForCausalLM; "" where config.json gives none."""
        return next(iter(self.config.get("architectures") or []), "")

    @cached_property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        head = self._named(HEADS) if self.tied and self._named(EMBEDDINGS) else None
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name != head)

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return bool(self.config.get("tie_word_embeddings", False)) or not self._named(HEADS)

    @property
    def embedding_rows(self) -> int | None:
        """Rows of the input embedding; None where no tensor has a name that is known for one."""
        name = self._named(EMBEDDINGS)
        return self.shapes[name][0] if name else None

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which the base itself stops; see `end_ids`."""
        return end_ids(self.folder)

    @cached_property
    def tokenizer_json(self) -> dict[str, Any] | None:
        """The content of tokenizer.json; None where there is no such file.

        Raises:
            LabError: BAD_DATA with field `base`.
        """
        path = self.folder / "tokenizer.json"
        return _json(path, "It holds the vocabulary.") if path.is_file() else None

    def token(self, name: str) -> str | None:
        """Return a special token of the tokenizer, such as `eos_token`."""
        value = self.tokenizer_config.get(name)
        return value.get("content") if isinstance(value, dict) else value

    def text(self, number: int) -> str | None:
        """Return the text of an added or special token by its id; None where no file of the tokenizer lists it."""
        listed = self.tokenizer_config.get("added_tokens_decoder") or {}
        if entry := listed.get(str(number)):
            return str(entry["content"])
        added = (self.tokenizer_json or {}).get("added_tokens") or []
        return next((str(item["content"]) for item in added if item.get("id") == number), None)

    def _named(self, endings: tuple[str, ...]) -> str | None:
        return next((name for name in self.shapes if name.endswith(endings)), None)


def end_ids(folder: Path) -> frozenset[int]:
    """Return the ids at which generation stops by generation_config.json, or by config.json where that names none.

    Chat models often name several: the end of a turn and the end of a text.
    """
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = _json(folder / name, "It names the end tokens.").get("eos_token_id")
            found = value if isinstance(value, list) else [value]
            if ids := frozenset(item for item in found if isinstance(item, int)):
                return ids
    return frozenset()


def read(folder: Path) -> Base:
    """Read and check a base model's folder.

    Raises:
        LabError: NOT_FOUND or BAD_DATA with field `base`, the file, what is wrong with it and how to mend it.
    """
    config = _json(folder / "config.json", "It says what network the weights belong to.")
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise _missing(folder / "tokenizer.model", "A tokenizer is needed: tokenizer.model or tokenizer.json.")
    tokenizer = _json(folder / "tokenizer_config.json", "It names the special tokens.")
    shapes = weights(folder)
    tokenizer = {**_optional(folder / "special_tokens_map.json"), **tokenizer}
    template = _template(folder, tokenizer)
    base = Base(folder, config, tokenizer, template or "", shapes)
    if not base.template:
        raise _bad(folder, "has no chat template",
                   "Choose an instruction-tuned base, or add a chat_template.jinja to the folder.")  # fmt: skip
    if not base.token("eos_token"):
        raise _bad(folder / "tokenizer_config.json", "defines no eos_token",
                   "Without it answers never stop; name the token that ends a turn.")  # fmt: skip
    rows = base.embedding_rows
    if rows is not None and rows != (text := config.get("text_config") or config).get("vocab_size"):
        raise _bad(folder, f"has an embedding of {rows} rows but config.json says vocab_size {text.get('vocab_size')}",
                   "The weights and config.json must come from the same model.")  # fmt: skip
    return base


def weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor names and shapes from the headers of the safetensors files.

    Raises:
        LabError: NOT_FOUND without such a file, BAD_DATA where one is cut or of another form.
    """
    files = weight_files(folder)
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


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads: those that the index names, or model.safetensors, or all.

    Raises:
        LabError: NOT_FOUND with field `base`, there is none, or one of several is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = {folder / name for name in _json(index, "").get("weight_map", {}).values()}
        for path in sorted(named):
            if not path.is_file():
                raise _missing(path, "The index names it as a part of the weights: copy or download it too.")
        return sorted(named)
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise _missing(single, "Weights are read from safetensors only, never from pickles (.bin).")
    return files


def _template(folder: Path, tokenizer: Mapping[str, Any]) -> str | None:
    """Return the chat template from where transformers keeps it: a file of its own, or the tokenizer's settings."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    found = tokenizer.get("chat_template") or _optional(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        found = next((item["template"] for item in found if item.get("name") == "default"), None)
    return found


def _optional(path: Path) -> dict[str, Any]:
    return _json(path, "") if path.is_file() else {}


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
