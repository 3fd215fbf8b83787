"""Results are kept, and the page says what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.result import Goal, Machine, Result, Series, percentile, ratios

MACHINE = Machine(
    system="Linux 6", processor="any", cores=2, memory_gb=8.0, python="3.11", mosquitto="2.0", load=0.1,
    packages={"aiomqtt": "2.5.1"}, commit="abc",
)  # fmt: skip


def result() -> Result:
    goal = Goal(kind="at least", value=0.6)
    return Result(
        name="calls", title="Calls", method="How.", measured_at=datetime(2026, 11, 25, tzinfo=UTC), seconds=3.0, rounds=3,
        machine=MACHINE,
        series=[
            Series(name="ours", unit="calls/s", values=[1200.0, 900.0, 1000.0], group="throughput"),
            Series(name="theirs", unit="calls/s", values=[1000.0, 900.0, 800.0], group="throughput", peer=True),
            Series(name="ratio", unit="×", values=[0.5, 0.61, 0.7], goal=goal),
            Series(name="slow", unit="×", values=[0.5], goal=goal),
        ],
    )  # fmt: skip


def test_a_result_is_read_as_it_was_saved(tmp_path: Path) -> None:
    result().save(tmp_path)
    assert Result.load("calls", tmp_path) == result()
    assert Result.load("memory", tmp_path) is None


def test_ratios_are_made_within_a_round_and_percentiles_are_measured_values() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert [percentile([3.0, 1.0, 2.0], percent) for percent in (1, 50, 99)] == [1.0, 2.0, 3.0]


def test_the_page_names_medians_spread_and_missed_goals(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    from benchmarks.report import write_report

    folder = tmp_path / "benchmarks"
    result().save(folder)
    page = write_report(tmp_path / "benchmarks.md", folder).read_text(encoding="utf-8")
    assert "| ours | 1,000 | calls/s | 900 | 1,200 |  |  |" in page
    assert "| ratio | 0.61 | × | 0.50 | 0.70 | ≥ 0.6 | met |" in page
    assert "**missed**" in page and "abc" in page
    assert "(benchmarks/calls-1.svg)" in page and (folder / "calls-1.svg").read_text(encoding="utf-8").startswith("<?xml")
