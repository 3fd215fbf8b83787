"""Choosing a machine is measured against its limit."""

from __future__ import annotations

from benchmarks import offers


def test_choosing_is_told_as_a_share_of_its_limit_in_the_same_round() -> None:
    series = {found.name: found for found in offers.run(2, 0)}
    share, ms = series["choose among 5,000 ÷ the limit of 50 ms"], series["choose among 5,000"]
    assert share.values == [value / 50 for value in ms.values] and all(value > 0 for value in share.values)
    assert share.goal is not None and share.goal.met(1.0) and not share.goal.met(1.01)
    assert "choose among 5,000 ÷ among 500" in series
