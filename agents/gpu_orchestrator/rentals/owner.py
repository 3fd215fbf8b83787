"""Whose machines the present key of a provider can show: what it does not show is gone only if they are its account's. Pure.

A rental keeps the fingerprint of the key that rented it, and the account's id where the provider tells one. Three things prove
that another key speaks for it: the same id, the sight of the machine itself, and the owner's word (REPLACED).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.gpu_orchestrator.rentals.rental import Rental

REPLACED = "MEETARA_REPLACED_KEYS"
"""Environment: fingerprints of keys whose account the present key has, or whose machines the owner has ended."""
NAMED = 3
"""Machines that a provider's status names; a freeze's worth of them would not fit."""


@dataclass(frozen=True)
class Owner:
    """The account of a provider's present key, as far as it is known.

    Attributes:
        key: the key's fingerprint.
        account: the provider's id of the account; empty: it does not tell one, or has not yet.
        replaced: fingerprints of keys for which the lab's owner has given his word.
    """

    key: str = ""
    account: str = ""
    replaced: frozenset[str] = frozenset()

    def speaks_for(self, rental: Rental) -> bool:
        """Tell whether the provider means this rental when it says to this key that there is none such.

        One without a fingerprint was rented by a version that kept none.
        """
        return rental.key in ("", self.key) or rental.key in self.replaced or (self.account != "" and rental.account == self.account)

    def mark(self, rental: Rental) -> dict[str, str]:
        """Return what a rental keeps of the key that has rented it, or sees it."""
        return {"key": self.key or rental.key, "account": self.account or rental.account, "unseen_by": ""}


def out_of_sight(provider: str, rentals: Sequence[Rental]) -> str:
    """Say what is wrong with machines that the present key does not show, and how it is mended."""
    tags = ", ".join(rental.tag for rental in rentals[:NAMED])
    more = f" and {len(rentals) - NAMED} more" if len(rentals) > NAMED else ""
    keys = ",".join(sorted({rental.key for rental in rentals}))
    return (
        f"the present key of {provider} does not show what was rented with another one ({tags}{more}), so it may be another account's: "
        f"these machines may still cost money, and what is reserved for them stays. Put the old key back; or, if the new one is of the same "
        f"account or you have ended them at {provider} yourself, start the orchestrator with {REPLACED}={keys}."
    )
