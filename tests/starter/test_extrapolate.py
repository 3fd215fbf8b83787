from __future__ import annotations

import pytest

from starter.extrapolate import Law, fit, laws

TRUE = Law(floor=1.2, scale=60.0, power=0.3, error=0.0)


def curve(law: Law, before: int) -> list[dict[str, float]]:
    return [
        {"step": step, "tokens": step * 8192, "bits_per_byte": law.bits(before + step * 8192)}
        for step in range(200, 4000, 200)
    ]


def test_the_floor_and_the_power_of_a_curve_are_found_again() -> None:
    without, best = laws(curve(TRUE, 3_000_000), None, 3_000_000)
    assert best.floor == pytest.approx(1.2) and best.power == pytest.approx(0.3) and best.error < 1e-9
    assert without.floor == 0 and without.error > best.error


def test_points_of_the_decay_are_no_part_of_the_law() -> None:
    points = curve(TRUE, 0)
    fallen = [{**point, "bits_per_byte": 1.3} if point["step"] > 3000 else point for point in points]
    assert laws(fallen, 3000, 0)[1].floor == pytest.approx(1.2)


def test_too_few_points_are_told() -> None:
    with pytest.raises(ValueError, match="2 points above 0 bits per byte"):
        fit([(1e6, 2.0), (2e6, 1.9)], 0)
