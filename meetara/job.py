"""A training job of a lab, for the typed client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from protocol import Code, JobSnapshot, LabError, Progress, State
from protocol.job import FINAL, ApproveRequest, EventsQuery, JobEvent, JobEvents, JobQuery, Submitted

if TYPE_CHECKING:
    from meetara.lab import Lab


class Job:
    """A training job of a lab."""

    def __init__(self, lab: Lab, id: str, submitted: Submitted | None = None) -> None:
        self._lab = lab
        self.id = id
        self.submitted = submitted

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    async def snapshot(self) -> JobSnapshot:
        """Ask the conductor for the job's state.

        Raises:
            LabError: NOT_FOUND, or the lab does not answer.
        """
        found: JobSnapshot = await self._lab.client.call("job.get", JobQuery(job=self.id))
        return found

    async def events(self, since: int = 0) -> list[JobEvent]:
        """Return the job's numbered facts after `since`."""
        found: JobEvents = await self._lab.client.call("job.events", EventsQuery(job=self.id, since=since))
        return found.events

    async def updates(self) -> AsyncGenerator[JobSnapshot | Progress, None]:
        """Yield snapshots and progress as they come, the present state first, until the final snapshot."""
        last: JobSnapshot | None = None
        async with aclosing(self._lab.updates(self.id, ask_again=self.snapshot)) as updates:
            async for update in updates:
                if isinstance(update, JobSnapshot):
                    if last is not None and update.at < last.at:
                        continue  # an old retained message after a reconnect
                    if update == last:
                        continue
                    last = update
                yield update
                if last is not None and last.state in FINAL:
                    return

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield the job's progress until the job has ended."""
        async with aclosing(self.updates()) as updates:
            async for update in updates:
                if isinstance(update, Progress):
                    yield update

    async def states(self) -> AsyncIterator[JobSnapshot]:
        """Yield the job's snapshots, the last one final."""
        async with aclosing(self.updates()) as updates:
            async for update in updates:
                if isinstance(update, JobSnapshot):
                    yield update

    async def result(self) -> JobSnapshot:
        """Wait until the job has ended and return its final snapshot.

        Raises:
            LabError: the job failed (GATE_MISSED, INTERNAL), was refused (INVALID_REQUEST) or CANCELLED, and why;
                `data["snapshot"]` holds the final snapshot.
        """
        final: JobSnapshot | None = None
        async for snapshot in self.states():
            final = snapshot
        assert final is not None
        return check(final)

    async def cancel(self) -> JobSnapshot:
        """Stop the job; what it has finished is kept."""
        found: JobSnapshot = await self._lab.client.call("job.cancel", JobQuery(job=self.id))
        return found

    async def approve(self, amount_micros: int) -> JobSnapshot:
        """Let a job go on that waits for approval, signed by the home's key.

        Args:
            amount_micros: what it may reserve; a tenth more is let pass. The price that is asked for is `snapshot().approval`.

        Raises:
            LabError: CONFIGURATION, the home has no key; INVALID_PARAMS, the lab does not trust it; CONFLICT, the job does
                not wait.
        """
        signature = self._lab.signed("job.approve", self.id, amount_micros)
        asked = ApproveRequest(job=self.id, amount_micros=amount_micros, signature=signature)
        found: JobSnapshot = await self._lab.client.call("job.approve", asked)
        return found


def check(final: JobSnapshot) -> JobSnapshot:
    """Return the snapshot of a job that is done; raise the reason of one that is not.

    Raises:
        LabError: GATE_MISSED or INTERNAL (failed), INVALID_REQUEST (refused), CANCELLED.
    """
    if final.state is State.DONE:
        return final
    missed = [name for name, gate in final.gates.items() if gate.ok is False and gate.level == "fail"]
    code = {State.REFUSED: Code.INVALID_REQUEST, State.CANCELLED: Code.CANCELLED}.get(
        final.state, Code.GATE_MISSED if missed else Code.INTERNAL
    )
    reason = final.reason or "no reason was given"
    raise LabError(
        code, f"the job {final.job} is {final.state.value}: {reason}",
        job=final.job, snapshot=final.model_dump(mode="json"),
    )  # fmt: skip
