"""What a job needs on a machine elsewhere: put into the artefact store where it lies here, and fetched where it is trained.

The store holds everything by its content: `data/<sha256>/<name>`, `bases/<identity>/<file>`, `artefacts/<sha256>/<name>`. What
is there already is not sent again, and what arrives is compared with its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from agents.gguf_factory import base as bases
from agents.gguf_factory import convert, place
from agents.gguf_factory.hashes import Hashes
from agents.gguf_factory.job import LOCAL
from agents.gguf_factory.store import filesystem
from protocol import Code, LabError, Retry
from protocol.job import Artefact, Route, RunRequest, Staged, TrainRequest

KEPT_OUT = (".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")
"""Endings of files in a base's folder that no stage reads: other forms of the weights, some of them pickles."""
FETCHED = "bases"
"""Folder of a worker's home for bases from the store."""


def stage(request: TrainRequest, route: Route, store: str, hashes: Hashes) -> Staged:
    """Put data sets and base into the store where they lie on this machine only.

    Args:
        request: whose data.
        route: names the base.
        store: URI of the artefact store.
        hashes: of files that were read before.

    Returns:
        Where a machine elsewhere finds each.

    Raises:
        LabError: UNREACHABLE, the store cannot be written; BAD_DATA or NOT_FOUND, as planning would find.
    """
    root = store.rstrip("/")
    sets = {}
    for field in ("dataset", "eval_dataset"):
        uri = getattr(request, field)
        found = place.locate(uri, field) if uri is not None else None
        if found is not None and found.startswith("/"):
            path = Path(found)
            found = put(path, f"{root}/data/{hashes.sha256(path)}/{path.name}")
        sets[field] = found
    assert sets["dataset"] is not None
    return Staged(store=root, dataset=sets["dataset"], eval_dataset=sets["eval_dataset"], base=_base(route.base, root, hashes))


def _base(name: str, root: str, hashes: Hashes) -> str:
    folder = bases.resolve(name)
    if bases.is_hub_name(name):
        return name
    target = f"{root}/{FETCHED}/{convert.identity(folder, hashes.sha256)}"
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix not in KEPT_OUT:
            put(path, f"{target}/{path.name}")
    return target


def arrive(run: RunRequest, home: Path, note: Callable[[str], None] = lambda _: None) -> RunRequest:
    """Return a job as this machine can train it: its data where the store has it, its base in a folder here.

    Args:
        run: the job; one that was not staged, or is for its own machine, stays as it is.
        home: where bases are kept for the next job.
        note: takes what is being done.

    Raises:
        LabError: UNREACHABLE, the store or the hub cannot be read.
    """
    staged = run.plan.staged
    if staged is None or run.provider == LOCAL:
        return run
    note("fetching the base")
    found = str(_fetched(staged.base, home)) if staged.base.startswith(f"{staged.store}/") else _from_hub(staged.base)
    request = run.request.model_copy(update={"dataset": staged.dataset, "eval_dataset": staged.eval_dataset})
    return run.model_copy(update={"request": request, "route": run.route.model_copy(update={"base": found})})


def _fetched(uri: str, home: Path) -> Path:
    identity = uri.rpartition("/")[2]
    folder = home / FETCHED / identity
    if folder.is_dir():
        return folder
    coming = folder.with_name(f"{identity}.coming")
    shutil.rmtree(coming, ignore_errors=True)
    coming.mkdir(parents=True)
    with _store(uri, "read"):
        files, root = filesystem(uri)
        for entry in files.ls(root, detail=True):
            if entry["type"] == "file":
                files.get_file(entry["name"], str(coming / entry["name"].rpartition("/")[2]))
    if (real := convert.identity(coming)) != identity:
        raise LabError(
            Code.BAD_DATA, f"the base in the artefact store {uri} is not what it was: its content is {real[:12]}….",
            advice="Remove that folder of the store; the next plan puts it there again.", field="base",
        )  # fmt: skip
    coming.rename(folder)
    return folder


def _from_hub(name: str) -> str:
    try:
        bases.resolve(name)
    except LabError:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(name, ignore_patterns=[f"*{ending}" for ending in KEPT_OUT])
        except Exception as error:  # what the hub's HTTP client raises shares no base with the rest
            if isinstance(error, MemoryError):
                raise
            raise LabError(
                Code.UNREACHABLE, f"the base {name} cannot be fetched from its hub ({type(error).__name__}: {error}).",
                advice="Check the machine's network, and HF_TOKEN where the base is not public.", retry=Retry.OTHER_WORKER,
                field="base",
            ) from error  # fmt: skip
    return name


def deliver(artefact: Artefact, store: str) -> Artefact:
    """Put a finished file into the store and return it with its place there.

    Raises:
        LabError: UNREACHABLE, the store cannot be written.
    """
    path = Path(place.locate(artefact.uri))
    return artefact.model_copy(update={"uri": put(path, f"{store.rstrip('/')}/artefacts/{path.parent.name}/{path.name}")})


def put(path: Path, uri: str) -> str:
    """Put a file into the store, unless one of its name and size is there; whole or not at all.

    Raises:
        LabError: UNREACHABLE.
    """
    with _store(uri, "written"):
        files, target = filesystem(uri)
        if files.exists(target) and files.size(target) == path.stat().st_size:
            return uri
        if isinstance(files, LocalFileSystem):
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), f"{target}.coming")
            files.mv(f"{target}.coming", target)
        else:
            files.put_file(str(path), target)  # an object store shows a file when it is whole
        return uri


class _store:
    """Turns whatever a store's client raises into one error; clients share no base."""

    def __init__(self, uri: str, done: str) -> None:
        self.uri, self.done = uri, done

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, LabError | MemoryError) or not isinstance(error, Exception):
            return
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LabError(
            Code.UNREACHABLE, f"the artefact store cannot be {self.done} at {self.uri} ({reason}).",
            advice=f"Check MEETARA_STORE, the network, the permissions, and that {place.package_of(self.uri)} is installed.",
            retry=Retry.LATER, field="store",
        ) from error  # fmt: skip
