"""The quantised base that adapters share: made once for each base and quantisation, kept under MEETARA_HOME.

It lies beside the base's F16 file, in models/<identity>/: <type>-<recipe>.gguf and, written last, a .json with what it is.
Whoever makes it holds a lock, so that a second job waits for the first one's file instead of making it too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.gguf_factory import adapter, convert, pipeline, quantise
from agents.gguf_factory.base import base_name
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.gguf_values import add_values
from agents.gguf_factory.hashes import Hashes, file_sha256
from agents.gguf_factory.job import Job, StageResult, Stopped, never, silent
from agents.gguf_factory.llama import BASE_SHA256
from configs.tiers import PROJECT
from protocol import Code, LabError

GENERAL = PROJECT / "data" / "general.txt"
"""What the importance matrix is measured on: many domains share the base, so it is nobody's own text. The forgetting gate reads
other parts of it, and compares two models on this same base."""
DOCUMENT = "<|doc|>"
WINDOW = 512  # tokens read at a time
POLL_S = 0.2  # how often a waiting job looks for the lock, and whether it is to stop
PAPER = "base.json"


@dataclass(frozen=True)
class SharedBase:
    """A quantised base. `content` is the base's own digest (`adapter.content`), `sha256` the file's."""

    name: str
    sha256: str
    bytes: int
    content: str
    quantisation: str
    bits_per_weight: float
    fallback_percent: float
    imatrix_tokens: int


def run(job: Job) -> StageResult:
    """Stage quantise of the profile adapter: have the base, and write quantise/base.json with what it is.

    Raises:
        LabError, Stopped: as `ensure`.
    """
    start = time.perf_counter()
    path, found, made = of_job(job)
    paper = job.path("quantise", PAPER)
    paper.write_text(json.dumps({"file": str(path), **asdict(found)}, indent=1) + "\n", encoding="utf-8")
    results = {
        "base_file_sha256": found.sha256, "base_bytes": found.bytes, "base_bits_per_weight": found.bits_per_weight,
        "type": found.quantisation, "imatrix_tokens": found.imatrix_tokens, "base_made": made,
        "base_seconds": round(time.perf_counter() - start, 3) if made else None,
    }  # fmt: skip
    return StageResult(files=[paper], results=results)


def of_job(job: Job) -> tuple[Path, SharedBase, bool]:
    """Return the shared base of a job; see `ensure`."""
    return ensure(
        job.base, job.home, str(job.parameters.get("quantisation", quantise.DEFAULT)), name=base_name(job.run.route.base),
        imatrix=bool(job.parameters.get("imatrix", True)), stop=job.stop, progress=job.progress,
    )  # fmt: skip


def ensure(
    base: Path, home: Path, quantisation: str, *, name: str = "", imatrix: bool = True, stop: Callable[[], bool] = never,
    progress: Callable[..., None] = silent, general: Path = GENERAL,
) -> tuple[Path, SharedBase, bool]:  # fmt: skip
    """Return the quantised base, what it is, and whether it had to be made.

    Args:
        base: the base's folder in transformers' format.
        home: MEETARA_HOME.
        quantisation: a name of `quantise.FTYPES`.
        name: of the base, for people; default: its folder's.
        imatrix: weigh the rounding by an importance matrix of the general text.
        stop, progress: as a job's.
        general: text for the importance matrix.

    Raises:
        LabError: INVALID_PARAMS, TOOLCHAIN, CONFIGURATION (the base cannot be loaded).
        Stopped: `stop` was true.
    """
    quantise.ftype(quantisation)
    hashes = Hashes(home)
    folder = home / "models" / convert.identity(base, hashes.sha256)
    weighed = imatrix and quantisation not in quantise.PLAIN
    recipe = _recipe(general) if weighed else "plain"
    path = folder / f"{quantisation}-{recipe}.gguf"
    with _locked(folder, stop, progress):
        if found := read(path, hashes.sha256):
            os.utime(path)  # so that it is not the one that goes when room is needed
            return path, found, False
        progress(note=f"making the shared base {quantisation}")
        source = convert.convert_base(base, home, stop=stop)
        matrix, fresh = folder / f".imatrix-{os.getpid()}.safetensors", path.with_name(f".{path.name}.{os.getpid()}")
        tokens = 0
        try:
            if weighed:
                tokens = quantise.importance(source, _texts(base, general), matrix, stop=stop)
            quantise.quantise(source, fresh, quantisation, matrix if tokens else None, stop=stop)
            content = adapter.content(base, hashes.sha256)
            add_values(fresh, {BASE_SHA256: content})
            header = read_header(fresh)
            made = SharedBase(
                name or base.name, file_sha256(fresh), fresh.stat().st_size, content, quantisation,
                header.bits_per_weight, quantise.fallback_percent(header, quantisation), tokens,
            )  # fmt: skip
            fresh.replace(path)
            pipeline.write_durably(path.with_suffix(".json"), json.dumps(asdict(made), indent=1) + "\n")
        finally:
            matrix.unlink(missing_ok=True)
            fresh.unlink(missing_ok=True)
            fresh.with_suffix(".log").unlink(missing_ok=True)
    return path, made, True


def read(path: Path, digest_of: Callable[[Path], str] = file_sha256) -> SharedBase | None:
    """Return what a shared base is, or None where it is missing, half made or changed."""
    try:
        facts = SharedBase(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        whole = path.stat().st_size == facts.bytes and digest_of(path) == facts.sha256
    except (OSError, ValueError, TypeError):
        return None
    return facts if whole else None


def find(home: Path, content: str, quantisation: str | None = None, sha256: str | None = None) -> Path | None:
    """Return a shared base of a home by what an adapter says of it: the very file, else its quantisation, else any of its content.

    Args:
        home: MEETARA_HOME.
        content: `adapter.content` of the base.
        quantisation: wanted first, where it is there.
        sha256: of the very file, where it is known.
    """
    best: tuple[int, str, Path] | None = None
    for paper in (home / "models").glob("*/*.json"):
        try:
            facts: dict[str, Any] = json.loads(paper.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        path = paper.with_suffix(".gguf")
        if facts.get("content") != content or not path.is_file():
            continue
        rank = 2 * (facts.get("sha256") == sha256) + (facts.get("quantisation") == quantisation)
        best = max(best or (-1, "", path), (rank, path.name, path))
    return best[2] if best else None


def _recipe(general: Path) -> str:
    """Return a short digest of what else decides the file: the text of the importance matrix, and in what windows it is read."""
    try:
        text = general.read_bytes()
    except OSError as error:
        raise LabError(
            Code.CONFIGURATION, f"{general} cannot be read ({error.strerror}).",
            advice="Restore it: the shared base's importance matrix is measured on it.", file=str(general),
        ) from error  # fmt: skip
    return hashlib.sha256(b"%d " % WINDOW + text).hexdigest()[:12]


def _texts(base: Path, general: Path) -> Iterator[list[int]]:
    """Yield general documents as token ids, cut to a window."""
    from agents.gguf_factory import chat

    tokenizer = chat.load(base)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for document in general.read_text(encoding="utf-8").split(DOCUMENT):
        ids = tokenizer.encode(document.strip(), add_special_tokens=False)
        if ids:
            yield [*bos, *ids[: WINDOW - len(bos)]]


@contextmanager
def _locked(folder: Path, stop: Callable[[], bool], progress: Callable[..., None]) -> Iterator[None]:
    """Hold a folder's lock; the system frees it when this process ends, however that happens."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(note="another job makes the shared base; waiting for it")
                if stop():
                    raise Stopped("waiting for the shared base was stopped") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)
