"""Bills of providers: compared with the own meter, corrected by entries, and what they say about whom to trust.

An instance's corrections are brought to `bill - own meter`, whatever the order in which settlements and bills arrive and
however often a bill is told.
"""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime

from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.sums import shares
from protocol import Code, LabError
from protocol.money import BillReport, BillRequest, BudgetAlert, dollars

DRIFT_PERCENT, DRIFT_MICROS = 5, 100_000
"""A bill that is off the own meter by more than 5 %, or by more than 10 cents, is an alert: rounding to seconds and minutes
explains less on anything that runs for an hour."""
ABSURD = 4
"""A bill so many times the own meter freezes its provider, as a price so far above the usual one is refused (architecture §5).
The incident to be caught is a bid that was multiplied by eight GPUs; the own meter runs longer than the provider's, so on a
short rental that bill is less than eight times it."""


class Bills:
    """The bills in the ledger's database."""

    def __init__(self, connection: sqlite3.Connection, ledger: Ledger) -> None:
        self._connection = connection
        self._ledger = ledger

    def bill(self, request: BillRequest, now: datetime) -> tuple[BillReport, list[BudgetAlert]]:
        """Take in what a provider charges for an instance. The same bill again changes nothing.

        Returns:
            What came of it; thresholds that were crossed, and an alert where bill and meter drift apart.

        Raises:
            LabError: INVALID_PARAMS, the bill ends before it begins, or a job used less than nothing.
        """
        if request.until < request.since:
            raise LabError(
                Code.INVALID_PARAMS, "until: the bill ends before it begins.", advice="Correct it.", field="until"
            )
        if any(used < 0 for used in request.jobs.values()):
            raise LabError(
                Code.INVALID_PARAMS, "jobs: a job used less than nothing.", advice="Correct it.", field="jobs"
            )
        before = self._connection.execute(
            "SELECT billed_micros, jobs FROM bills WHERE provider = ? AND rental = ?", (request.provider, request.rental)
        ).fetchone()
        jobs = json.dumps(request.jobs, sort_keys=True)
        news = before is None or (before["billed_micros"], before["jobs"]) != (request.billed_micros, jobs)
        self._connection.execute(
            "INSERT OR REPLACE INTO bills VALUES (?, ?, ?, ?, ?, ?)",
            (request.provider, request.rental, jobs, request.billed_micros, request.since.timestamp(), request.until.timestamp()),
        )  # fmt: skip
        correction = self._correct(request.provider, request.rental, now)
        remarks = self._judge(request, now) if news else []
        self._ledger.free_billed()
        report = BillReport(
            rental=request.rental, own_micros=_own(request), billed_micros=request.billed_micros,
            correction_micros=correction, drift_percent=_drift(request),
            frozen=self._ledger.trust.frozen().get(request.provider),
        )  # fmt: skip
        return report, [*self._ledger.note(now), *remarks]

    def settled(self, provider: str, rental: str, now: datetime) -> list[BudgetAlert]:
        """Correct an instance whose bill was there before all of its settlements were."""
        if rental:
            self._correct(provider, rental, now)
            self._ledger.free_billed()
        return self._ledger.note(now)

    def _correct(self, provider: str, rental: str, now: datetime) -> int:
        """Enter what brings the instance's corrections to bill - own meter; returns how much that was."""
        row = self._connection.execute(
            "SELECT jobs, billed_micros FROM bills WHERE provider = ? AND rental = ?", (provider, rental)
        ).fetchone()
        if row is None or row["billed_micros"] is None:
            return 0
        jobs: dict[str, int] = json.loads(row["jobs"])
        own = sum(jobs.values())
        entries = self._ledger.entries
        corrected = entries.sum("provider = ? AND rental = ? AND kind = 'correct'", provider, rental)
        note = f"{provider} charges {dollars(row['billed_micros'])} for {rental}, the own meter says {dollars(own)}"
        due: int = row["billed_micros"] - own - corrected
        if due > 0:
            self._charge(provider, rental, jobs or {"": 0}, due, note, now)
            return due
        return -self._refund(provider, rental, -due, note, now) if due < 0 else 0

    def _charge(self, provider: str, rental: str, jobs: dict[str, int], amount: int, note: str, now: datetime) -> None:
        for (job, _), share in zip(jobs.items(), shares(amount, list(jobs.values())), strict=True):
            if share:
                row = self._ledger.entries.payer(provider, rental, job)
                reservation, domain = (row["reservation"], row["domain"]) if row is not None else ("", "")
                self._ledger.entries.append(
                    "correct", share, now, reservation=reservation, job=job, provider=provider, domain=domain,
                    rental=rental, note=note,
                )  # fmt: skip
                self._ledger.draw(reservation, share)

    def _refund(self, provider: str, rental: str, amount: int, note: str, now: datetime) -> int:
        """Take back of each of the instance's entries its share; returns how much there was to take back.

        Each refund counts when its entry did: what January paid too much makes no room in February.
        """
        rows = self._connection.execute(
            "SELECT e.*, e.amount_micros + coalesce((SELECT sum(r.amount_micros) FROM entries r WHERE r.refunds = e.number), 0)"
            " AS rest FROM entries e WHERE e.provider = ? AND e.rental = ? AND e.refunds IS NULL"
            " AND e.kind IN ('part', 'settle', 'correct') ORDER BY e.number",
            (provider, rental),
        ).fetchall()
        amount = min(amount, sum(row["rest"] for row in rows))
        for row, share in zip(rows, shares(amount, [row["rest"] for row in rows]), strict=True):
            if share:
                self._ledger.entries.append(
                    "correct", -share, now, reservation=row["reservation"], job=row["job"], provider=provider,
                    domain=row["domain"], rental=rental, counts_at=row["counts_at"], refunds=row["number"], note=note,
                )  # fmt: skip
        return amount

    def _judge(self, request: BillRequest, now: datetime) -> list[BudgetAlert]:
        """Alert where bill and meter drift apart; freeze a provider whose bill no reservation has allowed for."""
        billed, own = request.billed_micros, _own(request)
        if billed is None:
            return []
        drift = abs(billed - own)
        if drift * 100 <= own * DRIFT_PERCENT and drift <= DRIFT_MICROS:
            return []
        entries = self._ledger.entries
        payers = (entries.payer(request.provider, request.rental, job) for job in request.jobs)
        rows = [row for row in payers if row is not None]
        aside = sum(entries.set_aside(row["reservation"]) for row in rows)
        facts = f"{dollars(billed)} for {request.rental}, the own meter says {dollars(own)}"
        note = f"{request.provider} charges {facts}"
        if own and billed >= own * ABSURD and drift > DRIFT_MICROS:
            self._ledger.trust.freeze(request.provider, f"it charges {facts}", now)
        elif rows and billed > aside:
            reason = f"it charges {facts}, and {dollars(aside)} was reserved"
            self._ledger.trust.freeze(request.provider, reason, now)
        if request.provider in self._ledger.trust.frozen():
            note += f"; nothing is rented from {request.provider} any more"
        return [
            self._ledger.remark(
                note, now, provider=request.provider, rental=request.rental, own_micros=own, billed_micros=billed
            )
        ]


def _own(request: BillRequest) -> int:
    return sum(request.jobs.values())


def _drift(request: BillRequest) -> float | None:
    own = _own(request)
    if request.billed_micros is None or own == 0:
        return None
    return round((request.billed_micros - own) * 100 / own, 2)
