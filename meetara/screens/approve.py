"""`meetara approve` and `refuse`: whether a job that would cost money goes on, and whether a budget is raised."""

from __future__ import annotations

import sys
from typing import Any, cast

from rich.console import Console

from bus import keys
from meetara import show
from meetara.door import FAILED, OK, emit, tell
from meetara.lab import Lab
from protocol import Code, JobSnapshot, LabError, State
from protocol.job import AskedPrice
from protocol.money import CapName, CapReply

BUDGET = "budget"
"""What stands in place of a job's id where budgets are meant."""


async def approve(where: dict[str, Any], what: str, *, yes: bool, as_json: bool, console: Console) -> int:
    """Show what it costs, ask, and let it go on. Without `yes` and without a terminal nothing is approved.

    Raises:
        LabError: NOT_FOUND, CONFLICT: no such job, or it does not wait; CONFIGURATION, the home has no key to sign with.
    """
    async with Lab(**where, name="approve") as lab:
        if what == BUDGET:
            return await _budgets(lab, yes=yes, as_json=as_json, console=console)
        job = await lab.job(what)
        before = await job.snapshot()
        if before.state is not State.AWAITING_APPROVAL or before.approval is None:
            raise LabError(
                Code.CONFLICT, f"the job {what} is {before.state.value}; it does not wait for approval.",
                advice=f"See `meetara job {what}`.", field="job",
            )  # fmt: skip
        if not _sure(question(before.approval), yes=yes, as_json=as_json):
            return FAILED
        after = await job.approve(before.approval.reservation_micros)
    if as_json:
        emit(after)
    elif after.state is State.AWAITING_APPROVAL:
        console.print(f"{after.job}  {after.reason}", markup=False)
    else:
        console.print(f"{after.job}  approved  (meetara watch {after.job})", markup=False)
    return OK


async def refuse(where: dict[str, Any], what: str, *, as_json: bool, console: Console) -> int:
    """End a job that waits for approval; nothing of it was started.

    Raises:
        LabError: NOT_FOUND; CONFLICT, the job does not wait: `meetara cancel` ends any.
    """
    async with Lab(**where, name="refuse") as lab:
        job = await lab.job(what)
        before = await job.snapshot()
        if before.state is not State.AWAITING_APPROVAL:
            raise LabError(
                Code.CONFLICT, f"the job {what} is {before.state.value}; it does not wait for approval.",
                advice=f"`meetara cancel {what}` ends it all the same.", field="job",
            )  # fmt: skip
        after: JobSnapshot = await job.cancel()
    if as_json:
        emit(after)
    else:
        console.print(f"{after.job}  {after.state.value}", markup=False)
    return OK


async def _budgets(lab: Lab, *, yes: bool, as_json: bool, console: Console) -> int:
    wishes = (await lab.budget()).wishes
    if not wishes:
        raise LabError(Code.CONFLICT, "no budget waits for approval.", advice="meetara budget set monthly_usd 80", field="job")
    listed = "\n".join(f"{name}: {show.micros(micros)}" for name, micros in wishes.items())
    if not _sure(listed, yes=yes, as_json=as_json):
        return FAILED
    lab.signed("budget.set")  # raises before anything is changed where there is no key
    replies: list[CapReply] = []
    for name, micros in wishes.items():
        replies.append(await lab.set_budget(cast(CapName, name), micros / 1_000_000))
        if replies[-1].state == "waits":
            own = keys.own(lab.home / keys.FOLDER)
            assert own is not None
            raise LabError(
                Code.INVALID_PARAMS, f"signature: the lab does not trust the key {own.public}.",
                advice=f"Who owns the lab's home adds it there: meetara keys add NAME {own.public}", field="signature",
            )  # fmt: skip
    if as_json:
        emit({"budgets": replies})
    else:
        for reply in replies:
            console.print(f"{reply.name} is {show.micros(reply.cap_micros)}.", markup=False)
    return OK


def question(price: AskedPrice) -> str:
    """Say what a job would cost, in three lines."""
    machine = f"{price.gpu or 'a machine'}{' (spot, may be taken away)' if price.spot else ''} of {price.provider}"
    until = "" if price.expires_at is None else f"; the quote holds until {price.expires_at:%H:%M:%S} UTC, then it is made anew"
    return (
        f"{machine} for {show.micros(price.price_micros_per_hour)} an hour, {show.duration(price.seconds_p50)}"
        f" (nine in ten: {show.duration(price.seconds_p90)})\n"
        f"about {show.micros(price.cost_p50_micros)} (nine in ten: {show.micros(price.cost_p90_micros)})\n"
        f"at most {show.micros(price.reservation_micros)} is reserved{until}"
    )


def _sure(text: str, *, yes: bool, as_json: bool) -> bool:
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise LabError(Code.INVALID_PARAMS, f"this costs money: {text}.".replace("\n", "; "), advice="Give --yes.", field="yes")
    tell(text)
    try:
        return input("Approve? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
