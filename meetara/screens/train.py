"""`meetara train`: submit, watch, result. Ctrl-C leaves the job running."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from meetara.door import FAILED, INTERRUPTED, OK, WRONG, emit, tell
from meetara.job import check
from meetara.lab import Lab
from meetara.screens import live, result
from protocol import Code, JobSnapshot, LabError, State, uuid7


def purpose(domain: str | None, text: str | None) -> None:
    """Check that a request says what its model is for.

    Raises:
        LabError: INVALID_PARAMS with neither domain nor text.
    """
    if domain is None and text is None:
        raise LabError(
            Code.INVALID_PARAMS, "--domain: the request does not say what the model is for.",
            advice='Give --domain NAME, or in free words --for "what it is for".', field="domain",
        )  # fmt: skip


def parameters(pairs: list[str]) -> dict[str, float | int | str | bool]:
    """Read `name=value` pairs; values are numbers or true/false where they look so, else text.

    Raises:
        LabError: INVALID_PARAMS, a pair without `=` or named twice.
    """
    found: dict[str, float | int | str | bool] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise LabError(
                Code.INVALID_PARAMS, f"{pair!r} is not name=value.", advice="Write for example --param lora_r=16.",
                field="parameters",
            )  # fmt: skip
        if name.strip() in found:
            raise LabError(
                Code.INVALID_PARAMS, f"{name.strip()} is given twice.", advice="Give each parameter once.",
                field="parameters",
            )  # fmt: skip
        found[name.strip()] = _value(text.strip())
    return found


def _value(text: str) -> float | int | str | bool:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


async def train(
    where: dict[str, Any], fields: dict[str, Any], *, detach: bool, as_json: bool, console: Console
) -> int:
    """Submit a request and follow its job; returns the exit code."""
    async with Lab(**where, name="train") as lab:
        fields["id"] = fields.get("id") or uuid7()
        try:
            job = await lab.train(**fields)
        except asyncio.CancelledError:
            told = f"the request {fields['id']} was sent and may go on."
            tell(f"\nInterrupted; {told} `meetara job {fields['id']}` tells, `meetara cancel {fields['id']}` ends it.")
            if as_json:
                emit({"error": LabError(Code.CANCELLED, f"interrupted; {told}", job=fields["id"]).body()})
            return INTERRUPTED
        assert job.submitted is not None
        if detach:
            if as_json:
                emit(job.submitted)
            else:
                console.print(f"{job.id}  {job.submitted.state.value}  (meetara watch {job.id})", markup=False)
            return OK
        if not as_json:
            console.print(
                f"{job.id}: {job.submitted.domain}, tier {job.submitted.tier}, base {Path(job.submitted.base).name}",
                markup=False,
            )  # fmt: skip
        try:
            final = await live.follow(job, None if as_json else console)
        except asyncio.CancelledError:
            tell(f"\nThe job {job.id} goes on. `meetara watch {job.id}` shows it, `meetara cancel {job.id}` ends it.")
            if as_json:
                error = LabError(Code.CANCELLED, f"interrupted; the job {job.id} goes on.", job=job.id)
                emit({"error": error.body()})
            return INTERRUPTED
        return show_end(final, as_json=as_json, console=console)


def show_end(final: JobSnapshot, *, as_json: bool, console: Console) -> int:
    """Show how a job ended and return the exit code."""
    if as_json:
        check(final)
        emit(final)
        return OK
    if final.state is State.DONE or final.gates:
        console.print(result.screen(final))
    if final.state is State.DONE:
        return OK
    tell(f"error: the job {final.job} is {final.state.value}: {final.reason or 'no reason was given'}")
    return WRONG if final.state is State.REFUSED else FAILED
