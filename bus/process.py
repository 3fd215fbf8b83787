"""An agent as a process: its options, its surroundings, its exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bus.logs import configure
from bus.session import BrokerAddress
from protocol.errors import LabError, Retry

if TYPE_CHECKING:
    from bus.agent import BaseAgent


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Wiring:
    """What an agent is given: who it is, where its home and its broker are, and the clock."""

    agent: str
    home: Path
    broker: BrokerAddress
    lab: str = "lab"
    now: Callable[[], datetime] = utc_now


def run(agent: type[BaseAgent], arguments: list[str] | None = None) -> None:
    """Run an agent until it is told to end; exits with 2 when it refuses its configuration, with 1 when to start it again
    can help."""
    parser = argparse.ArgumentParser(prog=f"python -m agents.{agent.role}", description=agent.__doc__)
    environment = os.environ.get
    parser.add_argument("--home", type=Path, default=environment("MEETARA_HOME"), help="the lab's state")
    parser.add_argument("--host", default=environment("MEETARA_BROKER", "127.0.0.1"), help="the broker's address")
    parser.add_argument("--port", type=int, default=int(environment("MEETARA_PORT", "1883")))
    parser.add_argument("--lab", default=environment("MEETARA_LAB", "lab"))
    parser.add_argument("--agent", default=f"{agent.role}-1", help="this agent's id")
    options = parser.parse_args(arguments)
    if options.home is None:
        parser.error("give --home, or set MEETARA_HOME")
    form: Literal["json", "console"] = "console" if environment("MEETARA_LOG") == "console" else "json"
    configure(options.agent, form)
    address = BrokerAddress(
        options.host, options.port, environment("MEETARA_BROKER_USER"), environment("MEETARA_BROKER_PASSWORD")
    )
    wiring = Wiring(options.agent, Path(options.home).absolute(), address, options.lab)

    async def serve() -> None:
        await agent(wiring).run()

    try:
        asyncio.run(serve())
    except LabError as error:
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            print(f"{options.agent}: {error}", file=sys.stderr, flush=True)
        sys.exit(1 if error.retry is Retry.LATER else 2)
