import random
import sqlite3
from datetime import timedelta

import pytest

from agents.gpu_orchestrator.market import history
from agents.gpu_orchestrator.market.history import KEPT, LEAST_SPREAD, UNSURE, History, Run, quantiles
from protocol.machine import Offer
from tests.agents.gpu_orchestrator.market.samples import NOW


@pytest.fixture
def connection():
    with sqlite3.connect(":memory:", isolation_level=None) as made:
        made.executescript(history.SCHEMA)
        yield made


def offer(provider: str = "lambda", prior: float | None = 100.0) -> Offer:
    return Offer(
        provider=provider, machine="m", price_micros_per_hour=1, seconds_p50=100, seconds_p90=250, cost_p50_micros=1,
        cost_p90_micros=1, reservation_micros=1, gpu="T4", prior_s=prior,
    )  # fmt: skip


def work(connection, job: str, seconds: float, done: bool = True, **kind) -> None:
    history.begin(connection, job, offer(**kind), NOW)
    history.end(connection, job, NOW + timedelta(seconds=seconds), done=done)


def test_without_runs_the_guess_is_wide_and_says_so():
    found = History().calibration("lambda", "T4")
    assert (found.median, found.ninetieth, found.runs) == (1.0, UNSURE, 0) and "arithmetic alone" in found.told


def test_own_runs_come_before_those_of_all_and_those_before_the_guess(connection):
    for number in range(5):
        work(connection, f"a{number}", 200)
    for number in range(5):
        work(connection, f"b{number}", 50, provider="vast")
    found = history.read(connection)
    assert found.calibration("lambda", "T4").median == 2.0 and found.calibration("vast", "T4").median == 0.5
    assert found.calibration("runpod", "A10").median == 1.25 and "all machines elsewhere" in found.calibration("runpod", "A10").told
    assert found.coverage() == (10, 10) and found.coverage("vast") == (5, 5)


def test_a_local_run_counts_for_the_coverage_and_corrects_nothing(connection):
    for number in range(6):
        work(connection, f"j{number}", 200 if number else 300, provider="local", prior=None)
    found = history.read(connection)
    assert found.calibration("local", "T4").runs == 0
    assert found.told_local() == "the factory's own plan; 5 of 6 finished runs stayed below their P90 (83%)"


def test_only_what_was_done_in_one_go_counts(connection):
    work(connection, "failed", 10, done=False)
    work(connection, "failed", 10)  # the rest of it
    work(connection, "whole", 100)
    history.end(connection, "whole", NOW + timedelta(days=1), done=True)  # told twice
    assert [run.actual_s for run in history.read(connection)._runs] == [100.0]


def test_a_clock_that_is_set_does_not_make_a_run_longer(connection):
    history.begin(connection, "j", offer(), NOW)
    history.shift(connection, 3600)
    history.end(connection, "j", NOW + timedelta(seconds=3700), done=True)
    assert [run.actual_s for run in history.read(connection)._runs] == [100.0]


def test_old_runs_are_forgotten(connection):
    for number in range(KEPT + 3):
        history.begin(connection, f"j{number}", offer(), NOW + timedelta(seconds=number))
        history.end(connection, f"j{number}", NOW + timedelta(seconds=number + 1), done=True)
    assert connection.execute("SELECT count(*), min(began) FROM runs").fetchone() == (KEPT, (NOW + timedelta(seconds=3)).timestamp())


def test_few_runs_that_agree_do_not_make_it_sure():
    assert quantiles([1.0] * 5) == (1.0, LEAST_SPREAD)
    assert quantiles([1.0, 1.0, 1.0, 1.0, 3.0]) == (1.0, 3.0 * LEAST_SPREAD)
    assert quantiles([float(n) for n in range(1, 20)]) == (10.0, 18.0)


def test_nine_in_ten_further_runs_stay_below_p90():
    chance = random.Random(3)
    held = total = 0
    for _ in range(400):
        runs = [Run("lambda", "T4", 100.0, 1.0, 100 * chance.lognormvariate(0.3, 0.6)) for _ in range(20)]
        ninetieth = History(runs).calibration("lambda", "T4").ninetieth
        held += sum(chance.lognormvariate(0.3, 0.6) <= ninetieth for _ in range(10))
        total += 10
    assert 0.88 < held / total < 0.94
