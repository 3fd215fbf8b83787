"""What of a home nothing needs any more, in the order in which it goes; the program behind `meetara gc`.

    python -m agents.gguf_factory.gc [--models] [--remove]    # MEETARA_HOME; on stdin {"ended": [JOB, …]}

Prints what there is to remove as one JSON document, and with --remove removes it:

1. leftovers of processes that were killed while they wrote;
2. working files of jobs whose model has been published for an hour;
3. folders and stored checkpoints of jobs that ended without a model, as far as the caller knows them (`ended`);
4. bases as F16 files that were not used for a week, or are beyond their limit;
5. with --models: finished models that the cache has forgotten, and where the store is beyond its limit more of them, the one
   that was asked for longest ago first; then shared bases that no adapter names. Without --models none is even listed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import configs
from agents.gguf_factory import storage
from agents.gguf_factory.cache import Cache
from configs import Settings, Storage
from protocol import LabError
from protocol.ids import valid_job_id
from protocol.job import Stage

CHECKPOINTS = "checkpoints"
"""The room of checkpoints that another machine might have taken up; a store elsewhere forgets old ones by itself."""
UNUSED_S = 7 * 86_400.0
"""An F16 base that was not used for so long is made again, in seconds to minutes, when somebody trains on it."""


@dataclass(frozen=True)
class Item:
    """Something to remove. `step` is its place in the order above, `job` a model's or folder's job."""

    step: int
    what: str
    path: str
    bytes: int
    why: str
    job: str = ""


def find(home: Path, limits: Storage, ended: Iterable[str] = (), *, models: bool = False, now: float | None = None) -> list[Item]:
    """Return what may be removed, in order.

    Args:
        ended: jobs that failed, were cancelled or refused. What is not named here counts as unfinished.
        models: whether finished models may be among it.
        now: Unix time.
    """
    now = time.time() if now is None else now
    found = [*_leftovers(home, now), *_published(home, now), *_ended(home, ended), *_bases(home, limits, now)]
    if models:
        found += [*_models(home, limits), *_shared(home)]
    return found


def _leftovers(home: Path, now: float) -> Iterator[Item]:
    for room in (storage.ARTEFACTS, storage.MODELS, storage.JOBS, "cache", "run"):
        for path in (home / room).rglob("*"):
            if path.is_file() and not path.is_symlink() and _writer(path) and now - path.stat().st_mtime > storage.SETTLED_S:
                yield Item(1, "leftover", str(path), path.stat().st_size, "its writer was killed")
    for folder in (home / storage.ARTEFACTS).glob("*"):
        if folder.is_dir() and not list(folder.glob("manifest*.json")) and now - folder.stat().st_mtime > storage.SETTLED_S:
            yield Item(1, "leftover", str(folder), storage.used(folder), "it was never published")


def _writer(path: Path) -> bool:
    """Whether this is the half of a file: .NAME.PID of a process that is gone, or NAME.new."""
    end = path.suffix.removeprefix(".")
    if path.name.startswith(".") and end.isdecimal():
        return not Path(f"/proc/{end}").exists() if Path("/proc/self").exists() else True
    return path.suffix == ".new"


def _published(home: Path, now: float) -> Iterator[Item]:
    for folder in storage.published(home, now):
        size = sum(size for stage in Stage for _, size in storage.working_files(folder / stage.value))
        if size:
            yield Item(2, "working files", str(folder), size, "the model is published", folder.name)


def _ended(home: Path, ended: Iterable[str]) -> Iterator[Item]:
    for job in ended:
        if not valid_job_id(job):
            continue  # it would lead out of the room
        stored = home / CHECKPOINTS / job
        if stored.is_dir() and not stored.is_symlink():
            yield Item(3, "checkpoints", str(stored), storage.used(stored), "its job ended without a model", job)
        folder = home / storage.JOBS / job
        published = (folder / Stage.PUBLISH.value / "manifest.json").is_file()
        if folder.is_dir() and not folder.is_symlink() and not published:
            yield Item(3, "job", str(folder), storage.used(folder), "it ended without a model", job)


def _bases(home: Path, limits: Storage, now: float) -> Iterator[Item]:
    room = storage.rooms(home, limits)[storage.MODELS]
    over = room.used() - room.limit if room.limit is not None else 0
    for path in storage.f16_files(home):
        facts = path.stat()
        if now - facts.st_mtime > UNUSED_S or over > 0:
            why = "it was not used for a week" if now - facts.st_mtime > UNUSED_S else "the room is full"
            over -= facts.st_size
            yield Item(4, "base", str(path), facts.st_size, f"{why}; it is made again when it is needed")


def _models(home: Path, limits: Storage) -> Iterator[Item]:
    """Forgotten models, the oldest first, then remembered ones by last use while the store is beyond its limit."""
    used_at: dict[Path, int] = {}
    cache = Cache(home, limits)
    for place, (_, entry) in enumerate(cache.entries()):
        for path in storage.artefact_paths(entry):
            used_at.setdefault(path.parent, -place)
    room = storage.rooms(home, limits)[storage.ARTEFACTS]
    over = room.used() - room.limit if room.limit is not None else 0
    papers: dict[Path, dict[str, Any]] = {}
    for paper in sorted(room.folder.glob("*/manifest*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            papers[paper.parent.resolve()] = json.loads(paper.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # what nobody can read is nobody's to remove
    order = sorted(papers, key=lambda folder: (folder in used_at, used_at.get(folder, 0)))
    for folder in order:
        forgotten = folder not in used_at
        if forgotten or over > 0:
            size = storage.used(folder)
            over -= size
            why = "no request would find it" if forgotten else "the store is beyond its limit; it was asked for longest ago"
            yield Item(5, "model", str(folder), size, why, str(papers[folder].get("job", "")))


def _shared(home: Path) -> Iterator[Item]:
    """Shared bases whose content no published manifest names."""
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in (home / storage.ARTEFACTS).glob("*/manifest*.json"))
    for paper in (home / storage.MODELS).glob("*/*.json"):
        file = paper.with_suffix(".gguf")
        try:
            facts = json.loads(paper.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if file.is_file() and isinstance(facts, dict) and str(facts.get("sha256")) not in text:
            yield Item(5, "shared base", str(file), file.stat().st_size + paper.stat().st_size, "no adapter in the store names it")


def remove(item: Item, home: Path, limits: Storage) -> int:
    """Remove one item and return the bytes that were freed.

    Raises:
        OSError: it cannot be removed.
    """
    path = Path(item.path)
    match item.what:
        case "working files":
            return storage.tidy(path)
        case "job":
            return storage.remove(path)
        case "model":
            cache = Cache(home, limits)
            for name, entry in cache.entries():
                if path in [stored.parent for stored in storage.artefact_paths(entry)]:
                    cache.forget(name)
            shutil.rmtree(path)
        case "shared base":
            path.with_suffix(".json").unlink(missing_ok=True)  # first: a paper without its file would promise it
            path.unlink(missing_ok=True)
        case _:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return item.bytes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", action="store_true", help="offer finished models too")
    parser.add_argument("--remove", action="store_true", help="remove what is on stdin as `items`, or else all that is found")
    options = parser.parse_args(arguments)
    home = Settings.read().home
    try:
        limits = configs.load().storage
    except LabError as error:
        print(json.dumps({"error": error.body().model_dump(mode="json")}))
        return 1
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    asked: dict[str, Any] = json.loads(text) if text.strip() else {}
    items = find(home, limits, asked.get("ended", []), models=options.models)
    wanted = {item["path"] for item in asked["items"]} if "items" in asked else None
    items = [item for item in items if wanted is None or item.path in wanted]
    freed, failed = 0, []
    for item in items if options.remove else []:
        try:
            freed += remove(item, home, limits)
        except OSError as error:
            failed.append({"path": item.path, "reason": error.strerror or str(error)})
    rooms = {
        name: {"bytes": room.used(), "limit_bytes": room.limit} for name, room in storage.rooms(home, limits).items()
    }  # fmt: skip
    print(json.dumps({"home": os.fspath(home), "items": [asdict(item) for item in items], "freed_bytes": freed, "failed": failed, "rooms": rooms}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
