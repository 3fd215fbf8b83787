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
from typing import TYPE_CHECKING

from bus.address import BrokerAddress
from bus.logs import configure, wanted
from bus.redact import clean
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
    parser.add_argument("--host", metavar="ADDRESS", help="the broker: HOST, HOST:PORT, mqtts://HOST:PORT")
    parser.add_argument("--port", type=int, help="the broker's port, where the address names none")
    parser.add_argument("--lab", default=environment("MEETARA_LAB", "lab"))
    parser.add_argument("--agent", default=f"{agent.role}-1", help="this agent's id")
    options = parser.parse_args(arguments)
    if options.home is None:
        parser.error("give --home, or set MEETARA_HOME")
    home = Path(options.home).absolute()

    async def serve(address: BrokerAddress) -> None:
        await agent(Wiring(options.agent, home, address, options.lab)).run()

    try:
        configure(options.agent, *wanted())
        asyncio.run(serve(BrokerAddress.read(os.environ, broker=options.host, port=options.port)))
    except LabError as error:
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            print(f"{options.agent}: {clean(str(error), quotes=False)}", file=sys.stderr, flush=True)
        sys.exit(1 if error.retry is Retry.LATER else 2)
