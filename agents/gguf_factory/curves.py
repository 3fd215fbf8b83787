"""The course of a training as a picture: SVG of lines, without a plotting library, equal bytes for equal numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 40, 44
"""Room around the plot for the numbers, the names at the lines' ends, the title and the steps."""
INK, FAINT = "#3c4650", "#d9dee2"
WINDOW = 0.05
"""Share of the run over which a noisy line is averaged; the raw line stands faintly behind it."""
LEAST_GAP = 15.0
"""Points between two names at the right edge, so that they do not cover each other."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One course by steps. `noisy`: a value for each step, shown averaged; otherwise the points are marked."""

    name: str
    points: Sequence[Point]
    colour: str
    noisy: bool = False
    dashed: bool = False


def lines(curve: Mapping[str, Any]) -> list[Line]:
    """Return the lines of train/curve.json: losses in nats per answer token; `control_` is the twin with shuffled answers."""

    def losses(name: str) -> list[Point]:
        return [(step, value) for step, value in enumerate(curve.get(name) or [], 1)]

    def held_out(name: str) -> list[Point]:
        return [(point["step"], point["loss"]) for point in curve.get(name) or []]

    found = [
        Line("training", losses("loss"), "#2b6f77", noisy=True),
        Line("held-out", held_out("held_out"), "#c2562d"),
        Line("control, training", losses("control_loss"), "#9aa3ab", noisy=True, dashed=True),
        Line("control, held-out", held_out("control_held_out"), "#8a6d3b", dashed=True),
    ]
    kept = [
        Line(line.name, [point for point in line.points if math.isfinite(point[1])], line.colour, line.noisy, line.dashed)
        for line in found
    ]
    return [line for line in kept if line.points]


def smooth(points: Sequence[Point], share: float = WINDOW) -> list[Point]:
    """Return the running mean over a share of the points, each over as many before as after it."""
    reach = max(1, round(len(points) * share / 2))
    result = []
    for place, (step, _) in enumerate(points):
        near = min(reach, place, len(points) - 1 - place)
        part = points[place - near : place + near + 1]
        result.append((step, sum(value for _, value in part) / len(part)))
    return result


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers within a range: 1, 2 or 5 times a power of ten apart."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next((power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def picture(curve: Mapping[str, Any], title: str) -> str | None:
    """Return the picture of train/curve.json as SVG, or None where nothing was recorded."""
    drawn = lines(curve)
    return draw(drawn, title, y="loss, nats per answer token", x="optimiser steps") if drawn else None


def draw(drawn: Sequence[Line], title: str, *, y: str, x: str) -> str:
    """Return lines with at least one point each as SVG; `y` and `x` say what their values and steps are."""
    values = [value for line in drawn for _, value in line.points]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low or abs(high) or 1.0)
    low, high = low - margin, high + margin
    last = max(step for line in drawn for step, _ in line.points) or 1

    def across(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    told = ", ".join(f"{line.name} {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" role="img">',
        f"<title>{escape(title)}</title>", f"<desc>{escape(told)}; {escape(y)} over {last:g} {escape(x)}</desc>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="13" fill="{INK}">{escape(title)}</text>',
    ]  # fmt: skip
    for value in ticks(low, high):
        parts.append(f'<path d="M{LEFT} {down(value):.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(value) + 4:.1f}" text-anchor="end" fill="{INK}">{value:g}</text>')
    for step in filter(float.is_integer, ticks(0, last, 6)):
        parts.append(f'<text x="{across(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="{INK}">{step:g}</text>')
    for line in drawn:
        parts += _drawn(line, across, down)
    at = -math.inf
    for line in sorted(drawn, key=lambda line: down(_last(line))):
        at = max(at + LEAST_GAP, down(_last(line)))
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{at + 4:.1f}" fill="{line.colour}">{escape(line.name)}</text>')
    parts += [
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="{INK}">{escape(x)}</text>',
        f'<text x="{LEFT}" y="{TOP - 8}" fill="{INK}">{escape(y)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _last(line: Line) -> float:
    return smooth(line.points)[-1][1] if line.noisy else line.points[-1][1]


def _drawn(line: Line, x: Any, y: Any) -> list[str]:
    def path(points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)

    dashes = ' stroke-dasharray="4 3"' if line.dashed else ""
    style = f'fill="none" stroke="{line.colour}" stroke-linejoin="round"{dashes}'
    if line.noisy:
        return [
            f'<path d="{path(line.points)}" {style} stroke-width="1" opacity="0.25"/>',
            f'<path d="{path(smooth(line.points))}" {style} stroke-width="2"/>',
        ]
    marks = "".join(
        f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="{line.colour}"/>' for step, value in line.points
    )
    return [f'<path d="{path(line.points)}" {style} stroke-width="2"/>', marks]
