"""Values for the shell's completion: what lies in the home and in configs/. Quick, read-only, and silent about what is wrong."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

import typer

SECONDS = 0.3
"""A person who presses Tab waits no longer; on a slow disk there is then nothing to choose from."""
MOST = 200
"""Values offered at once; a shell that has more asks the person whether to show them."""
DOMAINS, TIERS, PARAMETERS = "cloud-optimized-domain-mapping.yaml", "tiers.yaml", "proven_parameters.json"
"""As in configs/, whose own modules take half of SECONDS to load."""
DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PACKED = ("", ".gz", ".zst", ".zip")

Completer = Callable[[typer.Context, str], list[str]]


def _quick(find: Callable[[typer.Context, str], Iterable[str]]) -> Completer:
    """Make a completer: what begins as was typed, at most MOST, nothing after SECONDS or when anything is wrong."""

    @functools.wraps(find)
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        found: list[str] = []
        try:
            signal.signal(signal.SIGALRM, _too_late)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            for value in find(ctx, incomplete):
                if value.startswith(incomplete) and value not in found:
                    found.append(value)
                if len(found) == MOST:
                    break
        except Exception:  # noqa: BLE001 - a damaged home must not write into the line that a person types
            return found
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return found

    return complete


def _too_late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


@_quick
def jobs(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Ids of the home's jobs, the newest first, as the conductor's store has them; that store may be in use."""
    store = _home(ctx) / "agents" / "conductor-1.db"
    connection = sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=SECONDS / 3)
    try:
        query = "SELECT job FROM jobs WHERE substr(job, 1, ?) = ? ORDER BY submitted_at DESC LIMIT ?"
        yield from (row[0] for row in connection.execute(query, (len(incomplete), incomplete, MOST)))
    finally:
        connection.close()


@_quick
def agents(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Agents that have a log in the home."""
    yield from sorted(path.stem for path in (_home(ctx) / "logs").glob("*.log"))


@_quick
def domains(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """The lab's domains."""
    import yaml

    content = yaml.load(_config(DOMAINS).read_text(encoding="utf-8-sig"), _loader())
    yield from sorted(
        {name for category in content["categories"].values() for name in category["domains"]} | set(content.get("custom") or ())
    )


@_quick
def tiers(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """The lab's tiers."""
    import yaml

    yield from yaml.load(_config(TIERS).read_text(encoding="utf-8-sig"), _loader())["tiers"]


@_quick
def parameters(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Names of training parameters, with the equals sign."""
    import json

    yield from (f"{name}=" for name in json.loads(_config(PARAMETERS).read_text(encoding="utf-8-sig")))


@_quick
def models(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Domains and jobs whose finished models lie in the home, then .gguf files."""
    from meetara.models import stored

    found = stored(_home(ctx))
    yield from sorted({model.domain for model in found})
    yield from (model.job for model in found)
    yield from _files(incomplete, (".gguf",))


@_quick
def data_sets(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Files of the forms that a factory reads."""
    yield from _files(incomplete, tuple(form + packed for form in DATA for packed in PACKED))


def _files(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Folders and fitting files where the typed path points to, written as it was typed."""
    head, _, _ = incomplete.rpartition("/")
    prefix = f"{head}/" if head or incomplete.startswith("/") else ""
    for path in sorted((Path(prefix or ".")).expanduser().iterdir()):
        if path.name.startswith(".") and not incomplete.removeprefix(prefix).startswith("."):
            continue
        if path.is_dir():
            yield f"{prefix}{path.name}/"
        elif path.name.lower().endswith(endings):
            yield prefix + path.name


def _home(ctx: typer.Context) -> Path:
    named = ctx.params.get("home") or os.environ.get("MEETARA_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("meetara", appauthor=False))


def _config(name: str) -> Path:
    folder = os.environ.get("MEETARA_CONFIGS")
    shipped = Path(__file__).resolve().parents[1] / "configs" / name
    mine = Path(folder).expanduser() / name if folder else shipped
    return mine if mine.is_file() else shipped


def _loader() -> type:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
