"""What a long command of the factory is doing: a spinner for a person, nothing in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text


@contextmanager
def shown(console: Console, as_json: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that shows a progress's note until the block ends."""
    if as_json or not console.is_terminal:
        yield lambda _: None
        return
    with console.status(Text("starting")) as status:
        yield lambda facts: status.update(Text(str(facts.get("note") or "")))
