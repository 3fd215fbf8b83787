"""The ledger in any interleaving: requests, launches, failures, restarts, steps of the clock, ends of months, bills, refunds."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agents.cost_monitor.bills import Bills
from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.period import PERIODS, end, start
from agents.cost_monitor.report import report
from configs import Budget
from protocol import LabError
from protocol.money import BillRequest
from tests.agents.cost_monitor.ground import DOLLAR, NOON, fresh, opened

BUDGET = Budget(
    monthly_usd=12, weekly_usd=9, daily_usd=5, alert_percents=(50, 80, 90, 95), optimise_percent=80, freeze_percent=95
)
BACK = timedelta(days=20)
"""How far the clock is set back in all; the ledger bears a month."""
AMOUNT = st.one_of(st.integers(0, 4 * DOLLAR), st.integers(DOLLAR, 4 * DOLLAR))
SHARE = st.sampled_from([0.0, 0.3, 0.8, 1.0])


@dataclass
class Rental:
    """An instance as its provider sees it: what it is billed, and until when that may still be less."""

    jobs: list[str] = field(default_factory=list)
    own: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    billed: int | None = None
    ended_at: datetime | None = None
    parted: bool = False


class Killed(Exception):
    """The process dies before its transaction is committed."""


class Life(RuleBasedStateMachine):
    """Providers bill at most what is reserved, and at any time after. Whoever calls the ledger may call twice."""

    def __init__(self) -> None:
        super().__init__()
        shared = Path("/dev/shm")  # memory, where there is such: a busy disk takes a second for each new file
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=shared if shared.is_dir() else None))
        self.path = self.folder / "ledger.db"
        self.now = self.latest = NOON
        self.newest = NOON - 2 * BACK  # the newest time at which anything was entered
        self.count = 0
        self.waiting: dict[str, int] = {}  # reservations of which nothing was launched, perhaps
        self.running: dict[str, str] = {}  # reservations to their rentals
        self.rentals: dict[str, Rental] = {}
        self.lines: list[tuple[str, datetime, int]] = []  # what providers charge: rental, when, how much
        self.refunded = 0
        self.known = 0
        self.told: set[tuple[str, datetime, int]] = set()

    @initialize()
    def begin(self) -> None:
        self.ledger = fresh(BUDGET, self.path)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.drain()
            self.ledger._connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # calls: each is a transaction, may be repeated, and may die before it is committed

    def call(self, act: Callable[[], object], die: bool = False) -> bool:
        before = self.entries()
        for attempt in ("dies", "lives", "again") if die else ("lives", "again"):
            connection = self.ledger._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                act()
                if attempt == "dies":
                    raise Killed
                connection.execute("COMMIT")
            except Killed:
                self.reopen()
                assert self.entries() == before
            except LabError:
                connection.execute("ROLLBACK")
                assert self.entries() == before, "a refusal leaves nothing behind"
                return False
            if attempt == "lives":
                once = self.entries()
                if once > before:
                    self.newest = max(self.newest, self.now)
        assert self.entries() == once, "nothing is entered twice"
        return True

    def entries(self) -> int:
        return int(self.ledger._connection.execute("SELECT coalesce(max(number), 0) FROM entries").fetchone()[0])

    @rule()
    def reopen(self) -> None:
        self.ledger._connection.close()
        self.ledger = Ledger(opened(self.path), BUDGET)

    @rule(hours=st.integers(0, 60))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        self.latest = max(self.latest, self.now)

    @rule(hours=st.integers(1, 200))
    def the_clock_is_set_back(self, hours: int) -> None:
        self.now = max(self.now - timedelta(hours=hours), self.latest - BACK)

    @rule(amount=AMOUNT, die=st.booleans(), provider=st.sampled_from(["vast", "local"]))
    def a_request_reserves(self, amount: int, die: bool = False, provider: str = "vast") -> None:
        self.count += 1
        name = f"r{self.count}"

        def act() -> None:
            for alert in self.ledger.reserve(name, f"j-{name}", amount, provider, "sleep", self.now)[1]:
                alerts.append((alert.period, alert.since, alert.threshold))

        alerts: list[tuple[str, datetime, int]] = []
        if self.call(act, die):
            self.waiting[name] = amount
            fresh_ones = alerts[len(alerts) // 2 :] if die else alerts  # the first were never committed
            assert not self.told.intersection(fresh_ones), "each threshold is told once in its period"
            assert [item[2] for item in fresh_ones] == sorted(item[2] for item in fresh_ones)
            self.told.update(fresh_ones)

    @rule()
    def a_request_takes_all_that_is_left(self) -> None:
        """On a machine of the lab's own that has a price: the freeze leaves those alone."""
        self.a_request_reserves(max(0, min(sums.left for sums in self.ledger.sums(self.now))), provider="local")

    @rule(amount=AMOUNT, share=SHARE)
    def a_whole_job(self, amount: int, share: float) -> None:
        """From its request to its end; its bill is still to come."""
        self.a_request_reserves(amount)
        name = f"r{self.count}"
        if name in self.waiting:
            del self.waiting[name]
            self.rentals[f"i-{name}"] = Rental([name])
            self.running[name] = f"i-{name}"
            self.ends(name, share)

    @rule(hours=st.integers(24, 400), amount=AMOUNT)
    def a_job_while_the_clock_is_wrong(self, hours: int, amount: int) -> None:
        right = self.now
        self.the_clock_is_set_back(hours)
        self.a_whole_job(amount, 1.0)
        self.now = right

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_launch_is_proven_to_have_failed(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.call(lambda: self.ledger.release(name, f"j-{name}", self.now))
        del self.waiting[name]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), shared=st.booleans())
    def a_launch_works(self, data: st.DataObject, shared: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        warm = [rental for rental in self.running.values() if shared and not self.rentals[rental].parted]
        rental = warm[0] if warm else f"i-{name}"
        self.rentals.setdefault(rental, Rental()).jobs.append(name)
        self.running[name] = rental
        del self.waiting[name]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=AMOUNT, die=st.booleans())
    def a_job_takes_longer(self, data: st.DataObject, more: int, die: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        total = self.ledger.entries.set_aside(name) + more
        self.call(lambda: self.ledger.extend(name, f"j-{name}", total, self.now), die)

    def left(self, name: str) -> int:
        return self.ledger.entries.set_aside(name) - self.ledger.entries.paid(name)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=SHARE)
    def a_part_is_settled(self, data: st.DataObject, share: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        rental = self.rentals[self.running[name]]
        amount, part = round(self.left(name) * share), f"p{self.entries()}"
        rental.parted = True
        assert self.call(
            lambda: self.ledger.settle(
                name, f"j-{name}", amount, self.now, part=part, provider="vast", rental=self.running[name],
                bill_follows=True,
            )
        )
        rental.own[f"j-{name}"] += amount
        self.lines.append((self.running[name], self.newest, amount))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=SHARE, die=st.booleans())
    def a_job_ends(self, data: st.DataObject, share: float, die: bool) -> None:
        self.ends(data.draw(st.sampled_from(sorted(self.running))), share, die)

    def ends(self, name: str, share: float, die: bool = False) -> None:
        rental = self.running[name]
        amount = round(self.left(name) * share)
        assert self.call(
            lambda: self.ledger.settle(
                name, f"j-{name}", amount, self.now, provider="vast", rental=rental, bill_follows=True
            ),
            die,
        )
        self.rentals[rental].own[f"j-{name}"] += amount
        self.lines.append((rental, self.newest, amount))
        del self.running[name]
        self.rentals[rental].ended_at = self.newest

    def billable(self) -> list[str]:
        return [name for name, rental in self.rentals.items() if name not in self.running.values() and rental.ended_at]

    @precondition(lambda self: self.billable())
    @rule(data=st.data(), share=SHARE, refund=st.booleans(), die=st.booleans())
    def a_bill_comes_or_is_lowered(self, data: st.DataObject, share: float, refund: bool, die: bool) -> None:
        name = data.draw(st.sampled_from(self.billable()))
        rental = self.rentals[name]
        own = sum(rental.own.values())
        aside = sum(self.ledger.entries.set_aside(job) for job in rental.jobs)
        known = rental.billed if rental.billed is not None else aside
        billed = own + round((known - own) * share) if known > own else known
        if refund and not rental.parted:
            billed = round(min(own, known) * share)
        self.is_billed(name, billed, die)

    @rule(amount=AMOUNT)
    def a_bill_asks_for_all_that_was_reserved(self, amount: int) -> None:
        """Although the job had used a part of it only, and others took what was free."""
        self.a_whole_job(amount, 0.3)
        name = f"i-r{self.count}"
        self.a_request_takes_all_that_is_left()
        if name in self.rentals:
            self.is_billed(name, self.ledger.entries.set_aside(name.removeprefix("i-")))

    def is_billed(self, name: str, billed: int, die: bool = False) -> None:
        rental = self.rentals[name]
        request = BillRequest(
            provider="vast", rental=name, jobs=dict(rental.own), billed_micros=billed, since=NOON, until=NOON + BACK
        )
        spent = self.total()
        assert self.call(lambda: Bills(self.ledger._connection, self.ledger).bill(request, self.now), die)
        self.refunded += max(0, spent - self.total())
        assert self.ledger.entries.sum("rental = ? AND kind IN ('part', 'settle', 'correct')", name) == billed
        assert rental.ended_at is not None
        self.lines.append((name, rental.ended_at, billed - sum(amount for who, _, amount in self.lines if who == name)))
        rental.billed = billed

    @rule()
    def a_person_trusts_the_provider_again(self) -> None:
        if self.ledger.trust.frozen():
            self.ledger.trust.unfreeze("vast", self.now + timedelta(days=99))

    # what holds

    def total(self) -> int:
        return self.ledger.entries.sum("kind IN ('part', 'settle', 'correct')")

    @invariant()
    def the_cap_is_never_passed(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for at in {self.now, self.latest, self.latest - BACK}:
            for sums in self.ledger.sums(at):
                assert sums.spent >= 0 and sums.used <= sums.cap, (sums.period, str(sums))

    @invariant()
    def no_invoice_is_above_the_cap(self) -> None:
        """As a provider would write it: each line in the period in which its part, or its instance, ended (by the newest time
        that the ledger knew then)."""
        if not hasattr(self, "ledger"):
            return
        for period in PERIODS:
            invoices: dict[datetime, int] = defaultdict(int)
            for _, at, amount in self.lines:
                invoices[start(period, at)] += amount
            for since, amount in invoices.items():
                assert amount <= BUDGET.caps()[period], (period, since)

    @invariant()
    def reports_add_up_and_spending_falls_by_refunds_only(self) -> None:
        if not hasattr(self, "ledger"):
            return
        found = report(self.ledger._connection, BUDGET, self.now)
        for part in (found.jobs, found.providers, found.domains):
            assert sum(part.values()) == found.periods[2].spent_micros
        assert sum(item.amount_micros for item in found.open_reservations) == found.periods[0].reserved_micros
        total = self.total()
        assert total == sum(amount for _, _, amount in self.lines)
        assert total + self.refunded >= self.known
        self.known = max(self.known, total + self.refunded)

    def drain(self) -> None:
        """In the end every launch is known, every job is over, and every bill has come: nothing stays set aside."""
        for name in list(self.waiting):
            assert self.call(lambda name=name: self.ledger.release(name, f"j-{name}", self.now))  # type: ignore[misc]
        for name, rental in list(self.running.items()):
            assert self.call(lambda name=name, rental=rental: self.ledger.settle(  # type: ignore[misc]
                name, f"j-{name}", 0, self.now, provider="vast", rental=rental, bill_follows=True
            ))  # fmt: skip
        for name, rental_ in self.rentals.items():
            request = BillRequest(
                provider="vast", rental=name, jobs=dict(rental_.own), billed_micros=rental_.billed, since=NOON, until=NOON
            )
            assert self.call(lambda request=request: Bills(self.ledger._connection, self.ledger).bill(request, self.now))  # type: ignore[misc]
        assert report(self.ledger._connection, BUDGET, self.now).open_reservations == []
        rows = self.ledger._connection.execute(
            "SELECT reservation, sum(kind = 'reserve') AS begun, sum(kind IN ('settle', 'release')) AS ended FROM entries"
            " WHERE reservation <> '' GROUP BY reservation"
        ).fetchall()
        assert all((row["begun"], row["ended"]) == (1, 1) for row in rows), "every reservation ends, once"


Life.TestCase.settings = settings(
    max_examples=40, stateful_step_count=35, deadline=None, suppress_health_check=[HealthCheck.too_slow]  # on a busy machine
)
TestLife = Life.TestCase


def test_an_old_ledger_goes_on(tmp_path: Path) -> None:
    """The first version's entries keep their numbers, times and sums in the tables of the second."""
    from agents.cost_monitor.tables import MIGRATIONS

    with closing(opened(tmp_path / "old.db")) as connection:
        connection.executescript(MIGRATIONS[0])
        for kind, name, amount in (("reserve", "a", 3), ("settle", "a", 2), ("reserve", "b", 7)):
            connection.execute(
                "INSERT INTO entries (at, kind, reservation, job, provider, domain, amount_micros) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (NOON.timestamp(), kind, name, f"job-{name}", "local", "sleep", amount),
            )
        connection.execute("INSERT INTO open_reservations VALUES ('b', 7)")
        connection.executescript("".join(MIGRATIONS[1:]))
        ledger = Ledger(connection, BUDGET)
        assert [(entry.number, entry.kind, entry.at) for entry in ledger.entries.page(0).entries] == [
            (1, "reserve", NOON), (2, "settle", NOON), (3, "reserve", NOON),
        ]  # fmt: skip
        assert [(sums.spent, sums.reserved) for sums in ledger.sums(NOON)] == [(2, 7)] * 3
        ledger.settle("b", "job-b", 5, NOON)
        assert ledger.entries.page(3).entries[0].number == 4 and end("day", NOON) > NOON
