"""A rented machine as the orchestrator remembers it. Pure data."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, Field

from protocol.machine import Listing


class State(StrEnum):
    """Where a rental is in its life. From `UNCERTAIN` to `ENDING` it may cost money."""

    ORDERED = "ordered"
    """Written down, nothing was asked of the provider."""
    UNCERTAIN = "uncertain"
    """The provider was asked to launch, and what came of it is not known."""
    BOOTING = "booting"
    """The provider launched it; its worker has not come yet."""
    READY = "ready"
    """Its worker is online and what it says of its device is true."""
    LEAVING = "leaving"
    """No job may begin on it; those that run are saving."""
    ENDING = "ending"
    """It is to be terminated, until the provider proves that it is gone."""
    GONE = "gone"
    """The provider proved that it is gone, or never came to be."""


class Rental(BaseModel):
    """One rented machine.

    Attributes:
        id: names it for ever; the provider's tag and the worker's name are made from it.
        kind: base and tier of the jobs that share it.
        tag: its name at the provider.
        machine: the id of its worker as an agent.
        needs_disk_bytes: what was ordered.
        limit_micros_per_hour: the most that it may cost.
        instance: the provider's id, once it is known.
        price_micros_per_hour: what the provider said it costs; until then the limit, so that nothing is forgotten.
        state_at: when it came into its state.
        metered_from: when the meter began: just before the provider was asked. None: it was never asked.
        quiet_since: since when its worker has no lease and nobody waits for it.
        missed_at: when the provider first said that it has none such; None: it has not said so since.
        ended_at: when the meter ended.
        reason: why it ends.
        fault: what the provider or the host did wrong; another one is looked for then.
        error: the last thing that went wrong at the provider.
        failures: calls in a row that failed.
        next_at: no call before then.
        billed_micros: what the provider charges for it; None: it has not told.
        bill_at: when the provider is asked for the bill; None: not (any more).
        token: lets its worker in at the broker; forgotten at the end.
        stopped_by: when the freeze began that ended it.
        key: fingerprint of the vendor's key that rented it or saw it last; empty: a version that kept none rented it.
        account: the vendor's id of that key's account; empty: it did not tell.
        unseen_by: fingerprint of a key that does not show it and may be another account's; empty: none.
    """

    id: str
    provider: str
    listing: Listing
    kind: str
    tag: str
    machine: str
    needs_disk_bytes: int
    limit_micros_per_hour: int
    state: State = State.ORDERED
    instance: str | None = None
    price_micros_per_hour: int
    created_at: datetime
    state_at: datetime
    metered_from: datetime | None = None
    quiet_since: datetime | None = None
    missed_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str = ""
    fault: str = ""
    error: str = ""
    failures: int = 0
    next_at: datetime | None = None
    billed_micros: int | None = None
    bill_at: datetime | None = None
    token: str = Field(default="", repr=False)
    stopped_by: datetime | None = None
    key: str = ""
    account: str = ""
    unseen_by: str = ""

    @property
    def open(self) -> bool:
        """Whether it may take another job, now or when it is ready."""
        return self.state in (State.ORDERED, State.UNCERTAIN, State.BOOTING, State.READY)

    def into(self, state: State, now: datetime, **change: object) -> Rental:
        """Return it in another state."""
        fresh = {"failures": 0, "next_at": None, "missed_at": None} if state is not self.state else {}
        return self.model_copy(update={"state": state, "state_at": now, **fresh, **change})
