"""Finished models by what they were made from: the same request again is answered with the same file, not with a training.

One JSON file for each model under home/cache, named by the fingerprint's key; its mtime is when it was last asked for.
The models themselves lie in the artefact store and are never removed from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agents.gguf_factory import gates, pipeline
from agents.gguf_factory.fingerprint import fingerprint, key
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.hashes import Hashes
from configs import GateRule, Storage, Tier
from protocol import LabError
from protocol.format import FORMAT, check_format
from protocol.job import PRODUCTS, Artefact, Finished, Plan, PlanRequest

FOLDER = "cache"
PAPERS = frozenset({"manifest", "card", "curves"})
"""Kinds of artefacts that are for people, who may write into them; without any of the others a model is not there."""


@dataclass(frozen=True)
class Found:
    """What the cache says to a request. `key` is None where nothing may be shared, `why` tells of a model that is not used."""

    key: str | None = None
    plan: Plan | None = None
    why: str = ""


class Cache:
    """The models that a home remembers.

    Args:
        home: MEETARA_HOME.
        limits: how many, and how large together.
    """

    def __init__(self, home: Path, limits: Storage) -> None:
        self.home = home
        self.folder = home / FOLDER
        self.limits = limits
        self.hashes = Hashes(home)

    def find(
        self, request: PlanRequest, tiers: Mapping[str, Tier], digests: Mapping[str, Any] | None = None, *, stores: bool = True
    ) -> Found:
        """Return the finished model that a request would get, or the key under which it will be remembered.

        Errors in the request are not told here: the plan finds them again, and says them better.

        Args:
            digests: as for `fingerprint`; None: the data sets are read, where they lie on this machine.
            stores: whether files in artefact stores may be looked at, which takes as long as the store likes; else they are not found.
        """
        asked = request.request
        if not asked.use_cache or self.limits.cache_models == 0:
            return Found()
        try:
            if digests is None and not all(_local(uri) for uri in (asked.dataset, asked.eval_dataset) if uri is not None):
                return Found()
            facts = fingerprint(asked, request.route, tiers, self.hashes, digests)
        except (LabError, OSError):
            return Found()
        name = key(facts)
        entry = self.read(name)
        if entry is None or not (stores or all(str(item.get("uri", "")).startswith("file:") for item in entry["artefacts"])):
            return Found(name)
        try:
            plan = self._checked(entry, tiers[request.route.tier].gates_of(request.request.profile))
        except _Unfit as unfit:
            if not unfit.for_now:
                self.forget(name)
            return Found(name, why=f"The model that the job {entry['job']} made from the same is not used: {unfit}.")
        with contextlib.suppress(FileNotFoundError):  # just forgotten by another process: found all the same
            os.utime(self.path(name))
        return Found(name, plan.model_copy(update={"key": name}))

    def path(self, name: str) -> Path:
        """Return the file of a key."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return an entry, or None where there is none that this program can read."""
        try:
            entry = json.loads(self.path(name).read_text(encoding="utf-8"))
            check_format(entry, self.path(name))
        except (OSError, ValueError, AttributeError, LabError):
            return None
        return entry if isinstance(entry.get("job"), str) and isinstance(entry.get("artefacts"), list) else None

    def _checked(self, entry: Mapping[str, Any], rules: Mapping[str, GateRule]) -> Plan:
        """Return the entry as a plan with a finished model, after looking at its files and gates.

        Raises:
            _Unfit: why it is not believed.
        """
        try:
            finished = Finished(**{name: entry[name] for name in Finished.model_fields})
            plan = Plan.model_validate(entry["plan"])
        except (KeyError, ValueError) as error:
            raise _Unfit(f"what was written down of it is not whole ({type(error).__name__})") from error
        good = []
        for artefact in finished.artefacts:
            wrong = self._wrong(artefact)
            if not wrong:
                good.append(artefact)
            elif artefact.kind not in PAPERS:
                raise _Unfit(wrong)
        if all(artefact.kind in PAPERS for artefact in good):
            raise _Unfit("it has no file")
        # What could not be measured then was no reason to fail then.
        measured = {
            name: Measured(gate.value, gate.detail, given=gate.value is not None) for name, gate in finished.gates.items()
        }
        judged = gates.judge(measured, rules)
        if missed := gates.verdict(judged):
            raise _Unfit(missed.message.rstrip("."))
        return plan.model_copy(
            update={"finished": finished.model_copy(update={"artefacts": good, "gates": judged}), "warnings": []}
        )

    def _wrong(self, artefact: Artefact) -> str:
        """Say what is wrong with a stored file; an empty text: nothing."""
        place = urlsplit(artefact.uri)
        if place.scheme != "file":
            return self._wrong_elsewhere(artefact)
        path = Path(unquote(place.path))
        try:
            if path.stat().st_size != artefact.bytes:
                return f"{path} has {path.stat().st_size} bytes, it was published with {artefact.bytes}"
            if self.hashes.sha256(path) != artefact.sha256:
                return f"{path} has another content than was published"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return ""

    def _wrong_elsewhere(self, artefact: Artefact) -> str:
        """Say what is wrong with a file in the artefact store; whoever fetches it compares its hash.

        Raises:
            _Unfit: the store does not answer; that says nothing about the model.
        """
        from agents.gguf_factory.store import filesystem  # an agent that finds none such needs no fsspec

        try:
            files, path = filesystem(artefact.uri)
            size = files.size(path)
        except FileNotFoundError:
            return f"{artefact.uri} is not there any more"
        except Exception as error:  # each file system raises its own client's errors; they share no base
            if isinstance(error, MemoryError):
                raise
            raise _Unfit(f"{artefact.uri} cannot be looked at ({type(error).__name__}: {error})", for_now=True) from error
        return "" if size == artefact.bytes else f"{artefact.uri} has {size} bytes, it was published with {artefact.bytes}"

    def keep(self, name: str, plan: Plan, model: Finished, facts: Mapping[str, Any] | None = None) -> None:
        """Remember a finished model, and forget those that were asked for longest ago where the limits want it.

        Args:
            name: the fingerprint's key.
            plan: of the job that made it.
            model: what it made.
            facts: the fingerprint, for people who wonder why something is made anew; None: only its key is known.

        Raises:
            OSError: it cannot be written.
        """
        plan = plan.model_copy(update={"key": None, "finished": None})
        size = sum(artefact.bytes for artefact in model.artefacts if artefact.kind in PRODUCTS)
        entry = {
            "format": FORMAT, "bytes": size, "fingerprint": facts, "plan": plan.model_dump(mode="json"),
            **model.model_dump(mode="json"),
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        pipeline.write_durably(self.path(name), json.dumps(entry, ensure_ascii=False) + "\n")
        self.shrink()

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Return keys and entries, the one that was asked for last first."""
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stem))
        read = [(name, self.read(name)) for _, name in sorted(found, reverse=True)]
        return [(name, entry) for name, entry in read if entry is not None]

    def shrink(self) -> None:
        """Forget what is beyond the limits."""
        total = 0
        for number, (name, entry) in enumerate(self.entries()):
            total += int(entry.get("bytes", 0))
            over = self.limits.cache_bytes is not None and total > self.limits.cache_bytes
            if number >= self.limits.cache_models or over:
                self.forget(name)

    def forget(self, name: str) -> None:
        """Remove an entry; its model stays in the store."""
        self.path(name).unlink(missing_ok=True)


async def look_up(cache: Cache, request: PlanRequest, tiers: Mapping[str, Tier]) -> Found:
    """Find a request's model on this machine while the agent goes on: hashing a base takes a moment. The planning process looks at stores."""
    return await asyncio.to_thread(cache.find, request, tiers, stores=False)


def _local(uri: str) -> bool:
    """Whether a data set is a file here; other names could mean a hub, which only the planning process asks."""
    return uri.startswith("file:") or Path(uri).expanduser().is_file()


class _Unfit(Exception):
    """Why a remembered model is not believed. `for_now`: it may be all the same, later."""

    def __init__(self, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.for_now = for_now
