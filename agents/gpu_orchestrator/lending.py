"""Lets the workers of lent machines tell the progress of the jobs that are leased to them: a token alone is good for no job."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from bus import BrokerAddress, workers
from bus.redact import of_error
from protocol import Code, LabError

PAUSE = 1.0
"""Seconds until a broker that took no command is asked again; until then the job runs, and only its progress is not seen."""


class Lending:
    """What lent machines may tell.

    Args:
        control: the broker, with a login that may give it commands.
        lab: the lab's name.
    """

    def __init__(self, control: BrokerAddress, lab: str) -> None:
        self._control, self._lab = control, lab
        self._wanted: dict[str, Collection[str]] = {}
        self._wake = asyncio.Event()
        self.log = structlog.get_logger()

    def allow(self, machine: str, jobs: Collection[str]) -> None:
        """Let a machine's worker tell the progress of these jobs, as soon as the broker takes it."""
        self._wanted[machine] = jobs
        self._wake.set()

    async def keep(self) -> None:
        """Tell the broker what is wanted, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for machine, jobs in list(self._wanted.items()):
                try:
                    await workers.allow(self._control, machine, jobs, self._lab)
                except LabError as error:
                    if error.code is not Code.NOT_FOUND:  # who was removed is let in no more
                        self.log.warning("progress will be missing", machine=machine, **of_error(error))
                        self._wake.set()
                        continue
                if self._wanted.get(machine) is jobs:
                    del self._wanted[machine]
            if self._wake.is_set():
                await asyncio.sleep(PAUSE)
