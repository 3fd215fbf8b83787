"""The page that tells a run of `make load`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def page(found: dict[str, Any]) -> str:
    """Return docs/results/load.md for what `measure` found."""
    slowest = found["slowest"]
    ends = ", ".join(f"{count} {name}" for name, count in found["endings"].items())
    return f"""# Two hundred requests at once

Written by `make load` from [load.json](load.json); edits are lost. {found["jobs"]} requests with random priorities (seed {found["seed"]}) are handed to the
broker by one `mosquitto_pub` in {found["publish_s"]:.2f} s. Each trains a tiny random base for three steps, really: all eight stages, all gates, {found["slots"]} slots.

- Ends: {ends}. A job that ended twice, finished a stage twice, has a gap in its events, or did not end would be listed here.
- A slot given to a job before one that should have been first (priority, then age; within a second of delay): {len(found["overtaken"])}.
- `meetara jobs` lists {found["listed"]} of them.
- {found["total_s"]:,.0f} s in all, {found["jobs_per_hour"]:.0f} jobs an hour.
- The slowest transition that only messages make: {slowest["from"]} → {slowest["to"]} of {slowest["job"]}, {slowest["seconds"]:.2f} s.

{_table(("from → to", "median, s", "99 %, s", "most, s"), _transitions(found))}

The plans are made two at a time, the most urgent first; "planned" and "leased" are therefore waiting times of a queue.

{_table(("resident memory, MB", "idle", "after a fifth of the time", "at the end", "most"), _memory(found))}

{found["at"]}, {found["machine"]}.
"""


def _transitions(found: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, times in found["transitions"].items():
        yield name, *(f"{times[key]:,.2f}" for key in ("p50_s", "p99_s", "max_s"))


def _memory(found: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for agent, sizes in found["memory_mb"].items():
        named = (sizes[key] for key in ("idle", "after_a_fifth", "last", "most"))
        yield agent, *("not measured" if size is None else f"{size:.1f}" for size in named)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---", *("--:" for _ in head[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
