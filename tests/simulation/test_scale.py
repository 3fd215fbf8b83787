"""The crowd in small: all machines at once, all jobs done; what `python -m tests.simulation.scale` does with a thousand."""

from __future__ import annotations

import pytest

from tests.simulation.scale import main


def test_all_machines_work_at_once_and_all_jobs_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "26", "--workers", "10", "--lasts", "120", "--trouble", "200", "--spread", "60"]) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert "jobs 26: done 26" in told and "of 10 worked at a time" in told


def test_too_few_machines_at_once_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "2", "--workers", "10", "--lasts", "0", "--trouble", "0", "--spread", "2"]) == 1
    assert "2 of 10 worked at a time" in capsys.readouterr().out
