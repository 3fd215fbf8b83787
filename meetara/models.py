"""Finished models on this machine: found by file, by domain, by job."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol import Code, LabError
from protocol.format import check_format


@dataclass(frozen=True)
class Stored:
    """A published GGUF with what its manifest says. `published` is the manifest's modification time, Unix seconds."""

    path: Path
    domain: str
    job: str
    published: float
    facts: dict[str, Any]
    card: Path


def stored(home: Path, name: str | None = None) -> list[Stored]:
    """Return what lies in the home's artefact store, newest first; what has no readable manifest is left out.

    Raises:
        LabError: CONFIGURATION, a newer program wrote the manifest of a model (of this domain or job, if `name` is given).
    """
    found = []
    for paper in (home / "artefacts").glob("*/manifest*.json"):
        try:
            facts = json.loads(paper.read_text(encoding="utf-8"))
            if name in (None, facts["domain"], facts["job"]):
                check_format(facts, paper)
            path = paper.parent / str(facts["file"]["name"])
            card = paper.with_name(paper.name.replace("manifest", "README").removesuffix(".json") + ".md")
            model = Stored(path, str(facts["domain"]), str(facts["job"]), paper.stat().st_mtime, facts, card)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if model.path.is_file():
            found.append(model)
    return sorted(found, key=lambda model: model.published, reverse=True)


def find(name: str, home: Path) -> Path:
    """Return the GGUF that a person means: a file, else the newest model of a domain, else that of a job.

    Raises:
        LabError: NOT_FOUND, with the names that would do.
    """
    path = Path(name).expanduser()
    return path if path.is_file() else named(name, home).path


def named(name: str, home: Path) -> Stored:
    """Return the stored model that a person means: a file of the store, else the newest of a domain, else that of a job.

    Raises:
        LabError: NOT_FOUND, with the names that would do.
    """
    path = Path(name).expanduser()
    if path.is_file():
        for model in stored(home):
            if model.path.samefile(path):
                return model
        raise LabError(
            Code.NOT_FOUND, f"{path} lies in no artefact store of {home}, so nothing is known of it.",
            advice="Name a model of this home (`meetara models list`), or the home it was made in by --home.", file=str(path),
        )  # fmt: skip
    if path.suffix == ".gguf" or "/" in name:
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise LabError(Code.NOT_FOUND, f"{what}.", advice="Name a .gguf file, or a domain.", file=str(path))
    models = stored(home, name)
    for model in models:
        if name in (model.domain, model.job):
            return model
    known = sorted({model.domain for model in models})
    raise LabError(
        Code.NOT_FOUND, f"no finished model of {name!r} lies in {home}.",
        advice=f"Models there: {', '.join(known)}." if known else
        f"Train one with `meetara train --domain {name} --data FILE`, or name a .gguf file.",
        field="model", known=known,
    )  # fmt: skip
