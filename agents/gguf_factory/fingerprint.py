"""What a finished model is made from, as one digest: two requests with equal fingerprints get the same model.

Imports no torch: the factory's agent asks before it plans.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from agents.gguf_factory import base as bases
from agents.gguf_factory import convert, dataset
from agents.gguf_factory.hashes import Hashes, file_sha256
from agents.gguf_factory.records import CSV_ENDINGS, JSON_ENDINGS
from configs import Tier
from configs.tiers import PROJECT
from protocol import Code, LabError
from protocol.job import Route, TrainRequest

SOURCES = Path(__file__).resolve().parent
"""All of the factory's code. A list of the modules that matter would one day lack one; so a change of any costs a training."""
PACKAGES = (
    "torch", "transformers", "tokenizers", "sentencepiece", "peft", "safetensors", "numpy", "pyarrow", "llama-cpp-python",
)  # fmt: skip
GENERAL = PROJECT / "data" / "general.txt"
"""What the forgetting gate reads."""


def fingerprint(
    request: TrainRequest, route: Route, tiers: Mapping[str, Tier], hashes: Hashes, digests: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything that decides which model a request gets, and what its papers say.

    Not in it: priority, budget, machine, the job's id, the names of files and folders.

    Args:
        digests: `dataset_sha256` and `eval_dataset_sha256` of what was trained on; None: the files are read now.

    Raises:
        LabError: INVALID_PARAMS, NOT_FOUND or BAD_DATA, as planning would find.
        OSError: a file of the base cannot be read.
    """
    if route.tier not in tiers:
        raise LabError(Code.INVALID_PARAMS, f"The tier {route.tier} is not in this factory's configs.", field="tier")
    tier = tiers[route.tier]
    own = request.parameters if request.quantisation is None else {**request.parameters, "quantisation": request.quantisation}
    named = {"dataset": request.dataset, "eval_dataset": request.eval_dataset}
    return {
        "base": convert.identity(bases.resolve(route.base), hashes.sha256),
        "data": {
            field: [digests[f"{field}_sha256"] if digests else dataset.digest(uri, field), _form(uri)]
            for field, uri in named.items() if uri is not None
        },
        "parameters": tier.parameters.overridden(own).model_dump(mode="json"),
        "profile": request.profile,
        "gates": {name: rule.model_dump(mode="json") for name, rule in tier.gates_of(request.profile).items()},
        "domain": route.domain,
        "licence": request.licence,
        "general": hashes.sha256(GENERAL) if GENERAL.is_file() else None,
        "code": LOADED,
        "packages": {name: _installed(name) for name in PACKAGES} | {"python": platform.python_version()},
    }  # fmt: skip


def key(facts: Mapping[str, Any]) -> str:
    """Return the sha256 of a fingerprint's canonical JSON in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def code_version(folder: Path = SOURCES) -> str:
    """Return the sha256 over names and contents of the factory's modules as they lie there now."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


LOADED = code_version()
"""The code of this process, read when it was started: an upgrade that comes later does not change what runs. Jobs are forked
off a process that has loaded it long before."""


def _form(uri: str) -> str:
    """Return the ending by which an unclear content is read: the same bytes named .csv or .jsonl may be other rows."""
    return next((part for part in reversed(PurePath(uri.lower()).suffixes) if part in (*CSV_ENDINGS, *JSON_ENDINGS)), "")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
