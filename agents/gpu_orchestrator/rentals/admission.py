"""Lets the workers of rented machines in at the lab's broker, and out again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from agents.gpu_orchestrator.rentals.rental import Rental
from bus import BrokerAddress, workers
from bus.workers import Token

BROKER = "MEETARA_BROKER"
"""Environment of a worker: where the lab's broker is, as it is seen from outside."""

WAIT, WAIT_S = "MEETARA_WORKER_WAIT", "600"
"""Environment of a worker, and its value: seconds for which a machine that is paid for already waits for a lab that restarts."""


class Admission:
    """Logins of workers at a broker that runs.

    Args:
        control: the broker, with the orchestrator's login.
        public: its address as workers reach it, e.g. mqtts://lab.example.org:8883.
        lab: the lab's name.
        ca: file of the authority that signed its certificate; None: one that systems know.
        given: further environment of all workers.
    """

    def __init__(
        self, control: BrokerAddress, public: str, lab: str, ca: Path | None, given: Mapping[str, str] | None = None
    ) -> None:
        self._control, self._public, self._lab, self._ca = control, public, lab, ca
        self._given = dict(given or {})

    def token(self, rental: str, provider: str) -> str:
        """Make the token of a new rental's worker."""
        return str(workers.make(rental, provider=provider, lab=self._lab, ca=self._ca))

    def environment(self, rental: Rental) -> Mapping[str, str]:
        """Return what the worker is started with."""
        return {WAIT: WAIT_S, **self._given, workers.VARIABLE: rental.token, BROKER: self._public}

    async def admit(self, rental: Rental, jobs: Iterable[str]) -> None:
        """Let a rental's worker in for these jobs; the same again changes nothing.

        Raises:
            LabError: UNREACHABLE, INTERNAL: the broker did not do it.
        """
        await workers.admit(self._control, Token.read(rental.token), jobs)

    async def dismiss(self, worker: str) -> None:
        """End a worker's login; one that is gone already is no error.

        Raises:
            LabError: UNREACHABLE, INTERNAL: the broker did not do it.
        """
        await workers.dismiss(self._control, worker, self._lab)

    async def admitted(self) -> set[str]:
        """Return the names of all workers that are let in.

        Raises:
            LabError: UNREACHABLE: the broker does not answer.
        """
        return await workers.admitted(self._control)
