"""The picture of a training: well-formed, the same for the same numbers, and honest about what was not recorded."""

from __future__ import annotations

import math
import xml.etree.ElementTree as xml
from typing import Any

import pytest

from agents.gguf_factory import curves

CURVE: dict[str, Any] = {
    "loss": [3.0 - 0.02 * step + (0.1 if step % 2 else 0.0) for step in range(100)],
    "held_out": [{"step": step, "loss": 3.0 - 0.015 * step} for step in (0, 50, 100)],
    "control_loss": [3.2] * 12, "control_held_out": [{"step": 12, "loss": 3.1}],
}  # fmt: skip


def texts(drawn: str) -> list[str]:
    root = xml.fromstring(drawn)
    return [element.text or "" for element in root.iter() if element.tag.endswith(("text", "title", "desc"))]


def test_the_picture_names_its_lines_axes_and_ends() -> None:
    drawn = curves.picture(CURVE, "sleep & <co>")
    assert drawn is not None and drawn == curves.picture(CURVE, "sleep & <co>")
    shown = texts(drawn)
    assert {"sleep & <co>", "training", "held-out", "control, training", "control, held-out", "optimiser steps"} <= set(shown)
    few = texts(curves.picture({"loss": [3.0, 2.0, 1.0]}, "t") or "")
    assert {"0", "1", "2", "3"} <= set(few) and "0.5" not in few, "there is no half step"
    assert any("held-out 3 to 1.5" in text for text in shown), "the numbers are told to who cannot see it"


def test_everything_lies_within_the_picture() -> None:
    root = xml.fromstring(curves.picture(CURVE, "t") or "")
    for circle in (element for element in root.iter() if element.tag.endswith("circle")):
        assert curves.LEFT <= float(circle.get("cx", 0)) <= curves.WIDTH - curves.RIGHT
        assert curves.TOP <= float(circle.get("cy", 0)) <= curves.HEIGHT - curves.BOTTOM


@pytest.mark.parametrize("curve", [{}, {"loss": [], "held_out": []}, {"loss": [math.nan, math.inf]}])
def test_what_was_not_recorded_is_not_drawn(curve: dict[str, Any]) -> None:
    assert curves.picture(curve, "t") is None


@pytest.mark.parametrize("curve", [{"loss": [2.0]}, {"held_out": [{"step": 0, "loss": 0.0}]}, {"loss": [1.0, 1.0]}])
def test_a_single_value_and_a_flat_line_are_drawn(curve: dict[str, Any]) -> None:
    drawn = curves.picture(curve, "t")
    assert drawn is not None and "nan" not in drawn
    xml.fromstring(drawn)


def test_ticks_are_round_and_within() -> None:
    assert curves.ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert curves.ticks(1.43, 3.02) == [1.5, 2.0, 2.5, 3.0]
    assert all(1e-5 <= value <= 3e-5 for value in curves.ticks(1e-5, 3e-5))


def test_names_at_the_edge_do_not_cover_each_other() -> None:
    curve = {"loss": [2.0, 1.0], "held_out": [{"step": 2, "loss": 1.0}]}
    root = xml.fromstring(curves.picture(curve, "t") or "")
    heights = [float(e.get("y", 0)) for e in root.iter() if (e.text or "") in ("training", "held-out")]
    assert abs(heights[0] - heights[1]) >= curves.LEAST_GAP


def test_a_running_mean_keeps_a_constant_and_the_ends() -> None:
    assert curves.smooth([(1, 2.0), (2, 2.0), (3, 2.0)]) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    noisy = curves.smooth([(step, float(step % 2)) for step in range(100)])
    assert noisy[0] == (0, 0.0) and all(0.3 < value < 0.7 for _, value in noisy[10:-10])
