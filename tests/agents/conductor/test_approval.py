"""Jobs that would cost money: what they wait for, how they go on, and whose word counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.conductor.decide import decide, submitted
from agents.conductor.decision import Decision
from agents.conductor.happening import Approved, CancelAsked, ModeChanged, Refused, Resume, Routed
from agents.conductor.record import JobRecord
from bus import keys
from protocol.errors import Code, LabError
from protocol.job import ApproveRequest, RoutedRequest, State, TrainRequest
from protocol.machine import Offer, Quote
from protocol.money import BudgetMode, ReserveRequest
from protocol.signature import Signature, signed_text, submission
from tests.agents.conductor.jobs import NOON, OFFER, PLAN, QUOTE, REQUEST, RESERVATION, ROUTE, ROUTED
from tests.agents.conductor.stored import StoredJob

PAID = OFFER.model_copy(
    update={"provider": "vast", "machine": "ask-1", "gpu": "A100", "spot": True, "expires_at": NOON + timedelta(minutes=5)}
)
UNTIL = NOON + timedelta(days=1)


def mode(name: str) -> BudgetMode:
    short = {} if name == "normal" else {"period": "day", "until": UNTIL}
    return BudgetMode.model_validate({"mode": name, "at": NOON, **short})


class Story:
    """A job's record, and what followed from the last happening."""

    def __init__(self, signed: bool = False, priority: int = 1) -> None:
        request = TrainRequest.model_validate({**REQUEST.model_dump(), "priority": priority})
        self.record = JobRecord(
            job="j1", digest=ROUTED.digest, request=request, route=ROUTE, approved_by="me" if signed else None,
            submitted_at=NOON, updated_at=NOON,
        )  # fmt: skip
        self.mode: BudgetMode | None = None
        self.now = NOON
        self.ids: list[str] = []

    def tell(self, happening: Any) -> Decision:
        decision = decide(self.record, happening, self.now, self.mode)
        self.record = decision.record
        self.ids += [call.id for call in decision.calls]
        return decision

    def quoted(self, offer: Offer = PAID) -> Decision:
        self.tell(Routed())
        self.tell(PLAN)
        return self.tell(Quote(job="j1", choice=offer))

    def again(self, offer: Offer) -> Decision:
        return self.tell(Quote(job="j1", choice=offer))


def methods(decision: Decision) -> list[str]:
    return [call.method for call in decision.calls]


def dearer(percent: int) -> Offer:
    return PAID.model_copy(update={"reservation_micros": PAID.reservation_micros * (100 + percent) // 100, "expires_at": None})


def test_an_unsigned_request_that_would_cost_money_waits_with_its_price_and_reserves_nothing():
    story = Story()
    decision = story.quoted()
    assert methods(decision) == []
    snapshot = story.record.snapshot()
    assert snapshot.state is State.AWAITING_APPROVAL and snapshot.approval is not None
    assert (snapshot.approval.provider, snapshot.approval.reservation_micros) == ("vast", 1_500_000)
    assert "A100 (spot) of vast would cost about $0.60, at most $1.50 is reserved" in snapshot.reason
    assert "meetara approve j1" in snapshot.reason
    assert decision.admitted == submitted(story.record) and decision.admitted.state is State.AWAITING_APPROVAL


def test_a_signed_request_goes_on_at_once_and_so_does_one_that_costs_nothing():
    (call,) = Story(signed=True).quoted().calls
    assert (call.method, call.params.limit_micros) == ("budget.reserve", 3_000_000), "the request's own budget_usd"
    assert methods(Story().quoted(OFFER)) == ["budget.reserve"], "this machine's own time is nobody's bill"


def test_an_approved_job_reserves_what_was_shown():
    story = Story()
    story.quoted()
    decision = story.tell(Approved("me", 1_500_000))
    (call,) = decision.calls
    assert isinstance(call.params, ReserveRequest) and call.params.amount_micros == 1_500_000
    assert call.params.limit_micros == 1_650_000, "no later extension goes beyond what was agreed to"
    assert (story.record.approved_by, story.record.reason, story.record.snapshot().approval) == ("me", None, None)
    assert [fact.type for fact in decision.facts] == ["approved"]
    story.tell(RESERVATION)
    assert story.record.state is State.PROVISIONING


def test_an_expired_quote_is_made_anew_and_a_price_within_a_tenth_is_let_pass():
    story = Story()
    story.quoted()
    story.now = PAID.expires_at
    assert methods(story.tell(Approved("me", 1_500_000))) == ["offer.quote"]
    assert story.record.state is State.QUOTED
    assert methods(story.again(dearer(10))) == ["budget.reserve"]
    assert len(set(story.ids)) == len(story.ids), "a second quote is another call"


def test_a_price_that_rose_by_more_than_a_tenth_is_asked_for_again():
    story = Story()
    story.quoted()
    story.now = PAID.expires_at
    story.tell(Approved("me", 1_500_000))
    assert methods(story.again(dearer(11))) == []
    assert story.record.state is State.AWAITING_APPROVAL
    assert "The price rose by more than 10 % since $1.50 was approved" in story.record.reason
    assert methods(story.tell(Approved("me", 1_665_000))) == ["budget.reserve"]


def test_less_than_the_price_approves_nothing():
    story = Story()
    story.quoted()
    assert methods(story.tell(Approved("me", 1_000_000))) == []
    assert story.record.state is State.AWAITING_APPROVAL


def test_a_refused_job_is_cancelled_and_nothing_was_started():
    story = Story()
    story.quoted()
    assert methods(story.tell(CancelAsked())) == []
    assert story.record.state is State.CANCELLED and story.record.snapshot().approval is None


@pytest.mark.parametrize(("name", "priority", "waits"), [
    ("normal", 1, False), ("optimise", 1, True), ("optimise", 2, False), ("frozen", 1, True), ("frozen", 3, True),
])  # fmt: skip
def test_who_waits_when_money_is_short(name, priority, waits):
    story = Story(signed=True, priority=priority)
    story.mode = mode(name)
    decision = story.quoted()
    assert (methods(decision) == []) == waits and story.record.economises == waits
    if waits:
        assert story.record.state is State.QUOTED and "2026-03-02 12:00 UTC" in story.record.snapshot().reason
        assert decision.admitted.message.startswith("waits for money: the day's budget")


def test_the_quote_asks_for_what_is_cheap_while_money_is_short():
    story = Story(signed=True)
    story.mode = mode("optimise")
    story.tell(Routed())
    (call,) = story.tell(PLAN).calls
    assert call.params.economy
    assert methods(story.again(OFFER)) == ["budget.reserve"], "local work goes on"


def test_a_job_that_waited_for_money_is_quoted_anew_when_there_is_some():
    story = Story(signed=True)
    story.mode = mode("frozen")
    story.quoted()
    story.mode = mode("optimise")
    (fact,) = story.tell(ModeChanged()).facts
    assert fact.type == "economising" and "is short" in story.record.reason
    assert story.tell(ModeChanged()).facts == [], "the same word again is no news"
    story.mode = mode("normal")
    (call,) = story.tell(ModeChanged()).calls
    assert call.method == "offer.quote" and not call.params.economy
    assert methods(story.again(PAID)) == ["budget.reserve"]
    assert not story.record.economises and story.record.reason is None
    assert methods(story.tell(ModeChanged())) == []


def test_a_job_that_was_taken_on_waits_while_nothing_is_for_sale_when_it_may_go_on():
    story = Story(signed=True)
    story.mode = mode("frozen")
    story.quoted()
    story.mode = mode("normal")
    asked = {call.id for call in story.tell(ModeChanged()).calls}
    story.tell(Refused(LabError(Code.NO_CAPACITY, "sold out.")))
    assert (story.record.state, story.record.reason) == (State.QUOTED, "sold out.") and not story.record.economises
    again = story.tell(Resume())
    assert methods(again) == ["offer.quote"] and again.calls[0].id not in asked, "a call of its own"
    later = story.tell(Refused(LabError(Code.BUDGET, "what is left is too dear.", rejected={"vast 7": "over the limit"})))
    assert story.record.sold_out and later.timers["resume"] - story.now == timedelta(minutes=2), "the market, not the lab's budget"
    story.tell(Resume())
    assert methods(story.again(PAID)) == ["budget.reserve"] and not story.record.sold_out
    story.tell(Refused(LabError(Code.BUDGET, "the month's budget does not hold it.")))
    assert story.record.state is State.REFUSED


def test_a_new_job_that_finds_nothing_for_sale_is_told_so_at_once():
    story = Story(signed=True)
    story.tell(Routed())
    story.tell(PLAN)
    decision = story.tell(Refused(LabError(Code.NO_CAPACITY, "sold out.")))
    assert story.record.state is State.REFUSED and isinstance(decision.admitted, LabError)


# the shell: whose word counts

PAID_QUOTE = QUOTE.model_copy(update={"choice": PAID})


@pytest.fixture
def job(tmp_path: Path) -> Iterator[StoredJob]:
    made = StoredJob(tmp_path)
    yield made
    made.agent.store.close()


@pytest.fixture
def key(tmp_path: Path) -> keys.Key:
    made = keys.make(tmp_path / keys.FOLDER)
    keys.trust(tmp_path / keys.FOLDER, "me", made.public)
    return made


def signed(signature: Signature) -> RoutedRequest:
    return ROUTED.model_copy(update={"request": REQUEST.model_copy(update={"signature": signature})})


def priced(job: StoredJob, routed: RoutedRequest = ROUTED) -> None:
    job.ask("train.route", routed, id="j1:route")
    job.answer("j1:job.plan", PLAN)
    job.answer("j1:offer.quote", PAID_QUOTE)


def approve(job: StoredJob, key: keys.Key, amount: int = 1_500_000, said: int | None = None) -> dict[str, Any]:
    signature = key.sign(signed_text("lab", "job.approve", "j1", amount))
    reply = job.ask("job.approve", ApproveRequest(job="j1", amount_micros=said or amount, signature=signature))
    assert reply is not None
    return reply


def asked(job: StoredJob) -> list[str]:
    return [row["method"] for row in job.rows("outbox")]


def test_a_trusted_signature_lets_a_job_spend_and_travels_no_further(job, key):
    priced(job, signed(key.sign(submission("lab", "j1", ROUTED.digest))))
    assert asked(job) == ["budget.reserve"] and job.record.approved_by == "me"
    assert job.record.request.signature is None and job.facts[0].data["signed_by"] == "me"


def test_a_strangers_signature_is_none_and_a_forged_one_is_refused(job, key, tmp_path):
    stranger = keys.make(tmp_path / "elsewhere")
    forged = Signature(key=key.public, value=stranger.sign(submission("lab", "j1", ROUTED.digest)).value)
    with pytest.raises(ValueError, match="not enough values"):
        job.ask("train.route", signed(forged), id="forged")
    assert job.rows("jobs") == [], "nothing is known of a job whose signature is forged"
    assert "not of this request" in json.loads(job.rows("inbox")[0]["reply"])["error"]["message"]
    priced(job, signed(stranger.sign(submission("lab", "j1", ROUTED.digest))))
    assert job.record.state is State.AWAITING_APPROVAL and asked(job) == []


def test_the_submitter_hears_that_the_job_waits_and_an_approval_lets_it_go_on_once(job, key):
    priced(job)
    told = job.reply("j1:route")
    assert told is not None and told["result"]["state"] == "awaiting_approval"
    assert job.published("job/j1/state")[-1]["approval"]["reservation_micros"] == 1_500_000
    assert approve(job, key)["result"]["state"] == "quoted" and asked(job) == ["budget.reserve"]
    assert approve(job, key)["result"]["state"] == "quoted" and asked(job) == ["budget.reserve"], "the same word again"
    assert "does not wait for approval" in approve(job, key, 2_000_000)["error"]["message"]


def test_nothing_is_started_by_a_wrong_approval(job, key, tmp_path):
    priced(job)
    stranger = keys.make(tmp_path / "elsewhere")
    assert "does not trust the key" in approve(job, stranger)["error"]["message"]
    assert "not of this request" in approve(job, key, 1, said=1_500_000)["error"]["message"]
    keys.distrust(tmp_path / keys.FOLDER, "me")
    assert "does not trust the key" in approve(job, key)["error"]["message"]
    assert job.record.state is State.AWAITING_APPROVAL and asked(job) == []


def test_a_job_that_does_not_exist_cannot_be_approved(job, key):
    priced(job)
    signature = key.sign(signed_text("lab", "job.approve", "nope", 1))
    reply = job.ask("job.approve", ApproveRequest(job="nope", amount_micros=1, signature=signature))
    assert reply is not None and reply["error"]["code"] == Code.NOT_FOUND


def heard(job: StoredJob, name: str) -> None:
    job.agent.mode_heard("meetara/v1/lab/cost/mode", mode(name).model_dump_json().encode())
    if job.rows("jobs"):
        job.read()


def test_the_budgets_mode_holds_a_job_and_lets_it_go_also_after_a_restart(job, key, tmp_path):
    heard(job, "frozen")
    priced(job, signed(key.sign(submission("lab", "j1", ROUTED.digest))))
    assert job.record.economises and asked(job) == []
    job.agent.store.close()
    other = StoredJob(tmp_path)
    heard(other, "frozen")
    assert asked(other) == []
    heard(other, "normal")
    assert asked(other) == ["offer.quote"]
    other.answer("j1:offer.quote:1", PAID_QUOTE)
    assert asked(other) == ["budget.reserve"] and other.rows("jobs", "job IN (SELECT job FROM economising)") == []
    job.agent = other.agent


def test_words_about_the_budget_that_nobody_understands_change_nothing(job, key):
    heard_before = job.agent._mode
    job.agent.mode_heard("meetara/v1/lab/cost/mode", b"{}")
    job.agent.mode_heard("meetara/v1/lab/cost/mode", b"")
    assert job.agent._mode is heard_before
