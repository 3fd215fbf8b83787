"""What `meetara watch` remembers of the news, and that its picture fits every terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from meetara import show
from meetara.board import COURSE, Board, sparkline
from meetara.news import Link
from meetara.screens.board import FACTORIES, Picture
from protocol import JobSnapshot, Progress, State
from protocol.job import Artefact, Stage
from protocol.machine import Card, Device, Presence, ProviderStatus
from protocol.money import BudgetAlert, BudgetReport, PeriodReport

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def snapshot(job: str, state: State, seconds: float = 0, **fields) -> JobSnapshot:
    known = {
        "stage": None, "attempt": 1, "domain": "sleep", "tier": "starter", "profile": "edge", "cost_usd": None,
        "quality_percent": None, "artefacts": [], "gates": {},
    }  # fmt: skip
    return JobSnapshot(job=job, state=state, at=AT + timedelta(seconds=seconds), **{**known, **fields})


def progress(job: str, step: int, loss: float | None = None, **fields) -> Progress:
    known = {"stage": Stage.TRAIN, "attempt": 1, "steps": 1000, "at": AT}
    return Progress(job=job, step=step, loss=loss, **{**known, **fields})


def factory(name: str, slots: int = 1) -> list[Card | Presence]:
    device = Device(cores=16, memory_bytes=33_000_000_000, disk_free_bytes=1)
    return [
        Card(agent=name, role="gguf_factory", version="1", methods={}, slots=slots, device=device),
        Presence(agent=name, role="gguf_factory", online=True, at=AT),
    ]


def ledger(spent: int = 0, reserved: int = 0, cap: int = 5_000_000, frozen: bool = False) -> BudgetReport:
    percent = (spent + reserved) / cap * 100
    period = PeriodReport(
        period="day", since=AT, until=AT, cap_micros=cap, spent_micros=spent, reserved_micros=reserved, percent=percent
    )
    return BudgetReport(
        periods=[period], jobs={}, providers={}, domains={}, open_reservations=[], frozen=frozen,
        alert_percents=[50, 80, 90, 95], freeze_percent=95,
    )  # fmt: skip


def board(*items) -> Board:
    made = Board()
    for item in items:
        made.take(item, AT)
    return made


def picture(made: Board, width: int = 160, height: int = 40) -> str:
    console = Console(file=StringIO(), width=width, height=height, force_terminal=False)
    console.print(Picture(made, "lab at 127.0.0.1:1883", AT))
    return console.file.getvalue()


def test_running_jobs_come_first_then_waiting_ones_by_priority_then_the_newest_finished() -> None:
    made = board(
        snapshot("done-old", State.DONE), snapshot("done-new", State.DONE, 5), snapshot("low", State.RESERVED),
        snapshot("urgent", State.RESERVED, 9, priority=3), snapshot("older", State.RESERVED, -5),
        snapshot("starting", State.PROVISIONING, machine="gguf_factory-1"), snapshot("queued", State.PROVISIONING, 3),
        snapshot("works", State.TRAINING, machine="gguf_factory-2"),
    )  # fmt: skip
    assert [job.job for job in made.running()] == ["starting", "works"]
    assert [job.job for job in made.waiting()] == ["urgent", "older", "low", "queued"]
    assert [job.job for job in made.finished()] == ["done-new", "done-old"]
    shown = picture(made)
    order = [shown.index(name) for name in ("works", "urgent", "older", "low", "done-new", "done-old")]
    assert order == sorted(order)


def test_what_is_sent_again_after_a_reconnect_changes_nothing() -> None:
    made = board(snapshot("one", State.DONE, 5), snapshot("one", State.TRAINING, 1), progress("one", 3))
    assert made.jobs["one"].state is State.DONE
    assert made.of_stage(made.jobs["one"]) is None, "a straggler of an ended job"


def test_a_second_attempt_starts_its_numbers_anew() -> None:
    made = board(snapshot("one", State.TRAINING, stage=Stage.TRAIN), progress("one", 1, 3.0), progress("one", 2, 2.0))
    assert made.course["one"] == [3.0, 2.0]
    made.take(snapshot("one", State.TRAINING, 1, stage=Stage.TRAIN, attempt=2), AT)
    made.take(progress("one", 9, 1.0), AT)
    assert "one" not in made.course and made.of_stage(made.jobs["one"]) is None


def test_memory_is_bounded_by_what_is_shown() -> None:
    made = board(snapshot("one", State.TRAINING, stage=Stage.TRAIN))
    for step in range(10 * COURSE):
        made.take(progress("one", step, 1 / (step + 1)), AT)
    assert len(made.course["one"]) <= COURSE
    assert made.course["one"] == sorted(made.course["one"], reverse=True), "averaging keeps the course"
    final = snapshot(
        "one", State.DONE, 9, results={"answers": ["x" * 9999]}, artefacts=[Artefact(kind="gguf", uri="u", sha256="s", bytes=1)]
    )
    made.take(final, AT)
    assert made.course == {} and made.jobs["one"].results == {} and made.jobs["one"].artefacts == []


def test_the_newest_event_is_told_even_when_an_older_one_arrives_later() -> None:
    made = board(*factory("gguf_factory-1"), snapshot("one", State.DONE, 5, quality_percent=104.16))
    assert made.event is not None and made.event.text == "one is done, quality 104.2 %"
    alert = BudgetAlert(
        period="day", since=AT, threshold=80, spent_micros=4_000_000, reserved_micros=100_000, cap_micros=5_000_000,
        at=AT - timedelta(hours=1),
    )  # fmt: skip
    made.take(alert, AT)
    assert "one is done" in picture(made), "a retained alert of an hour ago is no news"
    made.take(alert.model_copy(update={"at": AT + timedelta(seconds=6)}), AT)
    assert "80 % of the day's budget is reached: $4.10 of $5.00" in picture(made)
    made.take(Presence(agent="gguf_factory-1", role="gguf_factory", online=False), AT + timedelta(seconds=7))
    assert "gguf_factory-1 is gone" in picture(made) and "0 of 1 online" in picture(made)


def test_a_lost_connection_is_said_so_until_it_is_back() -> None:
    made = board(Link(up=False))
    assert "connection lost" in picture(made)
    made.take(Link(up=True), AT)
    assert "connection lost" not in picture(made)


def test_a_running_job_shows_its_numbers_and_a_factory_what_it_works_on() -> None:
    made = board(
        *factory("gguf_factory-1", 2), ProviderStatus(provider="local", status="up", slots=2, free=1, at=AT),
        snapshot("plan-week", State.TRAINING, stage=Stage.TRAIN, machine="gguf_factory-1", cost_usd=0.0),
        progress("plan-week", 100, 2.5), progress("plan-week", 250, 2.25, tokens_per_s=1204.4, eta_s=200.0, cost_usd=0.5),
    )  # fmt: skip
    for width in (80, 160):
        shown = picture(made, width)
        for part in ("plan-week", "250/1000", "2.250", "█▁", "1,204", "3:20 min", "$0.50", "▰▰▰▱▱▱▱▱ train", "1/2", "1 of 2 slots free"):
            assert part in shown, (width, part)


def test_money_shows_thresholds_and_a_freeze() -> None:
    shown = picture(board(ledger(spent=1_000_000, reserved=500_000)))
    assert "$1.00 + $0.50 reserved of $5.00" in shown and "30.0 %" in shown and shown.count("┼") == 4
    assert "frozen" in picture(board(ledger(spent=4_900_000, frozen=True)))


def test_an_empty_lab_says_what_to_do() -> None:
    shown = picture(Board(), 80)
    assert "meetara train" in shown and "meetara up" in shown and "has not answered" in shown


@pytest.mark.parametrize("width", [60, 80, 100, 119, 120, 160, 220])
@pytest.mark.parametrize("height", [16, 24, 50])
def test_every_line_fits_and_more_jobs_than_fit_are_counted(width: int, height: int) -> None:
    made = board(
        ledger(spent=1, reserved=2_345_678), *(item for number in range(9) for item in factory(f"gguf_factory-{number}", 3)),
        *(snapshot(f"0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a{n:02}", State.TRAINING, stage=Stage.TRAIN, machine="gguf_factory-1") for n in range(3)),
        *(snapshot(f"waits-{n}", State.RESERVED, priority=2, domain="parent_child_communication") for n in range(30)),
        *(snapshot(f"failed-{n}", State.FAILED, reason="because " * 40) for n in range(500)),
        progress("0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a00", 846, 12.345, tokens_per_s=123_456.0, eta_s=7400.0, cost_usd=1234.5),
    )  # fmt: skip
    lines = picture(made, width, height).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert len(lines) < max(height, 20), "below the least height the head stays readable"
    text = "\n".join(lines)
    assert "3 running · 30 waiting · 500 finished" in text
    assert "finished more" in text and f"… and {9 - FACTORIES + 1} factories more" in text


def test_a_course_is_drawn_from_high_to_low() -> None:
    assert sparkline([], 8) == sparkline([1.0], 8) == ""
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0, 1.0, 1.0], 8) == "▁▁▁"
    assert len(sparkline([float(number) for number in range(100)], 16)) == 16


def test_long_names_keep_both_ends_and_ages_are_rough() -> None:
    assert show.shortened("short", 8) == "short"
    assert show.shortened("0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", 20) == "0193a1…-0c1d2e3f4a5b"
    assert [show.ago(seconds) for seconds in (0, 40, 200, 7500, 200_000)] == ["now", "40 s ago", "3 min ago", "2 h ago", "2 d ago"]
    assert [show.left(seconds) for seconds in (42, 200, 7500)] == ["42 s", "3:20 min", "2:05 h"]
