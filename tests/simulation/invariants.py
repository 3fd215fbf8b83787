"""What must hold in every moment of a simulated life, and what must have come of it at its end.

Read from the stores and from what the broker has seen, never from an agent's memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agents.conductor.record import JobRecord
from agents.cost_monitor.period import PERIODS, end, start
from configs.budget import Period
from protocol.errors import Code, LabError
from protocol.job import FINAL, JobSnapshot, Submitted, TrainRequest
from tests.simulation.plan import FACTORIES

if TYPE_CHECKING:
    from tests.simulation.broker import Message
    from tests.simulation.people import Wish
    from tests.simulation.world import World

FORGETFUL = ("broker_lost", "broker_old")
"""Faults after which the broker no longer knows what it has acknowledged."""
FINAL_WORDS = frozenset(state.value for state in FINAL)
OPEN = {
    "outbox": "SELECT id FROM outbox",
    "publications": "SELECT topic FROM publications",
    "inbox": "SELECT id || ' ' || state FROM inbox WHERE state <> 'done'",
    "timers": "SELECT name || ' ' || key FROM timers WHERE name <> 'period'",  # the end of a day in which a threshold was told
}
"""What every agent's store must not hold when all is quiet."""
OWN = {
    "conductor": {"making": "SELECT job FROM making", "sharing": "SELECT job FROM sharing"},
    "gpu_orchestrator": {
        "leases": "SELECT job FROM leases", "waiting": "SELECT message FROM waiting", "quotes": "SELECT message FROM quotes",
        "rentals": "SELECT id FROM rentals WHERE state <> 'gone'", "accounts": "SELECT job FROM accounts WHERE NOT settled",
        "bills": "SELECT id FROM rentals WHERE record ->> 'bill_at' IS NOT NULL",
    },
    "cost_monitor": {"reservations": "SELECT reservation FROM open_reservations"},
    **{name: {"runs": "SELECT job FROM runs"} for name in FACTORIES},
}  # fmt: skip


class Invariants:
    """The watch over one world.

    Args:
        caps: the budget's, in micro-dollars.
    """

    def __init__(self, world: World, caps: Mapping[Period, int]) -> None:
        self.world = world
        self.caps = caps
        self.texts: dict[str, str] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        self.fences: dict[str, int] = {}
        self.granted: dict[tuple[str, int], tuple[str, str]] = {}
        self.holders: dict[tuple[str, int], str] = {}
        self.replies: dict[tuple[str, str], bytes] = {}
        self.published: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.entries = 0
        self.checks = 0
        self._read = 0

    def look(self) -> None:
        """Check what has changed since the last step."""
        for name, node in self.world.nodes.items():
            if node.dirty:
                node.dirty = False
                self.checks += 1
                if name == "conductor":
                    self._jobs()
                elif name == "gpu_orchestrator":
                    self._leases()
                elif name == "cost_monitor":
                    self._ledger()
                elif name in FACTORIES:
                    self._runs(name)
        said = self.world.said
        while self._read < len(said):
            self._said(said[self._read])
            self._read += 1

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            self.world.wrong(what)

    # jobs

    def _jobs(self) -> None:
        conductor = self.world.nodes["conductor"]
        for job, count, first, last in conductor.read(
            "SELECT stream, count(*), min(seq), max(seq) FROM events GROUP BY stream"
        ):
            known = self.events[job]
            self._must(first == 1 and last == count and count >= len(known), f"{job}: its events have a gap: {first}..{last}")
            if count > len(known):
                rows = conductor.read(f"SELECT type, data FROM events WHERE stream = '{job}' AND seq > {len(known)} ORDER BY seq")
                known += [(row["type"], json.loads(row["data"])) for row in rows]
                self._facts(job, known)
        for job, text in conductor.read("SELECT job, record FROM jobs"):
            if self.texts.get(job) != text:
                self.texts[job] = text
                self._record(job, self.records.get(job), json.loads(text))
        makers = [
            job for job, record in self.records.items()
            if (record["plan"] or {}).get("key") and not record["sharing"] and record["state"] not in FINAL_WORDS
        ]  # fmt: skip
        self._must(len(makers) <= 1, f"{makers} make one model at the same time")
        for job, record in self.records.items():
            maker = record["sharing"]
            self._must(maker is None or maker in makers, f"{job} waits for {maker}, which makes nothing")

    def _record(self, job: str, old: dict[str, Any] | None, new: dict[str, Any]) -> None:
        self.records[job] = new
        if old is None:
            return
        self._must(old["state"] not in FINAL_WORDS, f"{job}: the final state {old['state']} was left or changed")
        for name in ("fence", "attempt", "failures", "spent_micros"):
            self._must(new[name] >= old[name], f"{job}: {name} went back from {old[name]} to {new[name]}")

    def _facts(self, job: str, facts: list[tuple[str, dict[str, Any]]]) -> None:
        fence, holding = 0, False
        for number, (kind, data) in enumerate(facts):
            if kind == "leased":
                self._must(not holding, f"{job}: two leases at once")
                self._must(data["lease"]["fence"] > fence, f"{job}: the fence {data['lease']['fence']} came after {fence}")
                fence, holding = data["lease"]["fence"], True
            elif kind == "interrupted":
                holding = False
                fence = max(fence, data.get("fence", 0))
            elif kind in FINAL_WORDS:
                self._must(number == len(facts) - 1, f"{job}: something happened after its end")

    def stale(self, before: JobRecord, after: JobRecord) -> None:
        """A report under an old lease came to a job: nothing but its count may have changed."""
        free = {"fenced_reports", "updated_at"}
        self._must(
            before.model_dump(exclude=free) == after.model_dump(exclude=free), f"{before.job}: a report with an old fence changed it"
        )

    # machines

    def _leases(self) -> None:
        orchestrator = self.world.nodes["gpu_orchestrator"]
        for job, fence in orchestrator.read("SELECT job, fence FROM fences"):
            self._must(fence >= self.fences.get(job, 0), f"{job}: its fence went back to {fence}")
            self.fences[job] = fence
        taken: dict[str, int] = defaultdict(int)
        jobs: set[str] = set()
        for row in orchestrator.read("SELECT * FROM leases"):
            job, lease, fence, machine = row["job"], row["lease"], row["fence"], row["machine"]
            taken[machine] += 1
            self._must(job not in jobs, f"{job} has two live leases")
            jobs.add(job)
            self._must(fence == self.fences.get(job), f"{job}: a live lease with fence {fence}, the newest is {self.fences.get(job)}")
            known = self.granted.setdefault((job, fence), (lease, machine))
            self._must(known == (lease, machine), f"{job}: the fence {fence} was given twice")
        for machine, count in taken.items():
            self._must(count <= self.world.plan.slots, f"{machine} has {count} leases and {self.world.plan.slots} slots")

    def _runs(self, name: str) -> None:
        node = self.world.nodes[name]
        for row in node.read("SELECT job, request FROM runs"):
            fence = json.loads(row["request"])["fence"]
            holder = self.holders.setdefault((row["job"], fence), name)
            self._must(holder == name, f"{row['job']}: {holder} and {name} both run it with fence {fence}")
        working = [process.job for process in node.processes if node.folders.get(process.job) is process]
        self._must(len(working) == len(set(working)), f"{name} works twice in one folder: {working}")

    # money

    def _ledger(self) -> None:
        monitor = self.world.nodes["cost_monitor"]
        entries = monitor.read("SELECT * FROM entries ORDER BY number")
        self._must(len(entries) >= self.entries, "the ledger has lost an entry")
        if len(entries) == self.entries:
            return
        self.entries = len(entries)
        aside: dict[str, int] = defaultdict(int)
        spent_of: dict[str, int] = defaultdict(int)
        drawn: dict[str, int] = defaultdict(int)
        ended: set[str] = set()
        for row in entries:
            kind, reservation, amount = row["kind"], row["reservation"], row["amount_micros"]
            if kind == "reserve":
                self._must(reservation not in aside, f"{reservation} was made twice")
            elif reservation:
                self._must(reservation in aside, f"{reservation} ended or was paid from without having been made")
            if kind in ("reserve", "extend"):
                self._must(reservation not in ended, f"{reservation} grew after its end")
                aside[reservation] += amount
            else:
                spent_of[reservation] += amount
                drawn[reservation] += max(0, amount)  # a refund is no more room for the job: it is free for all
            if kind in ("settle", "release"):
                self._must(reservation not in ended, f"{reservation} ended twice")
                ended.add(reservation)
        listed = {row["reservation"]: row for row in monitor.read("SELECT * FROM open_reservations")}
        for reservation, amount in aside.items():
            if reservation not in ended:
                known = listed[reservation]["amount_micros"] if reservation in listed else None
                self._must(known == max(0, amount - drawn[reservation]), f"{reservation} holds {known} of {amount}")
        held = [reservation for reservation in listed if reservation in ended and not listed[reservation]["held"]]
        self._must(not held, f"{held} have ended and still hold money")
        open_now = sum(row["amount_micros"] for row in listed.values())
        excess = sum(max(0, amount - aside[reservation]) for reservation, amount in spent_of.items())
        last = datetime.fromtimestamp(entries[-1]["at"], UTC)
        for period in PERIODS:
            since, until = start(period, last).timestamp(), end(period, last).timestamp()
            spent = sum(
                row["amount_micros"] for row in entries
                if row["kind"] in ("part", "settle", "correct") and since <= row["counts_at"] < until
            )  # fmt: skip
            # what a job spent beyond its reservation is entered as it is: the ledger tells the truth
            self._must(
                spent + open_now <= self.caps[period] + excess,
                f"{period}: {spent} spent + {open_now} reserved of {self.caps[period]} (and {excess} beyond reservations)",
            )

    # words

    def _said(self, message: Message) -> None:
        kind, _, rest = message.topic.removeprefix("meetara/v1/lab/").partition("/")
        if kind == "reply":
            body = json.loads(message.payload)
            known = self.replies.setdefault((rest, body["id"]), message.payload)
            busy = any(json.loads(p).get("error", {}).get("code") == Code.BUSY for p in (known, message.payload))
            # a call that was repeated to another factory: each plans, and knows the finished models of its own machine
            plans = body["id"].endswith(":job.plan")
            self._must(known == message.payload or busy or plans, f"{body['id']} got two answers: {known!r} and {message.payload!r}")
        elif kind == "job" and rest.endswith("/event"):
            event = json.loads(message.payload)
            told = self.published[event["job"]]
            if event["seq"] <= len(told):
                self._must(told[event["seq"] - 1] == event, f"{event['job']}: event {event['seq']} was published in two forms")
            else:
                self._must(event["seq"] == len(told) + 1, f"{event['job']}: event {event['seq']} was published after {len(told)}")
                told.append(event)
        elif kind == "dead":
            expected = rest == "router" and any(request.conflict for request in self.world.plan.requests)
            self._must(expected, f"a dead letter: {message.payload!r}")

    # the end

    def quiet(self) -> bool:
        """Whether nothing is left to do."""
        return not self.unfinished()

    def unfinished(self) -> str:
        """What is left to do, in words."""
        world = self.world
        left = [f"{job} is {record['state']}" for job, record in self.records.items() if record["state"] not in FINAL_WORDS]
        left += [f"{wish.name} has no answer" for wish in world.wishes if self._waits(wish)]
        if not left:
            for name, node in world.nodes.items():
                if node.agent is None:
                    left.append(f"{name} does not run")
                if node.connection is None or not node.connection.open:
                    left.append(f"{name} is not on the bus")
                for what, sql in (OPEN | OWN.get(name, {})).items():
                    rows = node.read(sql)
                    if rows:
                        left.append(f"{name} holds {what}: {', '.join(str(row[0]) for row in rows[:3])}")
                left += [f"{name} still works on {process.job}" for process in node.processes]
        return "; ".join(left)

    def _waits(self, wish: Wish) -> bool:
        if not wish.asked:
            return True
        return wish.answer is None and not wish.name.startswith("publisher")

    def end(self) -> None:
        """Check what has come of everything."""
        left = self.unfinished()
        self._must(not left, f"stuck: {left}")
        world = self.world
        submissions = world.nodes["router"].read("SELECT id, message, reply FROM inbox")
        for row in submissions:
            reply = json.loads(row["reply"])
            self._must(("error" in reply) or row["id"] in self.records, f"{row['id']} was accepted and lost")
        old = any(fault.kind == "broker_old" for fault in world.plan.faults)
        for job, record in self.records.items():
            types = [kind for kind, _ in self.events[job]]
            self._must(sum(kind in FINAL_WORDS for kind in types) == 1, f"{job} ended more than once")
            self._must([event["type"] for event in self.published[job]] == types, f"{job}: published {self.published[job]}")
            retained = world.broker.retained.get(f"meetara/v1/lab/job/{job}/state")
            if not old:  # a broker with an old file retains old states; one that lost everything is told again
                self._must(retained is not None, f"{job}: no state is retained")
                assert retained is not None
                snapshot = JobRecord.model_validate(record).snapshot()
                self._must(JobSnapshot.model_validate_json(retained.payload) == snapshot, f"{job}: an old state is retained")
            self._money(job, record)
        self._invoices()
        self._wishes()

    def _money(self, job: str, record: dict[str, Any]) -> None:
        rows = self.world.nodes["cost_monitor"].read(f"SELECT kind, amount_micros FROM entries WHERE job = '{job}' ORDER BY number")
        kinds = [row["kind"] for row in rows]
        spent = sum(row["amount_micros"] for row in rows if row["kind"] in ("part", "settle", "correct"))
        if record["offer"] is None or record["offer"]["provider"] == "local":
            self._must(kinds in ([], ["reserve", "settle"], ["reserve", "release"]), f"{job}: its money went {kinds}")
            self._must(spent == record["spent_micros"], f"{job} spent {record['spent_micros']}, the ledger says {spent}")
            return
        self._must(kinds == [] or (kinds[0] == "reserve" and kinds.count("release") == 1), f"{job}: its money went {kinds}")

    def _invoices(self) -> None:
        """What the vendors charge is what the ledger says, to the micro-dollar, and is below the budget."""
        monitor = self.world.nodes["cost_monitor"]
        total = 0
        for vendor in self.world.vendors:
            name = vendor.seller.vendor
            living = [instance.id for cloud in vendor.accounts for instance in cloud.living()]
            self._must(not living, f"{name}: {living} still cost money")
            rows = monitor.read(f"SELECT * FROM entries WHERE provider = '{name}' AND kind IN ('part', 'settle', 'correct')")
            spent, invoice = sum(row["amount_micros"] for row in rows), sum(cloud.bill() for cloud in vendor.accounts)
            total += invoice
            if vendor.provider().bills:
                rounding = 1000 * sum(len(cloud.instances) for cloud in vendor.accounts) if name == "vast" else 0  # it charges in steps of $0.001
                self._must(abs(spent - invoice) <= rounding, f"{name} charges {invoice}, the ledger says {spent}")
            else:
                self._must(spent >= invoice, f"{name} charges {invoice}, the own meter says {spent}")
        if all(vendor.seller.billing_factor == 1 for vendor in self.world.vendors):
            self._must(total <= self.caps["month"], f"the vendors charge {total}, the month has {self.caps['month']}")

    def _wishes(self) -> None:
        by_data: dict[str, list[str]] = defaultdict(list)
        for job, record in self.records.items():
            by_data[record["request"]["dataset"]].append(job)
        old = any(fault.kind == "broker_old" for fault in self.world.plan.faults)
        for data, jobs in by_data.items():
            self._must(len(jobs) == 1 or old, f"one request for {data} became the jobs {jobs}")
        forgetful = any(fault.kind in FORGETFUL for fault in self.world.plan.faults)
        for wish in self.world.wishes:
            if wish.published and not forgetful:  # the broker has acknowledged it, and has forgotten nothing
                assert isinstance(wish.params, TrainRequest)
                known = wish.params.dataset in by_data if wish.nameless else wish.job in self.records
                self._must(known, f"{wish.name} was acknowledged and lost")
        answers: dict[tuple[str, str], Any] = {}
        for wish in self.world.wishes:
            if wish.answer is None or wish.method != "train.submit":
                continue
            assert isinstance(wish.params, TrainRequest)
            if wish.job not in self.records:
                self._must(isinstance(wish.answer, LabError), f"{wish.name} was told of a job that is not there")
                continue
            mine = self.records[wish.job]["request"]["dataset"] == wish.params.dataset
            conflict = isinstance(wish.answer, LabError) and wish.answer.code is Code.CONFLICT
            self._must(mine != conflict, f"{wish.name} was answered {wish.answer!r}")
            said = wish.answer.model_dump() if isinstance(wish.answer, Submitted) else repr(wish.answer)
            known = answers.setdefault((wish.job, wish.params.dataset), said)
            self._must(known == said, f"{wish.job}: two answers to one request: {known} and {said}")
