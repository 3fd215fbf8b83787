"""The ledger: reservations before anything starts, what was spent of them, and the rules that keep both within the caps.

Pure over a connection: the caller's transaction holds each check together with the entry that it allows. An open
reservation counts in every current period, whenever it was made: it will be spent in one of them. Nothing but its own
settlement or release ends one, never the time.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any

from agents.cost_monitor.entries import Entries
from agents.cost_monitor.period import PERIODS, end, start
from agents.cost_monitor.sums import Sums
from agents.cost_monitor.thresholds import Thresholds, alert
from agents.cost_monitor.trust import Trust
from configs import Budget
from protocol import Code, LabError, Retry
from protocol.machine import OWN
from protocol.money import BudgetAlert, Reservation, dollars


class Ledger:
    """The ledger in a database that has the tables.

    Args:
        connection: with `sqlite3.Row` as row factory; the caller commits.
        budget: caps and thresholds.
    """

    def __init__(self, connection: sqlite3.Connection, budget: Budget) -> None:
        self._connection = connection
        self._budget = budget
        self.entries = Entries(connection)
        self.thresholds = Thresholds(connection, budget)
        self.trust = Trust(connection)

    # where it stands

    def sums(self, now: datetime) -> list[Sums]:
        """Return where day, week and month stand, by the ledger's time."""
        at = self.entries.time(now)
        reserved = int(
            self._connection.execute("SELECT coalesce(sum(amount_micros), 0) FROM open_reservations").fetchone()[0]
        )
        caps = self._budget.caps()
        found = []
        for period in PERIODS:
            since = start(period, at)
            found.append(Sums(period, since, end(period, at), caps[period], self.entries.spent(since), reserved))
        return found

    def frozen(self, now: datetime) -> bool:
        """Tell whether paid work is frozen: some period has reached the freeze threshold."""
        return any(self.thresholds.frozen(sums) for sums in self.sums(now))

    def note(self, now: datetime) -> list[BudgetAlert]:
        """Note and return thresholds that are reached and were not told in their period."""
        return self.thresholds.note(self.sums(now), now)

    def provider(self, reservation: str) -> str:
        """Return whose machines a reservation was made for; empty: there is none of that name."""
        row = self.entries.reserved(reservation)
        return row["provider"] if row is not None else ""

    # setting aside

    def reserve(
        self, reservation: str, job: str, amount: int, provider: str, domain: str, now: datetime, limit: int | None = None
    ) -> tuple[Reservation, list[BudgetAlert]]:
        """Set money aside before anything is started. The same reservation again changes nothing.

        Args:
            reservation: the reservation's id, chosen by the caller.
            amount: micro-dollars; 0 always passes on local machines.
            limit: most that may ever be set aside for it, whatever the budget holds; None: no such limit.

        Returns:
            The reservation, and the thresholds that it crossed.

        Raises:
            LabError: BUDGET with all sums; CONFLICT if the id was used for another job or amount.
        """
        known = self.entries.reserved(reservation)
        if known is not None:
            if (known["job"], known["amount_micros"]) != (job, amount):
                raise LabError(
                    Code.CONFLICT,
                    f"reservation {reservation} is of {dollars(known['amount_micros'])} for job {known['job']}.",
                    advice="Use a new id for another reservation.", field="reservation",
                )  # fmt: skip
            return Reservation(reservation=reservation, job=job, amount_micros=amount), []
        self._allow(amount, provider, now)
        self.entries.append(
            "reserve", amount, now, reservation=reservation, job=job, provider=provider, domain=domain
        )
        self._connection.execute(
            "INSERT INTO open_reservations (reservation, amount_micros, limit_micros) VALUES (?, ?, ?)",
            (reservation, amount, limit),
        )
        return Reservation(reservation=reservation, job=job, amount_micros=amount), self.note(now)

    def extend(self, reservation: str, job: str, amount: int, now: datetime) -> tuple[Reservation, list[BudgetAlert]]:
        """Let a reservation be `amount` in all; checked as a new one. Less than it is changes nothing.

        Raises:
            LabError: NOT_FOUND; CONFLICT if the reservation has ended; BUDGET with all sums, or the limit of this one; it
                stays as it was.
        """
        row = self._owned(reservation, job)
        known = self.entries.set_aside(reservation)
        more = amount - known
        if more > 0:
            self._must_be_open(row)
            self._must_be_agreed(row, amount)
            self._allow(more, row["provider"], now)
            self.entries.append("extend", more, now, **_of(row))
            self._connection.execute(
                "UPDATE open_reservations SET amount_micros = amount_micros + ? WHERE reservation = ?", (more, reservation)
            )
        return Reservation(reservation=reservation, job=job, amount_micros=max(amount, known)), self.note(now)

    # spending

    def settle(
        self, reservation: str, job: str, amount: int, now: datetime, *, part: str = "", provider: str | None = None,
        rental: str = "", bill_follows: bool = False,
    ) -> list[BudgetAlert]:  # fmt: skip
        """Enter what was really spent; without a `part` that ends the reservation and frees the rest. The same settlement
        again changes nothing.

        More than was reserved is entered as it is: the ledger tells the truth even where a cap is broken.

        Args:
            part: names this part, so that it is entered once; empty: the last one.
            provider: who is paid; None: the reservation's provider.
            rental: the instance on which it was spent.
            bill_follows: the provider's bill may be higher: the rest stays set aside until `Bills` has it.

        Returns:
            The thresholds that were crossed, and one alert with a note if more was spent than reserved.

        Raises:
            LabError: NOT_FOUND; CONFLICT if the reservation ended otherwise, or the part is of another amount.
        """
        row = self._owned(reservation, job)
        facts: dict[str, Any] = {**_of(row), "provider": provider or row["provider"], "rental": rental, "bill_follows": bill_follows}
        if part:
            known = self.entries.part(reservation, part)
            if known is not None:
                if known["amount_micros"] == amount:
                    return []
                raise LabError(
                    Code.CONFLICT, f"the part {part!r} of reservation {reservation} is of {dollars(known['amount_micros'])}.",
                    advice="Name another part.", field="part",
                )  # fmt: skip
            self._must_be_open(row)
            self.entries.append("part", amount, now, part=part, **facts)
            self.draw(reservation, amount)
        elif self._has_ended(row, "settle", amount):
            return []
        else:
            self.entries.append("settle", amount, now, **facts)
            self.draw(reservation, amount)
            self._close(reservation)
        return [*self.note(now), *self._overrun(row, facts["provider"], amount, now)]

    def release(self, reservation: str, job: str, now: datetime) -> None:
        """End a reservation of which nothing (more) was spent. The same release again changes nothing.

        Raises:
            LabError: NOT_FOUND; CONFLICT if the reservation was settled.
        """
        row = self._owned(reservation, job)
        if not self._has_ended(row, "release", 0):
            self.entries.append("release", 0, now, **_of(row))
            self._close(reservation)

    def draw(self, reservation: str, amount: int) -> None:
        """Take what was spent from what is set aside for it, as far as that goes."""
        self._connection.execute(
            "UPDATE open_reservations SET amount_micros = max(0, amount_micros - ?) WHERE reservation = ?",
            (amount, reservation),
        )

    def free_billed(self) -> None:
        """Free what is held back for bills that are all there now."""
        self._connection.execute(
            "DELETE FROM open_reservations WHERE held AND NOT EXISTS (SELECT 1 FROM entries e"
            " LEFT JOIN bills b ON b.provider = e.provider AND b.rental = e.rental"
            " WHERE e.reservation = open_reservations.reservation AND e.bill_follows AND b.rental IS NULL)"
        )

    # rules

    def _allow(self, amount: int, provider: str, now: datetime) -> None:
        paid = provider not in OWN
        if amount == 0 and not paid:
            return
        frozen = self.trust.frozen().get(provider)
        if frozen is not None:
            raise LabError(
                Code.BUDGET, f"nothing is rented from {provider} any more: {frozen}.",
                advice=f"When that is explained: meetara budget unfreeze {provider}.", provider=provider,
            )  # fmt: skip
        for sums in self.sums(now):
            reason = self._against(amount, paid, sums)
            if reason:
                raise self._refusal(amount, reason, sums)

    def _against(self, amount: int, paid: bool, sums: Sums) -> str:
        """Return why a period does not take a reservation; empty: it does."""
        freeze, optimise = self._budget.freeze_percent, self._budget.optimise_percent
        if amount > sums.left:
            return f"the {sums.period}'s budget does not hold it"
        if sums.reached(freeze) or (paid and self.thresholds.frozen(sums)):
            return f"paid work is frozen from {freeze} % of the {sums.period}'s budget on"
        if sums.reached(optimise) and amount * 2 > sums.left:
            return f"from {optimise} % of the {sums.period}'s budget on no job may reserve more than half of what is left"
        if paid and sums.reached(freeze, amount):  # it would freeze itself, and all that runs with it
            return f"with it {freeze} % of the {sums.period}'s budget are reached, where paid work is frozen"
        return ""

    def _refusal(self, amount: int, reason: str, sums: Sums) -> LabError:
        later = amount <= sums.cap
        renewal = f", or wait until {sums.until:%Y-%m-%d %H:%M} UTC" if later else ""
        key = self._budget.key(sums.period)
        return LabError(
            Code.BUDGET, f"the job needs {dollars(amount)}, but {reason}: {sums}.",
            advice=f"Raise it (meetara budget set {key} USD), choose a smaller job{renewal}.",
            retry=Retry.LATER if later else Retry.NEVER, needed_micros=amount, **sums.facts(),
        )  # fmt: skip

    def _overrun(self, row: sqlite3.Row, provider: str, amount: int, now: datetime) -> list[BudgetAlert]:
        """Return an alert if a reservation has paid more than it was, and freeze who was paid last."""
        spent, aside = self.entries.paid(row["reservation"]), self.entries.set_aside(row["reservation"])
        if spent <= aside or amount == 0:
            return []
        note = f"job {row['job']} spent {dollars(spent)}, more than the {dollars(aside)} that was reserved"
        if provider not in OWN:
            self.trust.freeze(provider, note, now)
        return [self.remark(note, now)]

    def remark(self, note: str, now: datetime, **facts: object) -> BudgetAlert:
        """Return an alert about something else than a threshold, with the sums of the period that is used up most."""
        worst = max(self.sums(now), key=lambda sums: sums.percent)
        return alert(worst, self.thresholds.highest(worst), now, note).model_copy(update=facts)

    # reservations

    def _owned(self, reservation: str, job: str) -> sqlite3.Row:
        row = self.entries.reserved(reservation)
        if row is None or row["job"] != job:
            raise LabError(
                Code.NOT_FOUND, f"job {job} has no reservation {reservation}.", advice="See `meetara budget` for those there are.",
                field="reservation",
            )  # fmt: skip
        return row

    def _has_ended(self, row: sqlite3.Row, kind: str, amount: int) -> bool:
        """Tell whether a reservation has ended in this very way.

        Raises:
            LabError: CONFLICT, it ended otherwise.
        """
        ended = self.entries.ended(row["reservation"])
        if ended is None:
            return False
        if (ended["kind"], ended["amount_micros"]) == (kind, amount):
            return True
        how = "was released" if ended["kind"] == "release" else f"was settled with {dollars(ended['amount_micros'])}"
        raise LabError(
            Code.CONFLICT, f"reservation {row['reservation']} of job {row['job']} {how} at {_iso(ended['at'])}.",
            advice="A reservation ends once; make a new one for more.", field="reservation",
        )  # fmt: skip

    def _must_be_open(self, row: sqlite3.Row) -> None:
        self._has_ended(row, "", -1)

    def _must_be_agreed(self, row: sqlite3.Row, amount: int) -> None:
        limit = self._connection.execute(
            "SELECT limit_micros FROM open_reservations WHERE reservation = ?", (row["reservation"],)
        ).fetchone()[0]
        if limit is not None and amount > limit:
            raise LabError(
                Code.BUDGET, f"job {row['job']} needs {dollars(amount)} in all, more than the {dollars(limit)} that were agreed to.",
                advice="Send the request again with a higher budget_usd, or have the new price approved.",
                needed_micros=amount, cap_micros=limit,
            )  # fmt: skip

    def _close(self, reservation: str) -> None:
        self._connection.execute("UPDATE open_reservations SET held = 1 WHERE reservation = ?", (reservation,))
        self.free_billed()


def _of(row: sqlite3.Row) -> dict[str, Any]:
    return {name: row[name] for name in ("reservation", "job", "provider", "domain")}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
