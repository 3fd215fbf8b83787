"""A quiet picture of some series in one unit: a dot for each round, a line at the median, the goal as a dashed line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # no display, no fonts of the machine but for measuring
from matplotlib import pyplot

from benchmarks.result import Series

OURS, PEER, INK, FAINT = "#2b6f77", "#9aa3ab", "#3c4650", "#d9dee2"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "meetara", "font.size": 9, "font.family": "sans-serif", "text.color": INK,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip
"""Text stays text, and the same numbers give the same file."""


def draw(series: Sequence[Series], title: str, path: Path) -> None:
    """Write the picture as SVG."""
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 0.75 + 0.34 * len(series)))
        for place, one in enumerate(series):
            colour = PEER if one.peer else OURS
            axes.plot(one.values, [place] * len(one.values), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            axes.plot([one.median] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2.2, solid_capstyle="round")
        for value in {one.goal.value for one in series if one.goal is not None}:
            axes.axvline(value, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_yticks(range(len(series)), [one.label or one.name for one in series])
        axes.invert_yaxis()
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(series[0].unit, loc="right")
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None}, transparent=False, facecolor="white")
        pyplot.close(figure)
