"""What every stage is given and what it hands back. Knows folders and manifests; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.job import Artefact, Gate, RunRequest, Stage

MANIFEST = "manifest.json"
LOCAL = "local"  # the provider whose machine is still there when a job goes on


class Stopped(Exception):
    """A stage ended early because `Job.stop` asked for it; what it saved in its folder is enough to go on."""


def silent(**_: Any) -> None:
    """Progress that nobody watches."""


def never() -> bool:
    """A stop that nobody asks for."""
    return False


@dataclass
class Job:
    """One leased job on this machine.

    Args:
        run: the conductor's request with the plan.
        folder: the job's working folder, MEETARA_HOME/jobs/<job>.
        home: MEETARA_HOME.
        progress: takes any of step, steps, loss, tokens, tokens_per_s, eta_s (seconds), note as keywords.
        stop: true once a stop was asked for; a long stage looks about once a second, saves, and raises `Stopped`.
    """

    run: RunRequest
    folder: Path
    home: Path
    progress: Callable[..., None] = silent
    stop: Callable[[], bool] = never

    @property
    def parameters(self) -> dict[str, Any]:
        """All training parameters as the plan fixed them (configs/proven_parameters.json ← tier ← request)."""
        return dict(self.run.plan.parameters)

    @property
    def adapter(self) -> bool:
        """Whether the product is a LoRA file on a shared base rather than a merged model."""
        return self.run.request.profile == "adapter"

    @property
    def base(self) -> Path:
        """The folder of the base model: config, tokenizer, safetensors (a hub name is its cached snapshot).

        Raises:
            LabError: NOT_FOUND, the base is neither a folder nor in the hub's cache.
        """
        from agents.gguf_factory.base import resolve

        return resolve(self.run.route.base)

    @property
    def stored(self) -> bool:
        """Whether checkpoints go into the artefact store: where the request says so, or the machine may be gone later."""
        return (self.run.request.checkpoints or ("machine" if self.run.provider == LOCAL else "store")) == "store"

    @property
    def store(self) -> str | None:
        """URI of the artefact store: the job's own where it was staged, else this machine's setting; None: the home."""
        from configs import Settings

        staged = self.run.plan.staged
        return Settings.read().store if staged is None or self.run.provider == LOCAL else staged.store

    def path(self, stage: Stage | str, *names: str) -> Path:
        """Return a path in a stage's folder, e.g. `job.path("data", "packed.safetensors")`. Creates nothing."""
        return self.folder.joinpath(Stage(stage).value, *names)

    def read_manifest(self, stage: Stage | str) -> dict[str, Any]:
        """Return a finished stage's manifest: stage, inputs, parameters, files, results, artefacts, gates, seconds.

        Raises:
            FileNotFoundError: the stage is not finished.
        """
        manifest: dict[str, Any] = json.loads(self.path(stage, MANIFEST).read_text(encoding="utf-8"))
        return manifest


@dataclass
class StageResult:
    """What a stage made: files in its folder (hashed into the manifest) and measured numbers.

    `artefacts` are set by publish and `gates` by validate; both go into the manifest and the final `done` line.
    """

    files: list[Path] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    artefacts: list[Artefact] = field(default_factory=list)
    gates: dict[str, Gate] = field(default_factory=dict)
