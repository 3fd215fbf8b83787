"""The process of one job: runs the stages and writes what happens as JSON lines.

    python -m agents.gguf_factory.work JOBDIR [--agent ID]   # reads job.json (a RunRequest); exit code 0 done, 3 stopped,
                                                            # 1 failed; ID is the factory's, for the log
    python -m agents.gguf_factory.work --plan   # PlanRequest on stdin, {"plan": …} or {"error": …} on stdout

Nothing but those lines goes to stdout; whatever libraries print goes to stderr. SIGTERM asks for a stop: the stage
saves what it has and the process ends. It dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import structlog
from pydantic import ValidationError

from agents.gguf_factory import child, lifeline, recovery, storage, zygote
from agents.gguf_factory.job import LOCAL, Job, Stopped
from bus import logs, trace
from bus.redact import of_error
from protocol import Code, LabError, Retry
from protocol.job import Finished, PlanRequest, RunRequest, Stage

DONE, FAILED, STOPPED = 0, 1, 3
NICENESS = 5  # the agents must stay able to renew leases while a job takes every core
PROGRESS_S = 0.5  # twice a second is as often as a person's eye follows
log = structlog.get_logger()
LOCK_WAIT_S = 10.0  # a predecessor that was just killed may take a moment to let go of its memory and its lock


class Lines:
    """Writes JSON lines; progress at most every PROGRESS_S seconds, unless its note or stage is new."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out
        self.clock = clock
        self.stage = Stage.PLAN.value
        self.last = -PROGRESS_S
        self.note = ""

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line at once."""
        if line["kind"] == "stage_started":
            self.stage, self.last = line["stage"], -PROGRESS_S
        self.out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.out.flush()

    def progress(self, **facts: Any) -> None:
        """Write a progress line, or leave it out when the last one is too fresh."""
        now = self.clock()
        note = facts.get("note") or ""
        if now - self.last < PROGRESS_S and note in ("", self.note):
            return
        self.last, self.note = now, note
        self.write({"kind": "progress", "stage": self.stage, **facts})


def private_stdout() -> TextIO:
    """Return the real stdout for this module alone; from here on, what is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return out


def work(folder: Path, out: TextIO) -> int:
    """Run the job in a folder to its end and return the exit code."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab, which then asks by SIGTERM
    lines = Lines(out)
    try:
        run = _read(folder)
        _lock(folder)
    except LabError as error:
        log.error("the job cannot be worked on", **of_error(error))
        return _failed(lines, error)
    with trace.bound(trace.inherited(), job=run.job):
        return _work(run, folder, lines, lambda: stopping)


def _work(run: RunRequest, folder: Path, lines: Lines, stopping: Callable[[], bool]) -> int:
    def report(line: Mapping[str, Any]) -> None:
        log.info(line["kind"].replace("_", " "), stage=line["stage"], seconds=line.get("seconds"))
        lines.write(line)

    log.info("job begins", attempt=run.attempt)
    job = Job(run, folder, home=folder.parent.parent, progress=lines.progress, stop=stopping)
    try:
        from agents.gguf_factory import pipeline, staging

        job.run = staging.arrive(run, job.home, lambda note: lines.progress(note=note))
        manifests = pipeline.run(job, report)
        outcome = _outcome(manifests)
        if run.provider == LOCAL:  # the lab remembers what was made elsewhere, where the next request is planned
            _keep(job, manifests[Stage.PLAN]["results"], outcome)
        log.info("job done")  # before others learn of it: merged logs stand in the order of what caused what
        lines.write({"kind": "done", **outcome})
        _remember(job, manifests)
    except Stopped as stopped:
        stage = stopped.args[0] if stopped.args else lines.stage
        log.info("job stopped", stage=str(getattr(stage, "value", stage)))
        lines.write({"kind": "stopped", "stage": str(getattr(stage, "value", stage))})
        return STOPPED
    except Exception as error:
        action = recovery.action(error).value
        if isinstance(error, LabError):
            log.error("job failed", stage=lines.stage, action=action, **of_error(error))
        else:
            log.exception("job failed", stage=lines.stage, action=action)
        free = shutil.disk_usage(folder).free
        told = recovery.explain(error, stage=lines.stage, log=str(folder / "log.txt"), free_bytes=free)
        _failed(lines, told)
        if told.retry is Retry.NEVER:
            _clear(job)
        return FAILED
    _clear(job)
    return DONE


def _clear(job: Job) -> None:
    """Remove what a job that is over has in the artefact store for other machines."""
    if not job.stored:
        return
    try:
        from agents.gguf_factory import checkpoint_store

        checkpoint_store.clear(job)
    except Exception:
        log.exception("stored checkpoints are left; the next job that ends removes them when they are two weeks old")


def _failed(lines: Lines, error: LabError) -> int:
    lines.write({"kind": "failed", "stage": lines.stage, "error": error.body().model_dump(mode="json")})
    return FAILED


def _read(folder: Path) -> RunRequest:
    file = folder / "job.json"
    try:
        return RunRequest.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(Code.NOT_FOUND, f"{file} cannot be read ({error}).", file=str(file)) from error
    except ValidationError as error:
        raise LabError.from_validation(error, str(file)) from error


def _lock(folder: Path) -> None:
    """Make sure that no other process works in this folder; the lock is held until this one ends."""
    descriptor = os.open(folder / storage.LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                problem = f"Another process works in {folder}."
                raise LabError(Code.BUSY, problem, advice="Wait for it to end.", retry=Retry.LATER) from error
            time.sleep(0.1)


def _outcome(manifests: Mapping[Stage, Mapping[str, Any]]) -> dict[str, Any]:
    """Gather artefacts, gates and numbers; a name that two stages use keeps the stage's name before it in the later."""
    artefacts: list[Any] = []
    gates: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for stage, manifest in manifests.items():
        artefacts += manifest["artefacts"]
        gates |= manifest["gates"]
        for name, value in manifest["results"].items() if stage is not Stage.PLAN else ():  # predictions
            results[name if name not in results else f"{stage.value}_{name}"] = value
        results[f"{stage.value}_seconds"] = manifest["seconds"]
    results["seconds"] = round(sum(manifest["seconds"] for manifest in manifests.values()), 3)
    return {"artefacts": artefacts, "gates": gates, "results": results}


def _keep(job: Job, planned: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Put the model into the cache, if what it was made from is now as it was when the job began."""
    import configs
    from agents.gguf_factory.cache import Cache
    from agents.gguf_factory.fingerprint import code_version, fingerprint, key
    from agents.gguf_factory.hashes import Hashes

    try:
        lab = configs.load()
        facts = fingerprint(job.run.request, job.run.route, lab.tiers, Hashes(job.home), job.parameters)
        name = key(facts)
        if name == planned.get("fingerprint") and facts["code"] == code_version():
            model = Finished(job=job.run.job, **{part: outcome[part] for part in ("artefacts", "gates", "results")})
            Cache(job.home, lab.storage).keep(name, job.run.plan, model, facts)
        else:
            log.warning("not kept for the same request: base, code or configuration changed while the job ran")
    except (LabError, OSError) as error:  # the model is finished and proven; that it is not remembered costs time, not it
        log.warning("not kept for the same request", reason=str(error))


def _remember(job: Job, manifests: Mapping[Stage, Mapping[str, Any]]) -> None:
    """Keep what the job took, so that the next plan on this base is better."""
    from agents.gguf_factory import machine

    seconds = sum(manifest["seconds"] for manifest in manifests.values())
    facts = manifests[Stage.PLAN]["results"]
    finished = machine.Finished(facts["base"], job.run.plan.tokens, facts["uncalibrated_seconds"], seconds)
    machine.remember(job.home, finished)


def make_plan(text: str, home: Path) -> dict[str, Any]:
    """Return {"plan": …} or {"error": …} for a PlanRequest's JSON."""
    import configs
    from agents.gguf_factory import staging
    from agents.gguf_factory.cache import Cache
    from agents.gguf_factory.hashes import Hashes
    from agents.gguf_factory.plan import plan

    try:
        request, lab = PlanRequest.model_validate_json(text), configs.load()
        made = plan(request, home, lab.tiers, lab.storage)
        # The agent has looked already, but not where data sets are far away, and not since another job has ended.
        found = Cache(home, lab.storage).find(request, lab.tiers, made.parameters)
        made = found.plan or made.model_copy(
            update={"key": found.key, "warnings": [*made.warnings, *([found.why] if found.why else [])]}
        )
        store = configs.Settings.read().store
        if store is not None and made.finished is None and request.elsewhere and request.staging:
            staged = staging.stage(request.request, request.route, store, Hashes(home))
            made = made.model_copy(update={"staged": staged})
        return {"plan": made.model_dump(mode="json")}
    except ValidationError as error:
        return {"error": LabError.from_validation(error, "plan request").body().model_dump(mode="json")}
    except LabError as error:
        return {"error": error.body().model_dump(mode="json")}


def main(arguments: list[str]) -> int:
    out = private_stdout()
    lifeline.die_with_parent()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, file=out)
        return DONE if arguments else FAILED
    if arguments[0] == "--plan":
        from configs import Settings

        answer = make_plan(sys.stdin.read(), Settings.read().home)
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()
        return DONE if "plan" in answer else FAILED
    with contextlib.suppress(PermissionError):  # the starter already made it the leader of a session
        os.setpgid(0, 0)
    os.nice(NICENESS)
    agent = arguments[2] if arguments[1:2] == ["--agent"] else "gguf_factory"
    logs.configure(agent, *logs.wanted())
    with child.forking(out.fileno()) if zygote.loaded() else contextlib.nullcontext():
        return work(Path(arguments[0]).resolve(), out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
