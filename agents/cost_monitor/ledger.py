"""The ledger: append-only entries in integer micro-dollars, and the rules that keep spent + reserved within the caps.

Pure over a connection: the caller's transaction holds each check together with the entry that it allows. An open
reservation counts in every current period, whenever it was made: it will be spent in one of them.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from agents.cost_monitor.period import PERIODS, end, start
from configs import Budget
from configs.budget import Period
from protocol import Code, LabError, Retry
from protocol.money import BudgetAlert, BudgetReport, PeriodReport, Reservation

SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,                  -- Unix time
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'settle', 'release')),
    reservation TEXT NOT NULL,
    job TEXT NOT NULL,
    provider TEXT NOT NULL,
    domain TEXT NOT NULL,
    amount_micros INTEGER NOT NULL CHECK (amount_micros >= 0)
);
CREATE UNIQUE INDEX reserved_once ON entries (reservation) WHERE kind = 'reserve';
CREATE UNIQUE INDEX ended_once ON entries (reservation) WHERE kind <> 'reserve';
CREATE INDEX settled_at ON entries (at) WHERE kind = 'settle';
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TABLE open_reservations (       -- the reservations without an end, so that the sum needs no scan of the past
    reservation TEXT PRIMARY KEY,
    amount_micros INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE alerts (                  -- each threshold once per period
    period TEXT NOT NULL,
    since REAL NOT NULL,
    threshold INTEGER NOT NULL,
    PRIMARY KEY (period, since, threshold)
) WITHOUT ROWID;
"""

REPORT_LIMIT = 200
"""Jobs and open reservations in one report, newest first; a message of the bus has at most 256 KiB."""


@dataclass(frozen=True)
class Sums:
    """Where one period stands, in micro-dollars."""

    period: Period
    since: datetime
    cap: int
    spent: int
    reserved: int

    @property
    def used(self) -> int:
        """Spent and reserved."""
        return self.spent + self.reserved

    @property
    def left(self) -> int:
        """What may still be reserved; negative where more was spent than the cap."""
        return self.cap - self.used

    def reached(self, percent: int) -> bool:
        """Tell whether spent + reserved is at least this share of the cap, exactly."""
        return self.used * 100 >= self.cap * percent

    @property
    def percent(self) -> float:
        """Share of spent + reserved in the cap; 100 where the cap is 0."""
        return self.used / self.cap * 100 if self.cap else 100.0


def dollars(micros: int) -> str:
    """Return an amount for people: cents, and more digits where cents would hide it."""
    sign, value = ("-" if micros < 0 else ""), abs(micros)
    if value % 10_000 == 0:
        return f"{sign}${value / 1_000_000:.2f}"
    return f"{sign}${value // 1_000_000}.{value % 1_000_000:06d}".rstrip("0")


class Ledger:
    """The ledger in a database that has SCHEMA's tables.

    Args:
        connection: with `sqlite3.Row` as row factory; the caller commits.
        budget: caps and thresholds.
    """

    def __init__(self, connection: sqlite3.Connection, budget: Budget) -> None:
        self._connection = connection
        self._budget = budget

    def sums(self, now: datetime) -> list[Sums]:
        """Return where day, week and month stand."""
        reserved = self._one("SELECT coalesce(sum(amount_micros), 0) FROM open_reservations")
        caps = self._budget.caps()
        return [
            Sums(
                period, start(period, now), caps[period],
                self._one(
                    "SELECT coalesce(sum(amount_micros), 0) FROM entries WHERE kind = 'settle' AND at >= ?",
                    start(period, now).timestamp(),
                ),
                reserved,
            )
            for period in PERIODS
        ]  # fmt: skip

    def reserve(
        self, reservation: str, job: str, amount: int, provider: str, domain: str, now: datetime
    ) -> tuple[Reservation, list[BudgetAlert]]:
        """Set money aside before anything is started. The same reservation again changes nothing.

        Args:
            reservation: the reservation's id, chosen by the caller.
            amount: micro-dollars; 0 always passes.

        Returns:
            The reservation, and the thresholds that it crossed.

        Raises:
            LabError: BUDGET with all sums; CONFLICT if the id was used for another job or amount.
        """
        known = self._reserved(reservation)
        if known is not None:
            if (known["job"], known["amount_micros"]) != (job, amount):
                raise LabError(
                    Code.CONFLICT,
                    f"reservation {reservation} is of {dollars(known['amount_micros'])} for job {known['job']}.",
                    advice="Use a new id for another reservation.", field="reservation",
                )  # fmt: skip
            return Reservation(reservation=reservation, job=job, amount_micros=amount), []
        if amount > 0:
            for sums in self.sums(now):
                self._allow(amount, sums, now)
        self._append(now, "reserve", reservation, job, provider, domain, amount)
        self._connection.execute("INSERT INTO open_reservations VALUES (?, ?)", (reservation, amount))
        return Reservation(reservation=reservation, job=job, amount_micros=amount), self._crossed(now)

    def settle(self, reservation: str, job: str, amount: int, now: datetime) -> list[BudgetAlert]:
        """End a reservation with what was really spent, and free the rest. The same settlement again changes nothing.

        More than was reserved is entered as it is: the ledger tells the truth even where a cap is broken.

        Returns:
            The thresholds that were crossed, and one alert with a note if more was spent than reserved.

        Raises:
            LabError: NOT_FOUND; CONFLICT if the reservation ended otherwise.
        """
        row = self._owned(reservation, job)
        if self._end(row, "settle", amount, now):
            return []
        alerts = self._crossed(now)
        if amount > row["amount_micros"]:
            worst = max(self.sums(now), key=lambda sums: sums.percent)
            threshold = max((t for t in self._budget.alert_percents if worst.reached(t)), default=0)
            note = f"job {job} spent {dollars(amount)}, more than the {dollars(row['amount_micros'])} that was reserved"
            alerts.append(_alert(worst, threshold, now, note))
        return alerts

    def release(self, reservation: str, job: str, now: datetime) -> None:
        """End a reservation of which nothing was spent. The same release again changes nothing.

        Raises:
            LabError: NOT_FOUND; CONFLICT if the reservation was settled.
        """
        self._end(self._owned(reservation, job), "release", 0, now)

    def report(self, now: datetime) -> BudgetReport:
        """Return the state of the ledger: all periods, and this month's spending by job, provider and domain."""
        sums = self.sums(now)
        month = start("month", now).timestamp()
        return BudgetReport(
            periods=[
                PeriodReport(
                    period=item.period, since=item.since, until=end(item.period, now), cap_micros=item.cap, spent_micros=item.spent,
                    reserved_micros=item.reserved, percent=round(item.percent, 3),
                )
                for item in sums
            ],
            jobs=self._spent_by("job", month),
            providers=self._spent_by("provider", month),
            domains=self._spent_by("domain", month),
            open_reservations=[
                Reservation(reservation=row["reservation"], job=row["job"], amount_micros=row["amount_micros"])
                for row in self._connection.execute(
                    "SELECT e.* FROM open_reservations o JOIN entries e"
                    " ON e.reservation = o.reservation AND e.kind = 'reserve' ORDER BY e.number DESC LIMIT ?",
                    (REPORT_LIMIT,),
                )
            ],
            frozen=self.frozen(now),
            alert_percents=list(self._budget.alert_percents),
            freeze_percent=self._budget.freeze_percent,
        )  # fmt: skip

    def frozen(self, now: datetime) -> bool:
        """Tell whether paid work is frozen: some period has reached the freeze threshold."""
        return any(sums.reached(self._budget.freeze_percent) for sums in self.sums(now))

    def _allow(self, amount: int, sums: Sums, now: datetime) -> None:
        if amount > sums.left:
            reason = f"the {sums.period}'s budget does not hold it"
        elif sums.reached(self._budget.freeze_percent):
            reason = f"paid work is frozen from {self._budget.freeze_percent} % of the {sums.period}'s budget on"
        elif sums.reached(self._budget.optimise_percent) and amount * 2 > sums.left:
            reason = (
                f"from {self._budget.optimise_percent} % of the {sums.period}'s budget on"
                " no job may reserve more than half of what is left"
            )
        else:
            return
        key = self._budget.key(sums.period)
        later = amount <= sums.cap
        renewal = f", or wait until {end(sums.period, now):%Y-%m-%d %H:%M} UTC" if later else ""
        raise LabError(
            Code.BUDGET,
            f"the job needs {dollars(amount)}, but {reason}: {dollars(sums.spent)} spent + {dollars(sums.reserved)} reserved"
            f" of {dollars(sums.cap)} per {sums.period}, {dollars(max(sums.left, 0))} left.",
            advice=f"Raise {key} in configs/budget_settings.json, choose a smaller job{renewal}.",
            retry=Retry.LATER if later else Retry.NEVER,
            period=sums.period, since=sums.since.isoformat(), needed_micros=amount, spent_micros=sums.spent,
            reserved_micros=sums.reserved, cap_micros=sums.cap, left_micros=sums.left,
        )  # fmt: skip

    def _crossed(self, now: datetime) -> list[BudgetAlert]:
        """Note and return thresholds that are reached and were not told in their period."""
        alerts = []
        for sums in self.sums(now):
            if sums.used == 0:
                continue  # a cap of 0 is reached by nothing at all; that is no news
            for threshold in self._budget.alert_percents:
                if sums.reached(threshold) and self._connection.execute(
                    "INSERT OR IGNORE INTO alerts VALUES (?, ?, ?)", (sums.period, sums.since.timestamp(), threshold)
                ).rowcount:
                    alerts.append(_alert(sums, threshold, now))
        return alerts

    def _end(self, row: sqlite3.Row, kind: str, amount: int, now: datetime) -> bool:
        """Append a reservation's end; True if it had ended in the same way before."""
        ended = self._connection.execute(
            "SELECT * FROM entries WHERE reservation = ? AND kind <> 'reserve'", (row["reservation"],)
        ).fetchone()
        if ended is None:
            self._append(now, kind, row["reservation"], row["job"], row["provider"], row["domain"], amount)
            self._connection.execute("DELETE FROM open_reservations WHERE reservation = ?", (row["reservation"],))
            return False
        if (ended["kind"], ended["amount_micros"]) == (kind, amount):
            return True
        how = "was released" if ended["kind"] == "release" else f"was settled with {dollars(ended['amount_micros'])}"
        raise LabError(
            Code.CONFLICT, f"reservation {row['reservation']} of job {row['job']} {how} at {_iso(ended['at'])}.",
            advice="A reservation ends once; make a new one for more.", field="reservation",
        )  # fmt: skip

    def _owned(self, reservation: str, job: str) -> sqlite3.Row:
        row = self._reserved(reservation)
        if row is None or row["job"] != job:
            raise LabError(
                Code.NOT_FOUND, f"job {job} has no reservation {reservation}.", advice="See `meetara budget` for those there are.",
                field="reservation",
            )  # fmt: skip
        return row

    def _reserved(self, reservation: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._connection.execute(
            "SELECT * FROM entries WHERE reservation = ? AND kind = 'reserve'", (reservation,)
        ).fetchone()
        return row

    def _append(
        self, now: datetime, kind: str, reservation: str, job: str, provider: str, domain: str, amount: int
    ) -> None:
        self._connection.execute(
            "INSERT INTO entries (at, kind, reservation, job, provider, domain, amount_micros) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now.timestamp(), kind, reservation, job, provider, domain, amount),
        )

    def _spent_by(self, column: str, since: float) -> dict[str, int]:
        rows = self._connection.execute(
            f"SELECT {column} AS name, sum(amount_micros) AS spent FROM entries WHERE kind = 'settle' AND at >= ?"
            f" GROUP BY {column} ORDER BY max(number) DESC LIMIT ?",
            (since, REPORT_LIMIT),
        )
        return {row["name"]: row["spent"] for row in rows}

    def _one(self, sql: str, *arguments: object) -> int:
        return int(self._connection.execute(sql, arguments).fetchone()[0])


def _alert(sums: Sums, threshold: int, now: datetime, note: str = "") -> BudgetAlert:
    return BudgetAlert(
        period=sums.period, since=sums.since, threshold=threshold, spent_micros=sums.spent, reserved_micros=sums.reserved,
        cap_micros=sums.cap, at=now, note=note,
    )  # fmt: skip


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
